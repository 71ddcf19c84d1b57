"""Composes the adjustment head onto any classifier's graph.

After the head, the graph itself computes z = f/T − tau·(log σ − log ρ) for every row with the row's own tau and
prior, ranks the classes and normalises. `python -m service.head` does it in a process of its own, so
that the serving process never imports onnx (30 MiB, a third of a second) and never parses a foreign file.
"""

import argparse
import locale
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

PREFIX = "adjustment."
TAU, PRIOR_INDEX, PRIOR_TABLE, TOP_K = (
    PREFIX + name for name in ("tau", "prior_index", "prior_table", "top_k")
)
FULL_ROWS = PREFIX + "full_rows"
TOP_INDEX, TOP_PROBABILITY, UNADJUSTED_INDEX, UNADJUSTED_PROBABILITY = RANKED = tuple(
    PREFIX + name
    for name in ("top_index", "top_probability", "unadjusted_index", "unadjusted_probability")
)
LOGITS, ADJUSTED_LOGITS, PROBABILITIES = FULL = tuple(
    PREFIX + name for name in ("logits", "adjusted_logits", "probabilities")
)

MIN_OPSET = 13
_COMPOSE_SECONDS = 120
_TINY = np.float32(np.finfo(np.float32).tiny)  # 1.1754944e-38: the floor of a probability's log


class UnsupportedGraph(ValueError):
    """A graph that the head cannot be composed onto; the message says why."""


