"""The values of an input that a graph knows, where it refuses all others.

scikit-learn's OneHotEncoder, as skl2onnx writes it, fails for a value that it was not trained on
(unless handle_unknown is 'ignore'). So no random text would show what the model gives.
"""

from typing import Any

import onnx
from onnx import numpy_helper

_KEEP_VALUES = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"}


def known_values(graph: onnx.GraphProto) -> dict[str, list[str] | list[int]]:
    """The values by input, for inputs of one column."""
    producers = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in graph.initializer}
    inputs = {item.name for item in graph.input} - set(constants)
    found: dict[str, list[str] | list[int]] = {}
    for node in graph.node:
        if node.op_type != "OneHotEncoder" or _attribute(node, "zeros", 1):
            continue
        source = _source(node.input[0], producers, constants)
        if source not in inputs:
            continue
        texts = [text.decode() for text in _attribute(node, "cats_strings", [])]
        numbers = list(_attribute(node, "cats_int64s", []))
        if texts or numbers:
            found[source] = texts or numbers
    return found


def _source(
    name: str, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> str:
    """The value that a column is taken from: through joined columns and picked ones."""
    column = 0
    while (node := producers.get(name)) is not None:
        if node.op_type in _KEEP_VALUES:
            name = node.input[0]
        elif _picks_columns(node) and node.input[1] in constants:
            picked = numpy_helper.to_array(constants[node.input[1]]).ravel()
            if len(picked) != 1:
                return ""
            name, column = node.input[0], int(picked[0])
        elif node.op_type == "Concat" and column < len(node.input):
            name, column = node.input[column], 0
        else:
            return ""
    return name if column == 0 else ""


def _picks_columns(node: onnx.NodeProto) -> bool:
    if node.op_type == "Gather":
        return bool(_attribute(node, "axis", 0) == 1)
    return node.op_type == "ArrayFeatureExtractor"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next(
        (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )
