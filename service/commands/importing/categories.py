"""The values of an input that a graph knows, where it refuses all others.

scikit-learn's OneHotEncoder, as skl2onnx writes it, fails for a value that it was not trained on
(unless handle_unknown is 'ignore'). So no random text would show what the model gives.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import onnx
from onnx import numpy_helper

_KEEP_VALUES = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"}


Values: TypeAlias = list[str] | list[int]


def known_values(graph: onnx.GraphProto) -> dict[str, dict[int, Values]]:
    """The values by input and column, for columns of which the graph refuses all others."""
    producers = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in graph.initializer}
    inputs = {item.name for item in graph.input} - set(constants)
    found: dict[str, dict[int, Values]] = {}
    for node in graph.node:
        if node.op_type != "OneHotEncoder" or _attribute(node, "zeros", 1):
            continue
        source, column = _source(node.input[0], producers, constants)
        if source not in inputs:
            continue
        texts = [text.decode() for text in _attribute(node, "cats_strings", [])]
        numbers = list(_attribute(node, "cats_int64s", []))
        if texts or numbers:
            found.setdefault(source, {})[column] = texts or numbers
    return found


def by_column(
    found: dict[int, Values], shape: Sequence[int | None]
) -> Values | list[Values | None] | None:
    """The field `categories` of model.json: the values of a row of one column, or a list of them
    for each column, None where any value is taken. None where the graph leaves the columns free.

    shape: of the input, the batch included.
    """
    if None in shape[1:] or not found:
        return None
    columns = math.prod(n for n in shape[1:] if n is not None)
    return found.get(0) if columns == 1 else [found.get(at) for at in range(columns)]


def _source(
    name: str, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> tuple[str, int]:
    """The value and the column of it that a column is taken from, through joined columns and
    picked ones; an empty name where that cannot be told.
    """
    column = 0
    while (node := producers.get(name)) is not None:
        if node.op_type in _KEEP_VALUES:
            name = node.input[0]
        elif _picks_columns(node) and node.input[1] in constants:
            picked = numpy_helper.to_array(constants[node.input[1]]).ravel()
            if column >= len(picked) or picked[column] < 0:
                return "", 0
            name, column = node.input[0], int(picked[column])
        elif node.op_type == "Concat" and column < len(node.input):
            name, column = node.input[column], 0
        else:
            return "", 0
    return name, column


def _picks_columns(node: onnx.NodeProto) -> bool:
    if node.op_type == "Gather":
        return bool(_attribute(node, "axis", 0) == 1)
    return node.op_type == "ArrayFeatureExtractor"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next(
        (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )
