"""Exports networks to plain ONNX files, and compares both on real rows."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from service.contract.inputs.columns import fields
from service.contract.resources import processors
from training.data.columns import Columns
from training.data.text import PART, RUNS, TOKENIZER_INPUTS, Vocabulary
from training.faults import RunFailed, instead, readable

OPSET = 20
IR_VERSION = 10  # the version that onnxruntime-gpu supports too
INPUT = "input"
OUTPUT = "logits"
MAX_PROTOBUF_BYTES = 2**31 - 2**20
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 4
ORT_DOMAIN = "com.microsoft"
APART = "graph/"  # prefix of the graph's own values, which keeps them apart from column names
LOCALE = "C"  # the default, en_US, is missing in most containers: the graph would not load
TOLERANCE = 1e-4  # relative to the largest logit, or to 1: the order of float32 sums differs


def export(
    network: nn.Module,
    example: Tensor,
    path: Path,
    *,
    vocabulary: Vocabulary | None = None,
    columns: Columns | None = None,
) -> None:
    """Write the network, in evaluation mode on the CPU, as an ONNX file with a free batch axis.

    example: a few real inputs, as the network takes them. vocabulary: for a network that takes
    token numbers [B, tokens]; the written graph takes the texts themselves, or what the
    vocabulary's tokenizer makes of them. columns: for one that takes encoded rows of a table; the
    written graph has an input for each column. Raises RunFailed when torch cannot export the
    network.
    """
    network = network.eval()
    rows = (
        example[:2] if len(example) > 1 else torch.cat([example, example])
    )  # the exporter would fix a batch axis of 1 at 1
    free = {0: torch.export.Dim("batch")}
    if vocabulary is not None:
        free[1] = torch.export.Dim("words")
    with _quiet():
        program = torch.onnx.export(
            network,
            (rows,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,),
            verbose=False,
        )
    if program is None:
        raise RunFailed(
            f"torch {torch.__version__} made no ONNX graph from the network, and does not say why; "
            "try torch.onnx.export(network, (rows,), dynamo=True) on it in Python"
        )
    model = program.model_proto
    if vocabulary is not None and vocabulary.tokenizer is not None:
        take_tokens(model, vocabulary)
    elif vocabulary is not None:
        take_strings(model, vocabulary, name=INPUT)
    if columns is not None:
        take_columns(model, columns)
    plain(model)
    save(model, path)


def take_strings(model: onnx.ModelProto, vocabulary: Vocabulary, *, name: str) -> None:
    """Replace the graph's only input, token numbers [B, tokens], by texts, strings [B].

    The new nodes convert A … Z to lower case, split each text into tokens, pad with empty strings,
    and map each token to its number; an unknown token becomes 0, which the network ignores.
    """
    graph = model.graph
    old = graph.input[0].name
    numbers = f"{name}/numbers"
    for node in graph.node:
        for position, given in enumerate(node.input):
            if given == old:
                node.input[position] = numbers
    front = [
        helper.make_node(
            "StringNormalizer", [name], [f"{name}/lower"], case_change_action="LOWER", locale=LOCALE
        )
    ]
    if vocabulary.tokens == "words":
        split = [f"{name}/words", f"{name}/lengths"]
        front += [
            helper.make_node("StringSplit", [f"{name}/lower"], split),
            _numbering(vocabulary.keys, f"{name}/words", numbers),
        ]
    else:
        if vocabulary.tokens == "split-words":
            front += [
                _tokenizer(f"{name}/lower", f"{name}/parts", tokenexp=PART),
                _numbering(vocabulary.keys, f"{name}/parts", numbers),
            ]
        else:
            front += _character_runs(graph, vocabulary, name=name, numbers=numbers)
        model.opset_import.append(helper.make_opsetid(ORT_DOMAIN, 1))
    for position, node in enumerate(front):
        graph.node.insert(position, node)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]))
    model.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))


def take_tokens(model: onnx.ModelProto, vocabulary: Vocabulary) -> None:
    """Replace the graph's only input, token numbers [B, tokens], by a tokenizer's ids and mask.

    A table maps each id to its number; ids that were not learnt, and padding, become 0.
    """
    graph = model.graph
    old = graph.input[0].name
    largest = max((int(key) for key in vocabulary.keys), default=0)
    numbers = np.zeros(largest + 2, np.int64)  # the last place is for ids beyond the learnt ones
    for key, number in vocabulary.keys.items():
        numbers[int(key)] = number
    ids, mask = TOKENIZER_INPUTS
    table, last, kept, found = (f"{old}/{name}" for name in ("table", "last", "kept", "found"))
    graph.initializer.append(numpy_helper.from_array(numbers, table))
    graph.initializer.append(numpy_helper.from_array(np.array(largest + 1, np.int64), last))
    front = [
        helper.make_node("Min", [ids, last], [kept]),
        helper.make_node("Gather", [table, kept], [found]),
        helper.make_node("Mul", [found, mask], [old]),
    ]
    for position, node in enumerate(front):
        graph.node.insert(position, node)
    del graph.input[:]
    for name in (ids, mask):
        graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        )


def _apart(graph: onnx.GraphProto) -> None:
    """Prefix every value's name but the output's with APART: a column may have the same name."""
    outputs = {value.name for value in graph.output}

    def named(name: str) -> str:
        return name if not name or name in outputs else f"{APART}{name}"

    for node in graph.node:
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
    for constant in graph.initializer:
        constant.name = named(constant.name)


def take_columns(model: onnx.ModelProto, columns: Columns) -> None:
    """Replace the graph's only input, numbers [B, columns], by an input [B, 1] for each column.

    LabelEncoder maps each category to its number, or to 0 if unseen in training; Concat joins the
    columns to rows.
    """
    graph = model.graph
    rows = graph.input[0].name
    _apart(graph)
    front, parts = [], []
    inputs = []
    for place, column in enumerate(columns.columns):
        kind = TensorProto.STRING
        part = f"{APART}column{place}"
        if column.values is None:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(column.dtype))
            front.append(helper.make_node("Cast", [column.name], [part], to=TensorProto.DOUBLE))
        else:
            keys = {value: number for number, value in enumerate(column.values, 1)}
            numbered = f"{part}/number"
            front += [
                _numbering(
                    keys or {"": 0}, column.name, numbered
                ),  # a column may have no known value
                helper.make_node("Cast", [numbered], [part], to=TensorProto.DOUBLE),
            ]
        parts.append(part)
        inputs.append(helper.make_tensor_value_info(column.name, kind, ["batch", 1]))
    front.append(helper.make_node("Concat", parts, [f"{APART}{rows}"], axis=1))
    for position, node in enumerate(front):
        graph.node.insert(position, node)
    del graph.input[:]
    graph.input.extend(inputs)
    model.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))


def _character_runs(
    graph: onnx.GraphProto, vocabulary: Vocabulary, *, name: str, numbers: str
) -> list[onnx.NodeProto]:
    """Return nodes that turn lower-case texts into the numbers of their runs of characters.

    Runs of two come from joining all characters but the last with all but the first. Each length
    has its own encoder, so that a run shortened by padding is not mistaken for another.
    """
    # nothing separates the characters
    nodes = [_tokenizer(f"{name}/lower", f"{name}/run1", separators=[""])]
    far = np.iinfo(np.int64).max
    for label, value in (("one", 1), ("zero", 0), ("minus", -1), ("far", far)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), f"{name}/{label}"))
    one, zero, minus, end = (f"{name}/{label}" for label in ("one", "zero", "minus", "far"))
    later = f"{name}/run1"
    shortest, longest = RUNS[vocabulary.tokens]
    for length in range(2, longest + 1):
        before, now = f"{name}/run{length - 1}", f"{name}/run{length}"
        shifted, cut = f"{name}/shifted{length}", f"{name}/cut{length}"
        nodes += [
            helper.make_node("Slice", [later, one, end, one], [shifted]),
            helper.make_node("Slice", [before, zero, minus, one], [cut]),
            helper.make_node("StringConcat", [cut, shifted], [now]),
        ]
        later = shifted
    encoded = []
    for length in range(shortest, longest + 1):
        keys = {key: number for key, number in vocabulary.keys.items() if len(key) == length}
        encoded.append(f"{numbers}{length}")
        nodes.append(_numbering(keys or {"": 0}, f"{name}/run{length}", encoded[-1]))
    return [*nodes, helper.make_node("Concat", encoded, [numbers], axis=1)]


def _tokenizer(texts: str, tokens: str, **how: Any) -> onnx.NodeProto:
    """Return a node that splits texts [B] into tokens [B, most], padded with empty strings."""
    return helper.make_node(
        "Tokenizer", [texts], [tokens], domain=ORT_DOMAIN, mark=0, mincharnum=1, pad_value="", **how
    )


def _numbering(keys: Mapping[str, int], tokens: str, numbers: str) -> onnx.NodeProto:
    return helper.make_node(
        "LabelEncoder",
        [tokens],
        [numbers],
        domain=ML_DOMAIN,
        keys_strings=list(keys),
        values_int64s=list(keys.values()),
        default_int64=0,
    )


def plain(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata, such as stack traces with local paths, from the model."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "priordial", "", ""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.value_info[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model file; if it exceeds protobuf's 2 GB, its weights go into model.onnx.data."""
    large = model.ByteSize() > MAX_PROTOBUF_BYTES
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=large,
        location=f"{path.name}.data" if large else None,
    )
    onnx.checker.check_model(str(path))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of a session that logs errors only.

    threads: of a graph call; 0 lets onnxruntime decide, but within the limit of a control group,
    of which it knows nothing.
    """
    if not threads and (found := processors()).quota is not None:
        threads = found.usable
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return options


def open_session(path: Path, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open the model in onnxruntime on the CPU. threads: as in `session_options`."""
    options = session_options(threads)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        raise RunFailed(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot open it: "
            f"{readable(error)}{instead(path)}; publish the model again, or install the release of "
            "onnxruntime that made it"
        ) from error


def open_output(
    path: Path, output: str, *, threads: int = 0
) -> tuple[onnxruntime.InferenceSession, str]:
    """Return a session, and the name of the [batch, C] tensor that corresponds to `output`.

    A ZipMap node makes a list of objects by class name from a tensor; the tensor is used instead.
    """
    session = open_session(path, threads=threads)
    kinds = {item.name: item.type for item in session.get_outputs()}
    if not kinds.get(output, "").startswith("seq("):
        return session, output
    model = onnx.load(str(path))
    (inner,) = [
        node.input[0]
        for node in model.graph.node
        if output in node.output and node.op_type == "ZipMap"
    ]
    if inner not in kinds:
        model.graph.output.append(onnx.ValueInfoProto(name=inner))
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    return opened, inner


def run_session(
    session: onnxruntime.InferenceSession, batches: Iterator[Any], *, output: str = OUTPUT
) -> NDArray[np.float32]:
    """Return the named output [N, C] for all batches together.

    batches: arrays for a graph with one input, or records for one with several.
    """
    name = session.get_inputs()[0].name
    parts = [session.run([output], fed(name, batch))[0] for batch in batches]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def fed(name: str, batch: Any) -> dict[str, Any]:
    """Return a session's inputs by name: an array under `name`, or a record's fields."""
    if isinstance(batch, dict):
        return batch
    rows = np.asarray(batch)
    return {name: rows} if rows.dtype.names is None else fields(rows)


def check_agreement(path: Path, batches: Iterator[Any], expected: NDArray[np.float32]) -> float:
    """Return the largest difference between the file's logits and the network's, `expected` [N, C].

    Raises RunFailed when the file cannot be run, the shapes differ, or the difference exceeds
    TOLERANCE.
    """
    try:
        found = run_session(open_session(path), batches)
    except Exception as error:  # onnxruntime has a class for each status
        raise RunFailed(f"the ONNX file cannot be run: {readable(error)}; {_REMEDY}") from error
    if found.shape != expected.shape:
        raise RunFailed(
            f"the ONNX file answers logits of shape {list(found.shape)}, and the network "
            f"{list(expected.shape)}; {_REMEDY}"
        )
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= limit:  # NaN compares false
        raise RunFailed(
            f"a logit of the ONNX file differs from the network's by {difference:.3g}, and at most "
            f"{limit:.3g} is allowed; {_REMEDY}"
        )
    return difference


_REMEDY = (
    "keep branches that depend on the data, random numbers and in-place changes out of the "
    "network's forward, and check that it is in evaluation mode there"
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports its passes on stdout and warns about its deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
