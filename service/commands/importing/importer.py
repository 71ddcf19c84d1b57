"""`python -m service import`: publishes an ONNX classifier that was trained elsewhere.

It writes the model.json and copies the file. It runs random rows to find out which output to serve
and its kind, whether the model is deterministic, and whether rows influence each other. The model
is published only if the graph with the service's head gives the same probabilities as the file.
"""

import argparse
import contextlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.commands.importing import (
    calibrate,
    huggingface,
    onnx_file,
    outputs,
    purpose,
    rewrite,
    widths,
)
from service.commands.importing.inputs import (
    Run,
    Trial,
    check_repeats,
    columns_taking_missing,
    feeder,
    input_fields,
    try_rows,
)
from service.commands.importing.names import (
    check_order,
    column_names,
    is_cut,
    read_columns,
    read_counts,
    read_names,
    unique_names,
)
from service.commands.importing.notes import notes
from service.commands.importing.refusal import ImportRefused
from service.commands.messages import reason_of
from service.contract.adjustment import softmax
from service.contract.bundle import (
    MODEL_FILE,
    Bundle,
    InvalidBundle,
    check_model_name,
    parse_bundle,
    sha256_of,
)
from service.contract.inputs.columns import float_names, float_rows
from service.contract.inputs.familiarity import measure
from service.contract.inputs.spec import InputSpec
from service.contract.inputs.tokens import TokenizerUnusable, Tokens
from service.contract.nearest import did_you_mean
from service.contract.next_steps import to_serve
from service.contract.publication import publish
from service.contract.resources import available_threads
from service.graph.foreign import UnsupportedGraph
from service.graph.reasons import first_line
from service.graph.session import Graph, UnusableModel, open_graph, open_plain
from service.graph.trial import influence
from service.process.exit_codes import DONE, FAILED

Array = NDArray[Any]
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 5e-3
_LIBRARY_TOLERANCE = 5e-3
"""How far a probability may be from that of the library: graphs compute in float32 or less."""
_STRAY_ROWS = 0.05
"""The share of example rows that may differ from the library."""
_ROWS_AT_ONCE = 256

REFUSALS = (
    ImportRefused,
    InvalidBundle,
    UnsupportedGraph,
    UnusableModel,
    TokenizerUnusable,
    OSError,
)


@dataclass
class Import:
    """The state of one import: what was read and found so far, and the fields of model.json."""

    flags: argparse.Namespace
    file: onnx_file.OnnxFile
    folder: huggingface.Folder | None
    fields: dict[str, Any]
    spec: InputSpec
    run: Run
    trial: Trial
    output: outputs.Output


def run(arguments: argparse.Namespace) -> int:
    """Import a file; print the new folder on stdout and notes on stderr. Exit 0 done, 1 refused."""
    if getattr(arguments, "validation", None):
        sys.stderr.write(
            "priordial: --validation needs `priordial import`, which may call the training "
            "package; or import first, and then run `training calibrate`\n"
        )
        return FAILED
    try:
        folder, found = import_file(arguments)
    except REFUSALS as error:
        sys.stderr.write(f"priordial: {reason_of(error)}\n")
        return FAILED
    sys.stderr.write("".join(f"{note}\n" for note in found))
    sys.stderr.write(to_serve(folder))
    sys.stdout.write(f"{folder}\n")
    return DONE


def import_file(flags: argparse.Namespace) -> tuple[Path, list[str]]:
    """Publish a file as the next version. Returns (its folder, notes). Raises one of REFUSALS."""
    _check_flags(flags)
    found = _read(flags)
    names = _class_names(found)
    if found.output.kind != "scores":
        outputs.check_labels(found.output, found.trial.outputs, _labels_of(found, names))
    counts = None if flags.class_counts is None else read_counts(flags.class_counts, names)
    fields = found.fields
    fields.update(class_names=names, class_counts=counts)
    _set_output(found, names)
    if onnx_file.handles_missing(found.file.model):
        names_ = columns_taking_missing(found.run, found.trial, found.spec, found.output.name)
        for each in fields.get("inputs", [fields["input"]]):
            if each["name"] in names_:
                each["missing"] = True

    _measure(found, names)

    def write_files(staging: Path) -> None:
        _copy(found, staging)
        _check(found, staging)

    try:
        folder = publish(flags.models, flags.name, fields=fields, write_files=write_files)
    except BaseException:
        with contextlib.suppress(OSError):
            (flags.models / flags.name).rmdir()  # refused where it holds a version
        raise
    pixels = found.spec.may_be_pixels
    note_lines = notes(flags, found.file, fields, found.trial, found.output, may_be_pixels=pixels)
    return folder, list(note_lines)


def _check_flags(flags: argparse.Namespace) -> None:
    calibrate.check_flags(flags)
    if (flags.image_example is None) != (flags.expect is None):
        raise ImportRefused("--image-example FILE and --expect CLASS must be given together")
    if is_cut(flags.description):
        raise ImportRefused("--description is not UTF-8 text; expected UTF-8")
    try:
        check_model_name(flags.name)
    except ValueError as error:
        raise ImportRefused(f"--name: {error}") from None


def _read(flags: argparse.Namespace) -> Import:
    """Read the file or folder, run random rows and choose the output."""
    folder = huggingface.read(flags.file, flags) if flags.file.is_dir() else None
    file = onnx_file.read(flags.file if folder is None else folder.path)
    purpose.check_forest(file.model, kind=flags.output_kind)
    tokenizer = None if folder is None else folder.tokenizer(file.inputs)
    plain = onnx_file.in_column_order(
        open_plain(file.path, file.runnable(), intra_op_threads=available_threads()), file.model
    )
    if folder is None or tokenizer is None:
        columns = None if flags.column_names is None else len(column_names(flags.column_names))
        inputs = widths.settled(file.inputs, file.model.graph, columns)
        fields = input_fields(inputs, flags)
        run = feeder([each.name for each in file.inputs], plain)
    else:
        text = {"name": "text", "kind": "text", "shape": [None], "dtype": "string"}
        fields = {"input": {**text, "tokenizer": tokenizer.model_dump(exclude_none=True)}}
        tokens = Tokens(folder.home, tokenizer, {each.name: each.dtype for each in file.inputs})

        def run(rows: Array) -> dict[str, Any]:
            return plain(tokens(rows))

    spec, trial = _tried(fields, run)
    check_repeats(run, trial)
    purpose.check_one_answer(trial.outputs, rows=len(trial.rows), kind=flags.output_kind)
    given = _given_names(flags, folder)
    output = outputs.choose_output(
        trial.outputs,
        rows=len(trial.rows),
        wanted=flags.output,
        kind=flags.output_kind,
        classes=None if given is None else len(given),
    )
    purpose.check_columns(output, trial.outputs, kind=flags.output_kind)
    purpose.check_no_outliers(output, trial.outputs, kind=flags.output_kind)
    purpose.check_no_regression(output, file.model, kind=flags.output_kind)
    fields.update(
        description=flags.description,
        loss_tau=flags.loss_tau,
        temperature=flags.temperature,
        provenance=_provenance(file, flags, spec),
        **({"class_names": given} if given is not None else {}),
        **({"max_batch_rows": 1} if trial.one_at_a_time else {}),
    )
    return Import(flags, file, folder, fields, spec, run, trial, output)


def _tried(fields: dict[str, Any], run: Run) -> tuple[InputSpec, Trial]:
    """The input, and random rows that the model accepts.

    If the width of a row is free, several are tried; the only one that runs is used.
    """
    spec = _spec_of(fields)
    try:
        return spec, try_rows(run, spec)
    except ImportRefused as error:
        if len(spec.shape) != 2 or spec.shape[1] is not None:
            raise
        width = widths.only_width(run, spec)
        if width is None:
            raise ImportRefused(f"{error}; its rows may have any width: {widths.REMEDY}") from None
    fields["input"]["shape"] = [spec.shape[0], width]
    spec = _spec_of(fields)
    return spec, try_rows(run, spec)