def compose_file(path: Path, *, output: str, kind: str, temperature: float) -> bytes:
    """The composed graph of a model.onnx, serialised; external weights stay in their files.

    Runs in a process of its own. Raises UnsupportedGraph.
    """
    command = [sys.executable, "-m", "service.head", str(path), output, kind, repr(temperature)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
            command, capture_output=True, timeout=_COMPOSE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedGraph(f"{path}: took over {_COMPOSE_SECONDS} s to read") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnsupportedGraph(f"{path}: {lines[-1] if lines else 'cannot be read'}")
    return done.stdout


def compose(
    model: "onnx.ModelProto", *, output: str, kind: str, temperature: float = 1.0
) -> "onnx.ModelProto":
    """Add the head to a model in place and return it; weights are not touched.

    output: the graph's output with [batch, C] logits or probabilities (kind), or a ZipMap over them. A softmax at the
    end is cut off, so that its input are the logits. Added inputs: tau float32 [B], prior_index int64 [B], prior_table
    float32 [P, C] with rows log σ − log ρ, top_k int64 [1], full_rows int64 [1] (how many
    rows of PROBABILITIES are worked out). The outputs RANKED and FULL replace the graph's own.
    """
    _check_names(model)
    model = _with_opset(model)
    mend_locales(model)
    graph = model.graph
    value, kind = _cut(graph, _find_output(graph, output), kind)
    head = _Head(graph)
    head.scaled_logits(value, kind, temperature)
    head.adjusted_logits()
    head.outputs()
    return model


class _Head:
    """Appends nodes to a graph under PREFIX."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.graph = graph

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.graph.node.append(
            helper.make_node(
                op, inputs, output.split(), name=PREFIX + "node." + output, **attributes
            )
        )
        return output.rsplit(maxsplit=1)[-1]

    def constant(self, name: str, value: "np.ndarray[Any, Any]") -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(value, PREFIX + name))
        return PREFIX + name

    def scaled_logits(self, value: str, kind: str, temperature: float) -> None:
        """LOGITS = f in float32, and f / T. Half-precision logits are widened; ORT drops casts that do nothing."""
        from onnx import TensorProto

        if kind == "probabilities":
            wide = self.node("Cast", [value], PREFIX + "wide", to=TensorProto.FLOAT)
            floor = self.constant("tiny", np.array(_TINY))
            floored = self.node("Max", [wide, floor], PREFIX + "floored")
            self.node("Log", [floored], LOGITS)
        else:
            self.node("Cast", [value], LOGITS, to=TensorProto.FLOAT)
        self.scaled = LOGITS
        if temperature != 1.0:
            divisor = self.constant("temperature", np.array(temperature, np.float32))
            self.scaled = self.node("Div", [LOGITS, divisor], PREFIX + "scaled_logits")

    def adjusted_logits(self) -> None:
        rows = self.node("Gather", [PRIOR_TABLE, PRIOR_INDEX], PREFIX + "rows", axis=0)
        column = self.constant("column", np.array([-1, 1], np.int64))
        tau = self.node("Reshape", [TAU, column], PREFIX + "tau_column")
        offset = self.node("Mul", [rows, tau], PREFIX + "offset")
        self.node("Sub", [self.scaled, offset], ADJUSTED_LOGITS)

    def outputs(self) -> None:
        """Rank by logits, not by probabilities (those underflow to ties); normalise in the log domain."""
        from onnx import TensorProto, helper

        self.ranked(ADJUSTED_LOGITS, TOP_K, TOP_INDEX, TOP_PROBABILITY)
        one = self.constant("one", np.array([1], np.int64))
        self.ranked(self.scaled, one, UNADJUSTED_INDEX, UNADJUSTED_PROBABILITY)
        # onnxruntime runs every node, whatever is fetched: a softmax of no rows is one that costs nothing.
        first = self.constant("first", np.array([0], np.int64))
        rows = self.node("Slice", [ADJUSTED_LOGITS, first, FULL_ROWS, first], PREFIX + "full")
        self.node("Softmax", [rows], PROBABILITIES, axis=1)
        value = helper.make_tensor_value_info
        self.graph.input.extend(
            [
                value(TAU, TensorProto.FLOAT, [PREFIX + "B"]),
                value(PRIOR_INDEX, TensorProto.INT64, [PREFIX + "B"]),
                value(PRIOR_TABLE, TensorProto.FLOAT, [PREFIX + "P", PREFIX + "C"]),
                value(TOP_K, TensorProto.INT64, [1]),
                value(FULL_ROWS, TensorProto.INT64, [1]),
            ]
        )
        del self.graph.output[:]
        for name in (*RANKED, *FULL):
            rows = PREFIX + ("full" if name == PROBABILITIES else "B")
            width = PREFIX + "C" if name in FULL else (1 if "unadjusted" in name else PREFIX + "K")
            type_ = TensorProto.INT64 if name.endswith("index") else TensorProto.FLOAT
            self.graph.output.append(value(name, type_, [rows, width]))

    def ranked(self, logits: str, k: str, index: str, probability: str) -> None:
        self.node("TopK", [logits, k], f"{probability}.logit {index}", axis=1)
        log = self.node("LogSoftmax", [logits], probability + ".log_softmax", axis=1)
        chosen = self.node("GatherElements", [log, index], probability + ".log", axis=1)
        self.node("Exp", [chosen], probability)


def _check_names(model: "onnx.ModelProto") -> None:
    for name in _names(model.graph):
        if name.startswith(PREFIX):
            raise UnsupportedGraph(
                f"the graph already has a '{name}'; names with '{PREFIX}' are the service's"
            )


def _names(graph: "onnx.GraphProto") -> Iterator[str]:
    for group in (graph.input, graph.output, graph.initializer):
        yield from (item.name for item in group)
    for node in graph.node:
        yield from node.output


def _with_opset(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None:
        model.opset_import.append(onnx.helper.make_opsetid("", MIN_OPSET))  # only ai.onnx.ml so far
    elif opset < MIN_OPSET:
        raise UnsupportedGraph(f"opset {opset}; expected {MIN_OPSET} or newer")
    return model


def mend_locales(model: "onnx.ModelProto") -> bool:
    """Let text nodes use C.UTF-8 where their locale is not installed; whether any did.

    StringNormalizer wants en_US.UTF-8 unless told otherwise, small systems lack it, and onnxruntime then refuses the
    graph. C.UTF-8 is part of glibc and changes the case of the same letters.
    """
    from onnx import helper

    mended = False
    for node in model.graph.node:
        if node.op_type != "StringNormalizer":
            continue
        named = [a for a in node.attribute if a.name == "locale"]
        if _is_installed(named[0].s.decode() if named else "en_US.UTF-8"):
            continue
        for attribute in named:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("locale", "C.UTF-8"))
        mended = True
    return mended


def _is_installed(name: str) -> bool:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True


def _find_output(graph: "onnx.GraphProto", output: str) -> str:
    names = [item.name for item in graph.output]
    if output not in names:
        raise UnsupportedGraph(f"no output '{output}'; the graph has {', '.join(names)}")
    return output


def _cut(graph: "onnx.GraphProto", value: str, kind: str) -> tuple[str, str]:
    """Step back over a ZipMap and over a final softmax of the class axis, to (tensor, kind).

    Between them and the output may stand what changes no more than the type: Identity, and Cast among floats. An Exp that
    makes probabilities is undone too: its input are their logarithms, without what underflows.
    """
    producers = {name: node for node in graph.node for name in node.output}
    tensor = seen = value
    while (node := producers.get(seen)) is not None and _only_shows(node):
        seen = node.input[0]
        if node.op_type == "ZipMap":
            tensor = seen
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if axis in (-1, 1):
            return node.input[0], "logits"
    if node is not None and node.op_type == "Exp" and kind == "probabilities":
        return node.input[0], "logits"
    return tensor, kind


def _only_shows(node: "onnx.NodeProto") -> bool:
    if node.op_type == "Cast":
        return next((a.i for a in node.attribute if a.name == "to"), 0) in _FLOATS
    return node.op_type in ("ZipMap", "Identity")


_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE and BFLOAT16


def external_files(model: "onnx.ModelProto", folder: Path) -> list[str]:
    """The files beside a model that hold its external data, relative to its folder, sorted.

    Raises UnsupportedGraph when one is missing or leaves the folder, by its path or through a link.
    """
    found = set()
    for tensor in _all_tensors(model):
        location = next((e.value for e in tensor.external_data if e.key == "location"), None)
        if location is None or location in found:
            continue
        path = (folder / location).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise UnsupportedGraph(
                f"external data '{location}' of '{tensor.name}' leaves the folder"
            )
        if not path.is_file():
            raise UnsupportedGraph(f"external data '{location}' of '{tensor.name}' is missing")
        found.add(location)
    return sorted(found)


def _all_tensors(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    yield from _tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[onnx.NodeProto]") -> "Iterator[onnx.TensorProto]":
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def main(arguments: list[str]) -> int:
    """Compose a file and write the composed graph to stdout. Exit 1 with one line on stderr when it can't be."""
    parser = argparse.ArgumentParser(prog="service.head")
    parser.add_argument("path", type=Path)
    parser.add_argument("output")
    parser.add_argument("kind", choices=("logits", "probabilities"))
    parser.add_argument("temperature", type=float)
    given = parser.parse_args(arguments)
    import onnx

    try:
        model = onnx.load(given.path, load_external_data=False)
        external_files(model, given.path.parent)
        compose(model, output=given.output, kind=given.kind, temperature=given.temperature)
        sys.stdout.buffer.write(model.SerializeToString())
    except Exception as error:  # noqa: BLE001 - whatever a foreign file provokes is told in one line
        message = str(error).strip().splitlines() or [type(error).__name__]
        sys.stderr.write(f"{message[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
