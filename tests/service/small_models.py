"""Small real ONNX classifiers and the folders that publish them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract.bundle import publish

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
    """Inputs "x" [batch, features] → "logits" [batch, classes], with an optional Softmax or LogSoftmax at the end."""
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