def _given_names(flags: argparse.Namespace, folder: huggingface.Folder | None) -> list[str] | None:
    if flags.class_names is not None:
        return read_names(flags.class_names, deduplicate=flags.deduplicate)
    if folder is None or folder.names is None:
        return None
    where = f"{folder.home / 'config.json'}: id2label"
    return unique_names(folder.names, where=where, unit="entry", deduplicate=flags.deduplicate)


def _class_names(found: Import) -> list[str]:
    """The class names: the given ones, else those in the file. Raises ImportRefused."""
    output, file = found.output, found.file
    names = onnx_file.class_names(file.model, output.name)
    if "class_names" in found.fields:
        given: list[str] = found.fields["class_names"]
        check_order(given, names or [])
        return given
    if names is None or len(names) != output.columns:
        raise ImportRefused(purpose.why_no_names(output, None if names is None else len(names)))
    where = f"{file.path}: the names in it"
    return unique_names(names, where=where, unit="entry", deduplicate=found.flags.deduplicate)


def _labels_of(found: Import, names: list[str]) -> list[str]:
    """The value of the file's own label output for each class."""
    held = onnx_file.class_names(found.file.model, found.output.name)
    return held if held is not None and len(held) == len(names) else names


def _set_output(found: Import, names: list[str]) -> None:
    """Write the field `output`, and add nodes that bring the output into the form [batch, C]."""
    output, file = found.output, found.file
    name, kind = output.name, output.kind
    if output.form == "flatten":
        name = rewrite.flatten(file.model, name)
    elif output.form == "columns":
        name = rewrite.join_columns(file.model, output.members)
    elif output.form == "column":
        form = "probabilities" if kind == "probabilities" else "logits"
        name, changed = rewrite.two_classes(file.model, name, form)
        kind = kind if kind == "scores" else changed
    if kind == "percent":
        name, kind = rewrite.scale(file.model, name, 0.01), "probabilities"
    file.changed = file.changed or name != output.name
    found.fields["output"] = {"name": name, "kind": kind}
    if kind == "scores":
        _calibrate(found, names)


def _calibrate(found: Import, names: list[str]) -> None:
    """Fit the scores to the labelled rows, whose class counts become those of the model."""
    rows, labels = calibrate.labelled_rows(found.flags.calibrate, found.spec, names)
    step = len(found.trial.rows) if found.trial.one_at_a_time or found.spec.shape[0] else len(rows)
    if len(rows) % step:
        raise ImportRefused(
            f"--calibrate has {len(rows)} rows, but the graph takes {step} at a time: "
            f"give a multiple of {step}"
        )
    scores = np.concatenate(
        [
            outputs.scores_of(found.output, found.run(rows[i : i + step]))
            for i in range(0, len(rows), step)
        ]
    )
    fitted = calibrate.fit(scores, labels)
    found.fields["output"]["calibration"] = fitted.calibration()
    found.fields["class_counts"] = fitted.class_counts
    found.fields["provenance"]["calibration"] = {
        "rows": len(labels), "nll": fitted.nll, "error": fitted.error,
    }  # fmt: skip


def _measure(found: Import, names: list[str]) -> None:
    """Record the mean and spread of the example rows, if any are given."""
    flags, spec = found.flags, found.spec
    if spec.kind == "text":
        return
    if flags.example_rows is not None or flags.calibrate is not None:
        name = "--example-rows" if flags.example_rows is not None else "--calibrate"
        path = flags.example_rows or flags.calibrate
        rows, _ = calibrate.rows_of_file(path, spec, names, where=f"{name} {path}", labelled=False)
    elif flags.image_example is not None and spec.kind == "image":
        rows = _example(flags, spec)
    else:
        return
    if not float_names(spec):
        return
    statistics = measure(float_rows(rows, float_names(spec)), layout=spec.layout)
    if statistics is not None:
        found.fields["input"]["statistics"] = statistics.model_dump(exclude_none=True)


