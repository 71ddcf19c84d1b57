"""ONNX classifiers in which the rows of a batch influence each other."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.small_models import CLASSES, FEATURES, weights


def _model(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    w, _ = weights(FEATURES, CLASSES, 0)
    held = {"w": w, **constants}
    graph = helper.make_graph(
        nodes,
        "neighbours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batch_mean() -> onnx.ModelProto:
    """Subtracts the mean of the batch."""
    return _model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("MatMul", ["centred", "w"], ["logits"]),
        ]
    )


def batch_norm_in_training_mode() -> onnx.ModelProto:
    """Normalises by the mean and the variance of the batch."""
    one, zero = np.ones(FEATURES, np.float32), np.zeros(FEATURES, np.float32)
    return _model(
        [
            helper.make_node(
                "BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["n", "m", "v"],
                training_mode=1,
            ),
            helper.make_node("MatMul", ["n", "w"], ["logits"]),
        ],
        scale=one, bias=zero, mean=zero, var=one,
    )  # fmt: skip


def dynamic_int8() -> onnx.ModelProto:
    """Quantises its input with one scale for the whole batch, as quantize_dynamic writes it."""
    w, _ = weights(FEATURES, CLASSES, 0)
    scale = np.float32(np.abs(w).max() / 127)
    return _model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "wq", "z", "wz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "ws"], ["both"]),
            helper.make_node("Mul", ["f", "both"], ["logits"]),
        ],
        wq=np.round(w / scale).astype(np.int8), wz=np.array(0, np.int8), ws=np.array(scale),
    )  # fmt: skip


def cumulative_sum() -> onnx.ModelProto:
    """Adds all rows before a row to it."""
    return _model(
        [
            helper.make_node("CumSum", ["x", "axis"], ["sums"]),
            helper.make_node("MatMul", ["sums", "w"], ["logits"]),
        ],
        axis=np.array(0, np.int64),
    )


def divided_by_the_batch_size() -> onnx.ModelProto:
    """Depends on how many rows there are, and not on what they hold."""
    return _model(
        [
            helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
            helper.make_node("Cast", ["n"], ["rows"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["x", "rows"], ["shares"]),
            helper.make_node("MatMul", ["shares", "w"], ["logits"]),
        ]
    )


NEIGHBOUR_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        batch_mean,
        batch_norm_in_training_mode,
        dynamic_int8,
        cumulative_sum,
        divided_by_the_batch_size,
    )
}
