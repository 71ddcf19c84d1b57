"""Edits of a foreign graph, so that one output holds [batch, classes] logits or probabilities.

The published file remains a plain classifier, which other servers can run too. Nodes are appended.
The weights, which may be in other files, stay unchanged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def widen_bfloat16(model: onnx.ModelProto) -> bool:
    """Turn inputs and outputs of bfloat16, which NumPy does not know, into float32.

    Returns whether any were.
    """
    graph = model.graph
    constants = {item.name for item in graph.initializer}
    found = False
    for item in graph.input:
        if item.name not in constants and _is_bfloat16(item):
            inner = unused_name(graph, f"{item.name}_bfloat16")
            for node in graph.node:
                for at, name in enumerate(node.input):
                    if name == item.name:
                        node.input[at] = inner
            cast = helper.make_node("Cast", [item.name], [inner], to=TensorProto.BFLOAT16)
            graph.node.insert(0, cast)
            item.type.tensor_type.elem_type = TensorProto.FLOAT
            found = True
    for item in graph.output:
        if _is_bfloat16(item):
            outer = unused_name(graph, f"{item.name}_float")
            graph.node.append(helper.make_node("Cast", [item.name], [outer], to=TensorProto.FLOAT))
            item.name = outer
            item.type.tensor_type.elem_type = TensorProto.FLOAT
            found = True
    return found


def narrow_zip_maps(model: onnx.ModelProto) -> bool:
    """Convert float64 probabilities that a ZipMap reads to float32: onnxruntime's ZipMap refuses
    float64.

    skl2onnx writes such files for float64 inputs. If only some inputs are float64, it nevertheless
    declares the output as float32. Returns whether any probabilities were, or may be, float64.
    """
    graph = model.graph
    doubles = any(i.type.tensor_type.elem_type == TensorProto.DOUBLE for i in graph.input)
    makers = {name: node for node in graph.node for name in node.output}
    found = False
    for item in graph.output:
        value = item.type.sequence_type.elem_type.map_type.value_type.tensor_type
        node = makers.get(item.name)
        if node is None or node.op_type != "ZipMap":
            continue
        if value.elem_type != TensorProto.DOUBLE and not doubles:
            continue
        narrow = unused_name(graph, f"{node.input[0]}_float")
        cast = helper.make_node("Cast", [node.input[0]], [narrow], to=TensorProto.FLOAT)
        graph.node.insert(list(graph.node).index(node), cast)
        node.input[0] = narrow
        value.elem_type = TensorProto.FLOAT
        found = True
    return found


def flatten(model: onnx.ModelProto, output: str) -> str:
    """Add an output [batch, C] made from one like [batch, C, 1, 1] or [batch, 1, C]; return its
    name.
    """
    edit = _Edit(model)
    return edit.output(edit.node("Flatten", [output], axis=1))


def scale(model: onnx.ModelProto, output: str, factor: float) -> str:
    """Add an output that is another output times a factor; return its name."""
    edit = _Edit(model)
    wide = edit.node("Cast", [output], to=TensorProto.FLOAT)
    return edit.output(edit.node("Mul", [wide, edit.constant(np.array(factor, np.float32))]))


def join_columns(model: onnx.ModelProto, outputs: Sequence[str]) -> str:
    """Add an output [batch, C] made from C outputs with one number per row; return its name."""
    edit = _Edit(model)
    column = edit.constant(np.array([-1, 1], np.int64))
    columns = [edit.node("Reshape", [name, column]) for name in outputs]
    return edit.output(edit.node("Concat", columns, axis=1))


def two_classes(model: onnx.ModelProto, output: str, kind: str) -> tuple[str, str]:
    """Add an output [batch, 2] made from one number per row that scores the second class.

    kind: whether it is a logit ("logits") or a probability ("probabilities"). If a Sigmoid makes
    the probability, its input is used instead, which has not been rounded to 0 or 1. Returns the
    output's name and kind.
    """
    edit = _Edit(model)
    source = _before_sigmoid(model.graph, output) if kind == "probabilities" else None
    if source is not None:
        output, kind = source, "logits"
    wide = edit.node("Cast", [output], to=TensorProto.FLOAT)
    second = edit.node("Reshape", [wide, edit.constant(np.array([-1, 1], np.int64))])
    if kind == "logits":
        first = edit.node("Sub", [second, second])
    else:
        first = edit.node("Sub", [edit.constant(np.array(1, np.float32)), second])
    return edit.output(edit.node("Concat", [first, second], axis=1)), kind


def unused_name(graph: onnx.GraphProto, wanted: str) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3` … that no tensor of the graph has."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for group in (graph.input, graph.output, graph.initializer):
        taken.update(item.name for item in group)
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _before_sigmoid(graph: onnx.GraphProto, output: str) -> str | None:
    """The input of the Sigmoid that makes an output, if only reshaping follows it; else None."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in {"Identity", "Squeeze", "Reshape", "Flatten"}:
        node = producers.get(node.input[0])
    return node.input[0] if node is not None and node.op_type == "Sigmoid" else None


def _is_bfloat16(item: onnx.ValueInfoProto) -> bool:
    return bool(item.type.tensor_type.elem_type == TensorProto.BFLOAT16)


class _Edit:
    """Appends nodes and constants under names that the graph does not use yet."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = unused_name(self.graph, f"class_{operator.lower()}")
        self.graph.node.append(
            helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        )
        return output

    def constant(self, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> str:
        name = unused_name(self.graph, "class_constant")
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def output(self, tensor: str) -> str:
        """Make a tensor of any float type an output of float32; return the output's name."""
        name = unused_name(self.graph, "class_scores")
        self.graph.node.append(
            helper.make_node("Cast", [tensor], [name], name=name, to=TensorProto.FLOAT)
        )
        self.graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])
        )
        return name