def _copy(found: Import, staging: Path) -> None:
    file = found.file
    if file.changed:
        (staging / MODEL_FILE).write_bytes(file.model.SerializeToString())
    else:
        shutil.copyfile(file.path, staging / MODEL_FILE)
    for name in file.external_files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path.parent / name, staging / name)
    if found.fields["input"].get("tokenizer") is not None:
        assert found.folder is not None
        name = huggingface.TOKENIZER_FILE
        shutil.copyfile(found.folder.home / name, staging / name)


def _check(found: Import, staging: Path) -> None:
    """Run the copy as the service would. Raises ImportRefused if its answers are not the file's.

    Where rows of a batch influence each other, `max_batch_rows` becomes 1.
    """
    document = {"format_version": 1, "name": "checked", "version": 1, "files": {MODEL_FILE: ""}}
    bundle = parse_bundle(json.dumps({**document, **found.fields}))
    graph = open_graph(staging, bundle, provider="cpu", intra_op_threads=available_threads())
    served = _served(graph, found.trial.rows, bundle)
    expected = _expected(found, bundle)
    difference = float(np.abs(served - expected).max())
    half = any(each.dtype == "float16" for each in bundle.input.columns or [bundle.input])
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    if not difference <= tolerance:
        raise ImportRefused(
            f"with the adjustment head, a probability differs by {difference:.2g} from the "
            f"file's own; at most {tolerance:g} is allowed: check --output-kind"
        )
    if bundle.max_batch_rows != 1 and graph.fixed_rows != 1:
        _check_neighbours(found, graph, bundle)
    if found.flags.image_example is not None:
        _check_example(found, graph, bundle)
    if found.flags.example_rows is not None:
        _check_probabilities(found, graph, bundle)


def _served(graph: Graph, rows: Array, bundle: Bundle, *, temperature: float = 1.0) -> Array:
    """[n, C] probabilities at tau = 0. Raises ImportRefused where the graph does not run."""
    try:
        outputs_ = graph.run(
            rows,
            tau=np.zeros(len(rows), np.float32),
            prior_index=np.zeros(len(rows), np.int64),
            prior_table=np.zeros((1, len(bundle.class_names)), np.float32),
            top_k=1,
            full=True,
        )
    except Exception as error:
        raise ImportRefused(
            f"with the adjustment head the graph does not run: {first_line(error)}; export the "
            "model again with a newer opset, or report this"
        ) from error
    assert outputs_.logits is not None
    return softmax(outputs_.logits.astype(np.float64) / temperature)


def _expected(found: Import, bundle: Bundle) -> Array:
    """[n, C] probabilities of the original file for the random rows."""
    calibration = bundle.output.calibration
    if calibration is None:
        return found.output.probabilities()
    return softmax(found.output.values * calibration.scale + calibration.bias)


def _check_neighbours(found: Import, graph: Graph, bundle: Bundle) -> None:
    share = influence(graph, bundle.input, len(bundle.class_names), free=found.trial.free)
    if not share:
        return
    if found.flags.refuse_dependent_rows:
        raise ImportRefused(
            f"a row's answer depends on the other rows of its batch (a logit moves by {share:.2g} "
            "of the largest): export the model in evaluation mode or quantise it statically, or "
            "leave out --refuse-dependent-rows to run its rows one at a time"
        )
    found.fields["max_batch_rows"] = 1


def _check_probabilities(found: Import, graph: Graph, bundle: Bundle) -> None:
    """Compare the answers with those of the library that trained the model, if they are given.

    A few rows may differ: a tree sends a float64 number on one side of its threshold and the same
    number as float32 on the other. Raises ImportRefused where more than `_STRAY_ROWS` differ.
    """
    path, names = found.flags.example_rows, bundle.class_names
    where = f"--example-rows {path}"
    expected = calibrate.probabilities_of_file(path, bundle.input, len(names), where=where)
    if expected is None:
        return
    rows, _ = calibrate.rows_of_file(path, bundle.input, names, where=where, labelled=False)
    if len(rows) != len(expected):
        raise ImportRefused(
            f"{where}: has {len(rows)} rows but {len(expected)} of probabilities; expected one for "
            "each row"
        )
    step = 1 if bundle.max_batch_rows == 1 else _ROWS_AT_ONCE
    served = np.concatenate(
        [
            _served(graph, rows[i : i + step], bundle, temperature=bundle.temperature)
            for i in range(0, len(rows), step)
        ]
    )
    apart = np.abs(served - expected)
    differing = int((apart.max(axis=1) > _LIBRARY_TOLERANCE).sum())
    if differing > _STRAY_ROWS * len(rows):
        row, column = np.unravel_index(int(apart.argmax()), apart.shape)
        raise ImportRefused(
            f"{where}: {differing} of {len(rows)} rows have other probabilities than the array "
            f"'probabilities': row {row}, class '{names[column]}' has {served[row, column]:.4f} "
            f"instead of {expected[row, column]:.4f}; check --output, --temperature and the order "
            "of the classes, or convert the model in another way"
        )


def _check_example(found: Import, graph: Graph, bundle: Bundle) -> None:
    """Score an image whose class is known. Raises ImportRefused when another class is more
    likely.
    """
    if bundle.input.kind != "image":
        raise ImportRefused("--image-example needs a model of images: add --image")
    flags, names = found.flags, bundle.class_names
    if flags.expect not in names:
        near = did_you_mean(flags.expect, names, most=100_000)
        raise ImportRefused(
            f"--expect '{flags.expect}' is not a class of the model"
            f"{near or '; expected one of its class names'}"
        )
    rows = _example(flags, bundle.input)
    (probabilities,) = _served(graph, rows, bundle)
    best = names[int(probabilities.argmax())]
    if best != flags.expect:
        wanted = float(probabilities[names.index(flags.expect)])
        raise ImportRefused(
            f"--image-example {flags.image_example} is '{best}' with probability "
            f"{float(probabilities.max()):.3f}, but '{flags.expect}' with {wanted:.3f}: check "
            "--preprocessing, --color, --scale, --mean, --std, --resize and the class names"
        )


def _example(flags: argparse.Namespace, spec: InputSpec) -> Array:
    """The tensor of --image-example. Raises ImportRefused."""
    from service.wire.faults import InvalidImage
    from service.wire.images import image_array

    try:
        return image_array([flags.image_example.read_bytes()], spec)
    except InvalidImage as error:
        raise ImportRefused(f"--image-example {flags.image_example}: {error}") from None


def _provenance(
    file: onnx_file.OnnxFile, flags: argparse.Namespace, spec: InputSpec
) -> dict[str, Any]:
    model = file.model
    names = None if flags.column_names is None else read_columns(flags.column_names, spec)
    return {
        **({} if names is None else {"data": {"columns": names}}),
        "imported_from": file.path.name,
        "sha256": sha256_of(file.path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": file.opset,
    }


def _spec_of(fields: dict[str, Any]) -> InputSpec:
    """The input as the bundle will hold it, its columns included. Raises InvalidBundle."""
    document = {
        "format_version": 1, "name": "checked", "version": 1, "class_names": ["a", "b"],
        "class_counts": None, "loss_tau": 0.0, "output": {"name": "o", "kind": "logits"},
        "files": {MODEL_FILE: ""},
    }  # fmt: skip
    return parse_bundle(json.dumps({**document, **fields})).input
