"""Reads a foreign ONNX graph before the head is composed onto it.

It finds the logits, lists the external files, and refuses graphs that the head does not fit.
"""

import locale
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13


class UnsupportedGraph(ValueError):
    """A graph that the head cannot be composed onto; the message says why."""


def check_names(model: "onnx.ModelProto", prefix: str) -> None:
    """Raise UnsupportedGraph when a name of the graph begins with `prefix`, which is reserved."""
    for name in _names(model.graph):
        if name.startswith(prefix):
            raise UnsupportedGraph(
                f"the graph has a tensor '{name}'; names that begin with '{prefix}' are reserved "
                "for the service: rename it"
            )


def _names(graph: "onnx.GraphProto") -> Iterator[str]:
    for group in (graph.input, graph.output, graph.initializer):
        yield from (item.name for item in group)
    for node in graph.node:
        yield from node.output


def opset_of(model: "onnx.ModelProto") -> int:
    """Return the opset of a graph; a graph that names none gets MIN_OPSET. Raises
    UnsupportedGraph.
    """
    import onnx

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None:
        model.opset_import.append(
            onnx.helper.make_opsetid("", MIN_OPSET)
        )  # it uses ai.onnx.ml only
        return MIN_OPSET
    if opset < MIN_OPSET:
        raise UnsupportedGraph(
            f"opset {opset}; expected {MIN_OPSET} or newer: export the model again with a newer one"
        )
    return int(opset)


def mend_locales(model: "onnx.ModelProto") -> bool:
    """Give text nodes the locale C.UTF-8 where theirs is not installed; return whether any changed.

    StringNormalizer defaults to en_US.UTF-8, which small systems lack; onnxruntime then refuses the
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


def find_output(graph: "onnx.GraphProto", output: str) -> str:
    """Return `output`. Raises UnsupportedGraph, listing the outputs, when there is none of that
    name.
    """
    names = [item.name for item in graph.output]
    if output not in names:
        raise UnsupportedGraph(f"there is no output '{output}'; expected one of {', '.join(names)}")
    return output


def declared_columns(graph: "onnx.GraphProto", output: str) -> int | None:
    """The number of classes that the graph declares for an output; None where it declares none."""
    (shape,) = [item.type.tensor_type.shape.dim for item in graph.output if item.name == output]
    return int(shape[-1].dim_value) or None if shape else None


def cut(graph: "onnx.GraphProto", value: str, kind: str) -> tuple[str, str]:
    """Step back over a ZipMap and a final softmax of the class axis; return (tensor, kind).

    Identity nodes and casts between float types are also skipped. So is an Exp that makes
    probabilities: its input holds their logarithms, before any of them underflow. Scores stay as
    they are.
    """
    producers = {name: node for node in graph.node for name in node.output}
    tensor = seen = value
    while (node := producers.get(seen)) is not None and _keeps_values(node):
        seen = node.input[0]
        if node.op_type == "ZipMap":
            tensor = seen
    if kind == "scores":
        return tensor, kind
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if axis in (-1, 1):
            return node.input[0], "logits"
    if node is not None and node.op_type == "Exp" and kind == "probabilities":
        return node.input[0], "logits"
    return tensor, kind


def is_float32(graph: "onnx.GraphProto", value: str) -> bool:
    """Whether a tensor that a node of the graph makes is known to be float32."""
    if not any(value in node.output for node in graph.node):
        return False
    types = [i.type.tensor_type for i in (*graph.output, *graph.value_info) if i.name == value]
    return any(each.elem_type == _FLOATS[0] for each in types)


def rename(graph: "onnx.GraphProto", old: str, new: str) -> str:
    """Give a tensor another name in the nodes of a graph and in their branches; return it.

    The graph's own outputs keep their names, since the head replaces them.
    """
    for item in graph.value_info:
        if item.name == old:
            item.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    rename(inner, old, new)
    return new


def _keeps_values(node: "onnx.NodeProto") -> bool:
    if node.op_type == "Cast":
        return next((a.i for a in node.attribute if a.name == "to"), 0) in _FLOATS
    return node.op_type in ("ZipMap", "Identity")


_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE and BFLOAT16


def external_files(model: "onnx.ModelProto", folder: Path) -> list[str]:
    """Return the files that hold a model's external data, relative to its folder, sorted.

    Raises UnsupportedGraph when one is missing, or lies outside the folder by its path or a link.
    """
    found = set()
    for tensor in _all_tensors(model):
        location = next((e.value for e in tensor.external_data if e.key == "location"), None)
        if location is None or location in found:
            continue
        path = Path(os.path.realpath(folder / location))  # unlike resolve(), it takes a loop
        if not path.is_relative_to(os.path.realpath(folder)):
            raise UnsupportedGraph(
                f"external data '{location}' of '{tensor.name}' leaves the folder; expected a file "
                "within it: export the model again"
            )
        if not path.is_file():
            raise UnsupportedGraph(
                f"external data '{location}' of '{tensor.name}' is missing: expected the file at "
                f"{path}; copy it there, as it was exported beside the model"
            )
        if (other := what_instead(path)) is not None:
            raise UnsupportedGraph(f"external data '{location}' of '{tensor.name}' is {other}")
        found.add(location)
    _check_lengths(model, folder)
    return sorted(found)


def _check_lengths(model: "onnx.ModelProto", folder: Path) -> None:
    """Raise UnsupportedGraph for external data that end before a tensor does."""
    for tensor in _all_tensors(model):
        entries = {e.key: e.value for e in tensor.external_data}
        if "location" not in entries:
            continue
        needed = 0
        for key in ("offset", "length"):
            text = entries.get(key, "0")
            if not (text.isascii() and text.isdecimal() and len(text) < 20):
                raise UnsupportedGraph(
                    f"external data of '{tensor.name}': its {key} is '{text[:40]}'; expected a "
                    "whole number: export the model again"
                )
            needed += int(text)
        held = (folder / entries["location"]).stat().st_size
        if held < needed:
            raise UnsupportedGraph(
                f"external data '{entries['location']}' has {held:,} bytes, but '{tensor.name}' "
                f"ends at {needed:,}: the file is cut short; copy it again"
            )


_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull` there"),
    (b"\x1f\x8b", "compressed with gzip: unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive (PyTorch, Keras or packed files): unpack it, or export to ONNX"),
    (b"\x89HDF", "an HDF5 file (Keras?): convert it with tf2onnx"),
    (b"\x80\x04", "a Python pickle: export the model to ONNX (skl2onnx, torch.onnx)"),
    (b"\x80\x05", "a Python pickle: export the model to ONNX (skl2onnx, torch.onnx)"),
)
_AT_FOUR = {
    b"ORTM": "in ONNX Runtime's own format (.ort): give the .onnx file that it was made from",
    b"TFL3": "a TensorFlow Lite file: convert it with tf2onnx",
}


def what_instead(path: Path) -> str | None:
    """Say what a file really is that should be a model, and the remedy, as a phrase for a message.

    A download or a clone may have left another file there. None where the first bytes belong to no
    known kind of file. Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        return "empty: download or copy it again"
    for begin, words in _BEGINNINGS:
        if head.startswith(begin):
            return words
    if head[4:8] in _AT_FOUR:
        return _AT_FOUR[head[4:8]]
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the link needs a login or leads to a page; download the file itself"
    return None


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
