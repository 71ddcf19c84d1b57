"""Finds the values that a graph accepts in an input, if it refuses all others.

scikit-learn's OneHotEncoder, as skl2onnx writes it, fails for a value that it was not trained on
(unless handle_unknown is 'ignore'). So the model cannot be tried out with random texts.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import onnx
from onnx import numpy_helper

_KEEP_VALUES = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"}


Values: TypeAlias = list[str] | list[int]


def known_values(graph: onnx.GraphProto) -> dict[str, dict[int | None, Values]]:
    """The accepted values by input and column, for columns where the graph refuses all others.

    The column None stands for every column that is not named.
    """
    nodes = _Nodes(graph)
    found: dict[str, dict[int | None, Values]] = {}
    for node in graph.node:
        if node.op_type != "OneHotEncoder" or _attribute(node, "zeros", 1):
            continue
        texts = [text.decode() for text in _attribute(node, "cats_strings", [])]
        values = texts or list(_attribute(node, "cats_int64s", []))
        for source, column in nodes.sources(node.input[0], None):
            if source in nodes.widths and values:
                found.setdefault(source, {})[column] = values
    return found


def by_column(
    found: dict[int | None, Values], shape: Sequence[int | None]
) -> Values | list[Values | None] | None:
    """The field `categories` of model.json: a list of values for a row of one column, else a list
    for each column, with None where any value is accepted. None if all columns accept any value.

    shape: the input's shape, with the batch.
    """
    if None in shape[1:] or not found:
        return None
    columns = math.prod(n for n in shape[1:] if n is not None)
    each = [found.get(at, found.get(None)) for at in range(columns)]
    return each[0] if columns == 1 else each


class _Nodes:
    """A graph, read from its nodes back to its inputs. widths: the columns of a row, by input."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {item.name: item for item in graph.initializer}
        self.widths = {
            item.name: math.prod(dim.dim_value or 1 for dim in item.type.tensor_type.shape.dim[1:])
            for item in graph.input
            if item.name not in self._constants
        }

    def sources(self, name: str, column: int | None) -> list[tuple[str, int | None]]:
        """Trace a column back through nodes that join or pick columns.

        Returns the tensors that it comes from, each with the column there; None: all its columns.
        Unclear sources are left out.
        """
        node = self._producers.get(name)
        if node is None:
            return [(name, column)]
        return [
            found for each, at in self._before(node, column) for found in self.sources(each, at)
        ]

    def _before(self, node: onnx.NodeProto, column: int | None) -> list[tuple[str, int | None]]:
        if node.op_type in _KEEP_VALUES:
            return [(node.input[0], column)]
        if _picks_columns(node) and node.input[1] in self._constants:
            picked = numpy_helper.to_array(self._constants[node.input[1]]).ravel().tolist()
            chosen = picked if column is None else picked[column : column + 1]
            return [(node.input[0], int(at)) for at in chosen if at >= 0]
        if node.op_type != "Concat":
            return []
        if column is None:
            return [(each, None) for each in node.input]
        for each in node.input:
            width = self.widths.get(each, 1)
            if column < width:
                return [(each, column)]
            column -= width
        return []


def _picks_columns(node: onnx.NodeProto) -> bool:
    if node.op_type == "Gather":
        return bool(_attribute(node, "axis", 0) == 1)
    return node.op_type == "ArrayFeatureExtractor"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next(
        (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )
