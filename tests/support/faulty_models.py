"""Real ONNX classifiers that fail: one turns some inputs into NaN, one raises for some, one runs
as long as its input says.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.small_models import CLASSES, publish_model, weights

LOOKUP_ROWS = 10
LOOKUP_LOGITS = np.random.default_rng(8).normal(size=(LOOKUP_ROWS, CLASSES)).astype(np.float32)
LOOKUP_INPUT: dict[str, Any] = {"name": "x", "kind": "tensor", "shape": [None, 1], "dtype": "int64"}
SLOW_INPUT: dict[str, Any] = {"name": "x", "kind": "tensor", "shape": [None, 2], "dtype": "float32"}


def _model(nodes: list[Any], kind: int, width: int, *constants: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "faulty",
        [helper.make_tensor_value_info("x", kind, ["batch", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def root_model(features: int) -> onnx.ModelProto:
    """float32 "x" [batch, features] → sqrt(x)·w + b: NaN where a row holds a negative number."""
    w, b = weights(features)
    return _model(
        [
            helper.make_node("Sqrt", ["x"], ["root"]),
            helper.make_node("Gemm", ["root", "w", "b"], ["logits"]),
        ],
        TensorProto.FLOAT,
        features,
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(b, "b"),
    )


def lookup_model() -> onnx.ModelProto:
    """int64 "x" [batch, 1] → a row of LOOKUP_LOGITS; the runtime raises for an index that is not in
    the table.
    """
    return _model(
        [
            helper.make_node("Squeeze", ["x", "one"], ["index"]),
            helper.make_node("Gather", ["table", "index"], ["logits"]),
        ],
        TensorProto.INT64,
        1,
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(LOOKUP_LOGITS, "table"),
    )


def slow_model() -> onnx.ModelProto:
    """float32 "x" [batch, 2] → logits of the first column, after as many rounds of a loop as the
    second column's largest.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["state", "square"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [128, 128]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [128, 128]),
        ],
        [numpy_helper.from_array(np.eye(128, dtype=np.float32), "square")],
    )
    nodes = [
        helper.make_node("Split", ["x"], ["first", "second"], axis=1, num_outputs=2),
        helper.make_node("ReduceMax", ["second"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "", "start"], ["worked"], body=body),
        helper.make_node("ReduceMax", ["worked"], ["waste"], keepdims=0),
        helper.make_node("Mul", ["waste", "nothing"], ["zero"]),
        helper.make_node("MatMul", ["first", "w"], ["plain"]),
        helper.make_node("Add", ["plain", "zero"], ["logits"]),
    ]
    return _model(
        nodes,
        TensorProto.FLOAT,
        2,
        numpy_helper.from_array(np.full((128, 128), 0.5, np.float32), "start"),
        numpy_helper.from_array(np.array(0, np.float32), "nothing"),
        numpy_helper.from_array(np.arange(CLASSES, dtype=np.float32)[None], "w"),
    )


def steady_model(rounds: float) -> onnx.ModelProto:
    """slow_model with as many rounds for every batch, whatever it holds."""
    model = slow_model()
    (cast,) = [node for node in model.graph.node if node.op_type == "Cast"]
    cast.input[0] = "always"
    model.graph.initializer.append(numpy_helper.from_array(np.array(rounds, np.float32), "always"))
    return model


def publish_root(models: Path, features: int) -> None:
    """The model "sqrt"."""
    shape = {"name": "x", "kind": "tensor", "shape": [None, features], "dtype": "float32"}
    publish_model(models, "sqrt", model=root_model(features), input=shape)


def publish_lookup(models: Path) -> None:
    """The model "lookup"."""
    publish_model(models, "lookup", model=lookup_model(), input=LOOKUP_INPUT)


def publish_endless(models: Path, name: str = "endless") -> None:
    """The model "endless", or the next version of another that has the inputs of "slow". Its
    warm-up does not end.
    """
    publish_steady(models, name, rounds=1e9)


def publish_steady(models: Path, name: str = "steady", *, rounds: float) -> None:
    """The model "steady": so many rounds a batch."""
    publish_model(models, name, model=steady_model(rounds), input=SLOW_INPUT)


def publish_slow(models: Path) -> None:
    """The model "slow"."""
    publish_model(models, "slow", model=slow_model(), input=SLOW_INPUT)
