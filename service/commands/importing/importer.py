"""`python -m service import`: any ONNX classifier → a published model. It writes the model.json and copies the file in.

Nothing is believed that can be tried: the output and its kind are found by running random rows, and the model is published only
if the graph with the service's head gives the same probabilities as the file itself.
"""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.commands.importing import inputs as foreign_inputs
from service.commands.importing import onnx_file
from service.commands.importing import outputs as foreign_outputs
from service.contract.adjustment import softmax
from service.contract.bundle import (
    MODEL_FILE,
    InvalidBundle,
    check_model_name,
    parse_bundle,
    sha256_of,
)
from service.contract.next_steps import to_serve
from service.contract.publication import publish
from service.graph import session as graph
from service.graph.foreign import UnsupportedGraph

Array = NDArray[Any]
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 5e-3


class ImportRefused(ValueError):
    """A file or an argument that no model can be made of; the message says why and what to do."""


REFUSALS = (
    ImportRefused,
    InvalidBundle,
    UnsupportedGraph,
    onnx_file.UnreadableModel,
    foreign_outputs.NoSuchOutput,
    graph.UnusableModel,
    OSError,
)


def run(arguments: argparse.Namespace) -> int:
    """Import a file: the new folder on stdout, what was found on stderr. Exit 0 done, 1 refused."""
    try:
        folder, notes = import_file(arguments)
    except REFUSALS as error:
        sys.stderr.write(f"priordial: {error}\n")
        return 1
    sys.stderr.write("".join(f"{note}\n" for note in notes))
    sys.stderr.write(to_serve(folder))
    sys.stdout.write(f"{folder}\n")
    return 0


def import_file(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """Publish a file as the next version of a model: (its folder, what was found). Raises one of REFUSALS."""
    try:
        check_model_name(arguments.name)
    except ValueError as error:
        raise ImportRefused(f"--name: {error}") from None
    path: Path = arguments.file
    file = onnx_file.read(path)
    spec = foreign_inputs.input_spec(file.input, arguments)
    runnable = None if file.runnable is None else file.runnable.SerializeToString()
    rows, outputs = foreign_inputs.try_rows(graph.open_plain(path, runnable), spec)
    given = None if arguments.class_names is None else read_names(arguments.class_names)
    output = foreign_outputs.choose_output(
        outputs,
        wanted=arguments.output,
        kind=arguments.output_kind,
        classes=None if given is None else len(given),
    )
    names = _names_in(file, output) if given is None else given
    counts = None if arguments.class_counts is None else read_counts(arguments.class_counts, names)
    fields = {
        "description": arguments.description,
        "class_names": names,
        "class_counts": counts,
        "loss_tau": arguments.loss_tau,
        "temperature": arguments.temperature,
        "input": spec,
        "output": {"name": output.name, "kind": output.kind},
        "provenance": _provenance(file),
    }
    expected = foreign_outputs.probabilities(outputs[output.name], output.kind)

    def write_files(staging: Path) -> None:
        _copy(file, staging)
        _check(staging, fields, rows, expected)

    try:
        folder = publish(arguments.models, arguments.name, fields=fields, write_files=write_files)
    except BaseException:
        with contextlib.suppress(OSError):
            (arguments.models / arguments.name).rmdir()  # refused where it holds a version
        raise
    return folder, list(_notes(arguments, file, fields))


def read_names(path: Path) -> list[str]:
    """Class names of a file: JSON when it begins with a bracket, else one a line. Raises ImportRefused."""
    text = _text_of(path, "--class-names")
    if text.lstrip().startswith("["):
        found = _json_of(text, path, "--class-names")
        if not all(isinstance(name, str) for name in found):
            raise ImportRefused(f"--class-names {path}: expected a list of strings")
        return list(found)
    return text.rstrip().replace("\r\n", "\n").split("\n")


def read_counts(path: Path, class_names: list[str]) -> list[float]:
    """[C] counts of a JSON list or object. Raises ImportRefused naming the class that is wrong."""
    where = f"--class-counts {path}"
    found = _json_of(_text_of(path, "--class-counts"), path, "--class-counts")
    if isinstance(found, list) and len(found) != len(class_names):
        raise ImportRefused(f"{where}: {len(found)} counts for {len(class_names)} classes")
    if isinstance(found, list):
        found = dict(zip(class_names, found, strict=True))
    if not isinstance(found, dict):
        raise ImportRefused(f"{where}: expected a list or an object by class name")
    known = set(class_names)
    for name in found:
        if name not in known:
            raise ImportRefused(f"{where}: unknown class '{name}'")
    for name in class_names:
        count = found.get(name)
        if count is None:
            raise ImportRefused(f"{where}: class '{name}' has no count")
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 < count < 1e300:
            raise ImportRefused(f"{where}: '{name}' has count {count!r}; expected more than 0")
    return [float(found[name]) for name in class_names]


def _names_in(file: onnx_file.OnnxFile, output: foreign_outputs.Output) -> list[str]:
    names = onnx_file.class_names(file.model, output.name)
    if names is None or len(names) != output.columns:
        held = "holds no names of them" if names is None else f"names {len(names)}"
        raise ImportRefused(
            f"output '{output.name}' has {output.columns} classes and the file {held}: give --class-names"
        )
    return names


def _copy(file: onnx_file.OnnxFile, staging: Path) -> None:
    if file.publishable is None:
        shutil.copyfile(file.path, staging / MODEL_FILE)
    else:
        (staging / MODEL_FILE).write_bytes(file.publishable.SerializeToString())
    for name in file.external_files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path.parent / name, staging / name)


def _check(staging: Path, fields: dict[str, Any], rows: Array, expected: Array) -> None:
    """Serve the copy once: its answer at tau = 0, T = 1 must be what the file itself says. Raises ImportRefused."""
    document = {"format_version": 1, "name": "checked", "version": 1, "files": {MODEL_FILE: ""}}
    bundle = parse_bundle(json.dumps({**document, **fields}))
    outputs = graph.open_graph(staging, bundle, provider="cpu").run(
        rows,
        tau=np.zeros(len(rows), np.float32),
        prior_index=np.zeros(len(rows), np.int64),
        prior_table=np.zeros((1, len(bundle.class_names)), np.float32),
        top_k=1,
        full=True,
    )
    assert outputs.logits is not None
    difference = float(np.abs(softmax(outputs.logits) - expected).max())
    tolerance = _HALF_TOLERANCE if bundle.input.dtype == "float16" else _TOLERANCE
    if not difference <= tolerance:
        raise ImportRefused(
            f"with the adjustment head the graph differs from the file by {difference:.2g} in a probability (at most {tolerance:g} is "
            "taken): is it deterministic, and is --output-kind right?"
        )


def _provenance(file: onnx_file.OnnxFile) -> dict[str, Any]:
    model = file.model
    return {
        "imported_from": file.path.name,
        "sha256": sha256_of(file.path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": onnx_file.opset_of(model),
    }


def _notes(
    arguments: argparse.Namespace, file: onnx_file.OnnxFile, fields: dict[str, Any]
) -> Iterator[str]:
    spec, output, names = fields["input"], fields["output"], fields["class_names"]
    shape = ["batch" if n is None else n for n in spec["shape"][:1]] + spec["shape"][1:]
    words = ", ".join("any" if n is None else str(n) for n in shape)
    yield f"input    {spec['name']}: {spec['kind']}, {spec['dtype']} [{words}]"
    found = "" if arguments.output_kind else " (found by running random rows)"
    yield f"output   {output['name']}: {output['kind']}{found}"
    named = "" if arguments.class_names else ", named by the file"
    yield f"classes  {len(names)}{named}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    if file.publishable is not None:
        yield f"note     converted from opset {onnx_file.opset_of(file.model)}"
    if spec["shape"][0] is not None:
        yield f"note     the graph insists on batches of {spec['shape'][0]}: with a free batch axis it would be served faster"
    if fields["class_counts"] is None and fields["loss_tau"] != 1:
        yield (
            "note     class counts are unknown: only tau = 0 works until label_frequencies are PUT to "
            f"/models/{arguments.name}/priors/default or given with the request"
        )


def _text_of(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ImportRefused(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ImportRefused(f"{flag} {path}: not UTF-8 text") from None


def _json_of(text: str, path: Path, flag: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{flag} {path}: not JSON: {error}") from None
