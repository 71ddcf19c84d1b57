"""Small real ONNX classifiers and the folders that publish them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract.publication import publish

FEATURES, CLASSES = 6, 5
COUNTS = [1000, 300, 80, 20, 4]


def weights(features: int = FEATURES, classes: int = CLASSES, seed: int = 0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(features, classes)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
    )


def linear_model(
    *,
    features: int = FEATURES,
    classes: int = CLASSES,
    ending: str | None = None,
    dtype: int = TensorProto.FLOAT,
    batch: str | int = "batch",
    opset: int = 20,
    cast_input: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Inputs "x" [batch, features] → "logits" [batch, classes], with an optional Softmax or
    LogSoftmax at the end.
    """
    w, b = weights(features, classes, seed)
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    nodes, source = [], "x"
    if cast_input:
        nodes.append(helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT))
        source = "wide"
    last = "logits" if ending is None else "raw"
    nodes.append(helper.make_node("Gemm", [source, "w", "b"], [last]))
    if ending is not None:
        nodes.append(helper.make_node(ending, ["raw"], ["logits"], axis=1))
    out = TensorProto.FLOAT if cast_input else dtype
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", dtype, [batch, features])],
        [helper.make_tensor_value_info("logits", out, [batch, classes])],
        [
            numpy_helper.from_array(w.astype(kind), "w"),
            numpy_helper.from_array(b.astype(kind), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def fields(**changes: Any) -> dict[str, Any]:
    """The members of a model.json for linear_model."""
    return {
        "class_names": [f"class-{i}" for i in range(changes.pop("classes", CLASSES))],
        "class_counts": COUNTS,
        "loss_tau": 0.0,
        "temperature": 1.0,
        "input": {"name": "x", "kind": "tensor", "shape": [None, FEATURES], "dtype": "float32"},
        "output": {"name": "logits", "kind": "logits"},
        **changes,
    }


def publish_model(
    models: Path, name: str = "linear", *, model: onnx.ModelProto | None = None, **changes: Any
) -> Path:
    """models/<name>/<next version> of a small model."""
    made = linear_model() if model is None else model
    return publish(
        models,
        name,
        fields=fields(**changes),
        write_files=lambda folder: (folder / "model.onnx").write_bytes(made.SerializeToString()),
    )


def inputs(rows: int, *, features: int = FEATURES, seed: int = 1):
    return np.random.default_rng(seed).normal(size=(rows, features)).astype(np.float32)


def text_model() -> onnx.ModelProto:
    """Strings "words" [batch, 1] → "logits" [batch, 3], one row of TEXT_LOGITS a known word; others
    get the first row.
    """
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["words"],
            ["index"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b", "ö"],
            values_int64s=[1, 2, 3],
            default_int64=0,
        ),
        helper.make_node("Flatten", ["index"], ["column"], axis=0),
        helper.make_node("Squeeze", ["column", "zero"], ["flat"]),
        helper.make_node("Gather", ["table", "flat"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(TEXT_LOGITS, "table"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


TEXT_LOGITS = np.array([[0, 0, 0], [1, 2, 3], [3, 1, 2], [-1, 4, 0]], np.float32)
TEXT_FIELDS: dict[str, Any] = {
    "class_names": ["x", "y", "z"],
    "class_counts": [100, 10, 1],
    "input": {"name": "words", "kind": "text", "shape": [None, 1], "dtype": "string"},
}


def image_model() -> onnx.ModelProto:
    """uint8 "pixels" [batch, 2, 3, 3] (NHWC) → "logits" [batch, 3]: the mean of each colour over
    255.
    """
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "scale"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 2, 3, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(255, np.float32), "scale"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


IMAGE_FIELDS: dict[str, Any] = {
    "class_names": ["red", "green", "blue"],
    "class_counts": [100, 10, 1],
    "input": {
        "name": "pixels",
        "kind": "image",
        "shape": [None, 2, 3, 3],
        "dtype": "uint8",
        "size": [2, 3],
        "color": "RGB",
        "resize": "stretch",
        "layout": "NHWC",
    },
}


def publish_trio(models: Path) -> None:
    """A model of numbers ("linear"), one of text ("text") and one of images ("image")."""
    publish_model(models, "linear")
    publish_model(models, "text", model=text_model(), **TEXT_FIELDS)
    publish_model(models, "image", model=image_model(), **IMAGE_FIELDS)
