"""What a foreign ONNX file says of itself: its input, its outputs, the names of its classes. Imports onnx; never used while serving."""

import ast
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from service.graph import foreign as foreign_graph

DTYPES = {
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
_NAME_KEYS = ("class_names", "classes", "labels", "names", "id2label")
_LABEL_ATTRIBUTES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


class UnreadableModel(ValueError):
    """A file that is no ONNX classifier with one input; the message says what it is instead."""


@dataclass(frozen=True)
class GraphInput:
    """The one input of a graph; shape includes the batch, None where a dimension is free."""

    name: str
    dtype: str
    shape: list[int | None]


@dataclass(frozen=True)
class OnnxFile:
    """A model read without its external weights, whose files lie beside it."""

    path: Path
    input: GraphInput
    external_files: list[str]
    runnable: onnx.ModelProto | None
    """What runs here where the file itself does not, since it names a locale that is not installed."""
    publishable: onnx.ModelProto | None
    """The model at an opset that the head takes, where the file has an older one."""
    model: onnx.ModelProto


def read(path: Path) -> OnnxFile:
    """Read and check a file. Raises UnreadableModel or foreign_graph.UnsupportedGraph."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnreadableModel(f"{path}: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - protobuf raises errors of several families
        raise UnreadableModel(f"{path} is not an ONNX file: {first_line(error)}") from None
    if not model.graph.output:
        raise UnreadableModel(f"{path} is not an ONNX file with a graph")
    mended = foreign_graph.mend_locales(model)
    opset = opset_of(model)
    return OnnxFile(
        path,
        _input(model.graph),
        foreign_graph.external_files(model, path.parent),
        model if mended else None,
        _converted(model, opset) if opset is not None and opset < foreign_graph.MIN_OPSET else None,
        model,
    )


def class_names(model: onnx.ModelProto, output: str) -> list[str] | None:
    """The names that the file gives to its classes, in output order; None when it gives none.

    They stand in the metadata (a list or an object from index to name, as JSON or as Python writes it), in a ZipMap, or in the
    branch that makes scikit-learn's label output.
    """
    metadata = {item.key: item.value for item in model.metadata_props}
    for key in _NAME_KEYS:
        if key in metadata and (found := _names_of_text(metadata[key])):
            return found
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in graph.initializer}
    others = [item.name for item in graph.output if item.name != output]
    for start in (output, *others):
        for node in _upstream(start, producers):
            if found := _labels_of(node, constants, is_label=start != output):
                return found
    return None


def _upstream(value: str, producers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes that make a value, along first inputs, up to and including the one that holds class labels."""
    for _ in range(8):
        node = producers.get(value)
        if node is None or not node.input:
            return
        yield node
        value = node.input[0]


def _labels_of(
    node: onnx.NodeProto, constants: dict[str, TensorProto], *, is_label: bool
) -> list[str] | None:
    for attribute in node.attribute:
        if attribute.name in _LABEL_ATTRIBUTES and (attribute.strings or attribute.ints):
            return [item.decode() for item in attribute.strings] or [str(i) for i in attribute.ints]
    if is_label and node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
        values = numpy_helper.to_array(constants[node.input[0]]).ravel()
        if values.dtype.kind in "iOUS":
            return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    return None


def _names_of_text(text: str) -> list[str] | None:
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text)
            break
    if isinstance(value, dict):
        try:
            by_index = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        if sorted(by_index) != list(range(len(by_index))):
            return None
        value = [by_index[i] for i in range(len(by_index))]
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return value
    return None


def _input(graph: onnx.GraphProto) -> GraphInput:
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(item.name for item in inputs) or "none"
        raise UnreadableModel(
            f"the graph has {len(inputs)} inputs ({names}); the service feeds exactly one tensor: join them in front of the model"
        )
    item = inputs[0]
    if item.type.WhichOneof("value") != "tensor_type":
        raise UnreadableModel(
            f"input '{item.name}' is a {item.type.WhichOneof('value')}, not a tensor"
        )
    tensor = item.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise UnreadableModel(
            f"input '{item.name}' is {kind}; expected one of {', '.join(DTYPES.values())}"
        )
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise UnreadableModel(
            f"input '{item.name}' has no shape with a batch axis: export the model with one"
        )
    shape = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    return GraphInput(item.name, dtype, shape)


def opset_of(model: onnx.ModelProto) -> int | None:
    """The version of the plain operators; None where a graph has none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at the head's opset: scikit-learn exports carry the oldest opset that their few plain nodes allow."""
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, foreign_graph.MIN_OPSET)
    except Exception as error:  # noqa: BLE001 - the converter raises what it likes
        raise foreign_graph.UnsupportedGraph(
            f"opset {opset}; expected {foreign_graph.MIN_OPSET} or newer, and it cannot be converted ({first_line(error)}): "
            "export the model again with a newer opset"
        ) from None


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
