"""Reads what a foreign ONNX file states about itself: inputs, outputs, names of classes."""

import ast
import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, inliner, numpy_helper

from service.commands.importing import rewrite
from service.commands.importing.categories import Values, by_column, known_values
from service.commands.importing.names import names_of_json, numbers_as_names
from service.commands.importing.refusal import ImportRefused
from service.contract.nearest import nearest_path
from service.graph import converter
from service.graph import foreign as foreign_graph

DTYPES: dict[int, str] = {
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
_NAME_KEYS = ("class_names", "classes", "labels", "names", "id2label", "character")
"""Metadata keys that may hold class names; PaddlePaddle's `character` has one name per line."""
_FREE_CONSTANTS_IR = 4
"""The first version of the file format in which weights need not be inputs. Some files declare an
older one and still omit them; onnx's converter then finds no weights.
"""
_PLACEHOLDER = 7919
"""A prime that no dimension of a graph is likely to have."""
_WHOLE_NUMBERS = (TensorProto.INT32, TensorProto.INT64)
_ASSERTION = re.compile(r"^/\S+:\d+: \w+: Assertion `.*?` failed: ")
"""What onnx's converter writes before the fault itself."""
_KEY_TYPES = {
    "keys_floats": TensorProto.FLOAT,
    "keys_int64s": TensorProto.INT64,
    "keys_strings": TensorProto.STRING,
}
"""The type of a LabelEncoder's input, by the attribute with its keys."""
_LABEL_ATTRIBUTES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph; shape includes the batch, None where a dimension is free.

    categories: the values that the input accepts, if the graph refuses all others; for several
    columns a list for each, with None for any value.
    """

    name: str
    dtype: str
    shape: list[int | None]
    categories: Values | list[Values | None] | None = None


@dataclass
class OnnxFile:
    """A model without its external weights, which stay in files beside it.

    path: the file. inputs: the graph's inputs. external_files: the files of weights that it names.
    opset: its opset, None if it names none. model: the graph to publish. changed: whether that
    differs from the file. mended: whether the file names a locale that is not installed here. Such
    a file runs here only after another locale is put in its place.
    """

    path: Path
    inputs: list[GraphInput]
    external_files: list[str]
    opset: int | None
    model: onnx.ModelProto
    changed: bool
    mended: bool

    def runnable(self) -> bytes | None:
        """The graph to run here instead of the file; None: the file itself."""
        if not (self.changed or self.mended):
            return None
        model = copy.deepcopy(self.model)
        foreign_graph.mend_locales(model)
        found: bytes = model.SerializeToString()
        return found


def read(path: Path) -> OnnxFile:
    """Read a file and bring it to an opset that the head takes. Raises ImportRefused,
    UnsupportedGraph.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            raise ImportRefused(f"{path} is a pipe, device or socket; expected an ONNX file")
        other = foreign_graph.what_instead(path)
        if other is not None:
            raise ImportRefused(f"{path} is not an ONNX file, but {other}")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ImportRefused(
            f"{path}: {error.strerror}{nearest_path(path)}; expected an ONNX file that this user "
            "can read"
        ) from None
    except ImportRefused:
        raise
    except Exception:  # noqa: BLE001 - protobuf raises errors of several families
        raise ImportRefused(
            f"{path} is not an ONNX file, or is damaged or cut short ({path.stat().st_size:,} "
            "bytes could not be read as one): compare its size with the original's, and copy it "
            "again"
        ) from None
    if not model.graph.output:
        raise ImportRefused(f"{path} is an ONNX file without a graph; expected a model")
    external = foreign_graph.external_files(model, path.parent)
    mended = foreign_graph.mend_locales(copy.deepcopy(model))
    opset = opset_of(model)
    old = opset is not None and opset < foreign_graph.MIN_OPSET
    if old:
        assert opset is not None
        _name_opset_once(model, opset)
        model = _converted(_inlined(model), opset)
    changed = [old, rewrite.widen_bfloat16(model), rewrite.narrow_zip_maps(model)]
    return OnnxFile(path, _inputs(model.graph), external, opset, model, any(changed), mended)


def handles_missing(model: onnx.ModelProto) -> bool:
    """Whether the graph has a node meant for NaN: an imputer, IsNaN, or trees trained with a branch
    for it.

    An SVM, and trees without such a branch, also return finite numbers for NaN, but these are
    meaningless. CatBoost is the exception: it puts a missing value below every border, and its
    files test whether a number is above a border, which NaN is not. skl2onnx's PowerTransformer has
    an Imputer, too: it fills in the powers that are undefined, and so hides a missing value.
    """
    powers: set[str] = set()
    for node in model.graph.node:  # in order: a node comes after those whose outputs it reads
        if node.op_type == "Pow" or powers & set(node.input):
            powers.update(node.output)
            continue
        if node.op_type in {"Imputer", "IsNaN"}:
            return True
        if node.op_type.startswith("TreeEnsemble"):
            if model.producer_name == "CatBoost":
                return True
            for attribute in node.attribute:
                if attribute.name == "nodes_missing_value_tracks_true" and any(attribute.ints):
                    return True
    return False


def class_names(model: onnx.ModelProto, output: str) -> list[str] | None:
    """The class names in the file, in output order; None when it has none.

    They are in the metadata, in a ZipMap, or in the nodes that make scikit-learn's label output.
    """
    metadata = {item.key: item.value for item in model.metadata_props}
    for key in _NAME_KEYS:
        if key in metadata and (found := _names_of_text(metadata[key], key)):
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


def in_column_order(
    run: Callable[[dict[str, Any]], dict[str, Any]], model: onnx.ModelProto
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that runs the model, with the values of each ZipMap in the order of its columns.

    onnxruntime returns a row of a ZipMap as an object whose labels are sorted. CatBoost writes
    them in the order of `class_names`, which need not be sorted.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    labels: dict[str, list[str | int]] = {}
    for item in model.graph.output:
        node = makers.get(item.name)
        if node is not None and node.op_type == "ZipMap":
            held = [each for a in node.attribute for each in (*a.strings, *a.ints)]
            labels[item.name] = [
                e.decode(errors="surrogateescape") if isinstance(e, bytes) else e for e in held
            ]

    def ordered(feeds: dict[str, Any]) -> dict[str, Any]:
        found = run(feeds)
        for name, order in labels.items():
            if all(row.keys() == set(order) for row in found[name]):
                found[name] = [{label: row[label] for label in order} for row in found[name]]
        return found

    return ordered


def _upstream(value: str, producers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes that make a value, following first inputs, up to the one that holds class
    labels.
    """
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
            texts = [item.decode(errors="surrogateescape") for item in attribute.strings]
            return texts or [str(i) for i in attribute.ints]
    if is_label and node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
        values = numpy_helper.to_array(constants[node.input[0]]).ravel()
        if values.dtype.kind in "iOUS":
            return [
                v.decode(errors="surrogateescape") if isinstance(v, bytes) else str(v)
                for v in values.tolist()
            ]
    return None


def _names_of_text(text: str, key: str) -> list[str] | None:
    """Names from the metadata entry `key`: a list or an object as JSON or Python writes it, lines,
    or commas.
    """
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text)
            if key == "id2label" and isinstance(value, dict) and key not in value:
                value = {key: value}
            return names_of_json(numbers_as_names(value))
    for separator in ("\n", ","):
        names = [name.strip() for name in text.strip().split(separator)]
        if len(names) > 1 and all(names):
            return names
    return None


def _inputs(graph: onnx.GraphProto) -> list[GraphInput]:
    constants = {item.name for item in graph.initializer}
    known = known_values(graph)
    inputs = [
        _input(item, known.get(item.name, {})) for item in graph.input if item.name not in constants
    ]
    if not inputs:
        raise ImportRefused("the graph has no input: export it with the batch as its input")
    return inputs


def _input(item: onnx.ValueInfoProto, known: dict[int | None, Values]) -> GraphInput:
    if item.type.WhichOneof("value") != "tensor_type":
        raise ImportRefused(
            f"input '{item.name}' is a {item.type.WhichOneof('value')}; expected a tensor: export "
            "the model without the step that reads it (scikit-learn's DictVectorizer), and send "
            "the columns that this step makes"
        )
    tensor = item.type.tensor_type
    dtype = DTYPES.get(int(tensor.elem_type))
    if dtype is None:
        kind = str(TensorProto.DataType.Name(tensor.elem_type)).lower()
        raise ImportRefused(
            f"input '{item.name}' is {kind}; expected one of {', '.join(DTYPES.values())}; export "
            "the model with an input of such a type, and let a Cast node convert it"
        )
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise ImportRefused(
            f"input '{item.name}' has no shape with a batch axis: export the model with one"
        )
    shape = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    categories = None if dtype.startswith("float") else by_column(known, shape)
    return GraphInput(item.name, dtype, shape, categories)


def opset_of(model: onnx.ModelProto) -> int | None:
    """The opset of the standard operators; None when the graph names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def _name_opset_once(model: onnx.ModelProto, opset: int) -> None:
    """Leave one entry for the standard operators: skl2onnx may write several, and the converter
    changes only the first.
    """
    others = [o for o in model.opset_import if o.domain not in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", opset), *others])


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions put in the place of their calls: onnx's converter drops them."""
    return inliner.inline_local_functions(model) if model.functions else model


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at the oldest opset that the head supports.

    scikit-learn exports declare the oldest opset that their few standard nodes allow.
    """
    inputs = {item.name for item in model.graph.input}
    if any(item.name not in inputs for item in model.graph.initializer):
        model.ir_version = max(model.ir_version, _FREE_CONSTANTS_IR)
    _give_types(model.graph)
    try:
        return converter.convert(model)
    except foreign_graph.UnsupportedGraph as error:
        converted = _converted_at_a_size(model)
        if converted is not None:
            return converted
        why = _ASSERTION.sub("", str(error))
        raise foreign_graph.UnsupportedGraph(
            f"opset {opset}; expected {foreign_graph.MIN_OPSET} or newer, and the conversion "
            f"failed ({why}): export the model again with a newer opset"
        ) from None


def _give_types(graph: onnx.GraphProto) -> None:
    """State the type of the keys that each LabelEncoder reads.

    onnx's converter ends its process at one whose input has no type, as after scikit-learn's trees
    (skl2onnx's option `decision_path`).
    """
    typed = {item.name for group in (graph.input, graph.output, graph.value_info) for item in group}
    for node in graph.node:
        types = [_KEY_TYPES[a.name] for a in node.attribute if a.name in _KEY_TYPES]
        if node.op_type == "LabelEncoder" and types and node.input[0] not in typed:
            info = onnx.helper.make_tensor_value_info(node.input[0], types[0], None)
            graph.value_info.append(info)
            typed.add(node.input[0])


def _converted_at_a_size(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Convert the model with a placeholder size in each free dimension, and remove it afterwards.

    Before opset 7, a node named the axis along which it repeats its second input. The converter
    replaces that where it can compare sizes, and gives up at a free one. Returns None if that also
    fails, or if the placeholder remains in the graph.
    """
    sized = copy.deepcopy(model)
    for dim in _dimensions(sized.graph):
        if not dim.dim_value:
            dim.dim_value = _PLACEHOLDER
    try:
        found = converter.convert(sized)
    except foreign_graph.UnsupportedGraph:  # the first error is reported
        return None
    for dim in _dimensions(found.graph):
        if dim.dim_value == _PLACEHOLDER:
            dim.ClearField("dim_value")
    return None if _holds_placeholder(found.graph) else found


def _dimensions(graph: onnx.GraphProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for item in (*graph.input, *graph.output, *graph.value_info):
        yield from item.type.tensor_type.shape.dim


def _holds_placeholder(graph: onnx.GraphProto) -> bool:
    values = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type in _WHOLE_NUMBERS]
    attributes = [a for node in graph.node for a in node.attribute]
    values += [numpy_helper.to_array(a.t) for a in attributes if a.t.data_type in _WHOLE_NUMBERS]
    return any(_PLACEHOLDER in value for value in values) or any(
        _PLACEHOLDER in (a.i, *a.ints) for a in attributes
    )
