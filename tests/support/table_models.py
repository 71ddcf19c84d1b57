"""ONNX classifiers over the columns of a table: numbers beside strings, missing values, tokens."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.__main__ import main
from service.contract.adjustment import softmax

CLASSES = ["stays", "leaves", "returns"]
WEIGHTS = np.array([[0.05, -0.02, 0.01], [-0.03, 0.04, 0.02]], np.float32)
SEXES = np.array([[0, 0, 0], [1, -1, 0.5], [-0.5, 2, 0]], np.float32)  # unknown, f, m
ROWS = [
    {"age": 41.0, "fare": 7.25, "sex": "f"},
    {"age": 22.5, "fare": 71.0, "sex": "m"},
    {"age": 3.0, "fare": 8.0, "sex": "x"},
]


def table_model() -> onnx.ModelProto:
    """age [batch, 1] and fare [batch, 1] float32, sex [batch, 1] string → logits [batch, 3]."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["sex"], ["code"], domain="ai.onnx.ml",
            keys_strings=["f", "m"], values_int64s=[1, 2], default_int64=0,
        ),
        helper.make_node("Concat", ["age", "fare"], ["numbers"], axis=1),
        helper.make_node("MatMul", ["numbers", "weights"], ["one"]),
        helper.make_node("Gather", ["sexes", "code"], ["two3"]),
        helper.make_node("Squeeze", ["two3", "axis"], ["two"]),
        helper.make_node("Add", ["one", "two"], ["logits"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "table",
        [
            value("age", TensorProto.FLOAT, ["batch", 1]),
            value("fare", TensorProto.FLOAT, ["batch", 1]),
            value("sex", TensorProto.STRING, ["batch", 1]),
        ],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(SEXES, "sexes"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def publish_table(models: Path) -> None:
    """Import `table_model` into a repository as `table`, with class counts."""
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        onnx.save(table_model(), home / "table.onnx")
        (home / "names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
        (home / "counts.json").write_text("[60, 30, 10]", encoding="utf-8")
        flags = ["--class-names", home / "names.txt", "--class-counts", home / "counts.json"]
        command = ["import", home / "table.onnx", "--name", "table", "--models", models, *flags]
        assert main([str(each) for each in command]) == 0


def table_probabilities(rows=ROWS) -> np.ndarray:
    """[n, 3] in float64."""
    numbers = np.array([[row["age"], row["fare"]] for row in rows])
    codes = [{"f": 1, "m": 2}.get(row["sex"], 0) for row in rows]
    return softmax(numbers @ WEIGHTS.astype(np.float64) + SEXES[codes])


def missing_model() -> onnx.ModelProto:
    """x [batch, 2] float32, NaN taken for 10 → logits [batch, 3]."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "ten", "x"], ["whole"]),
        helper.make_node("MatMul", ["whole", "weights"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "missing",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.array(10, np.float32), "ten"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def bert_like(hidden: int = 8) -> onnx.ModelProto:
    """input_ids and attention_mask int64 [batch, seq] → logits [batch, 3]: a mean of embeddings."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "out"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "bert",
        [value(n, TensorProto.INT64, ["batch", "seq"]) for n in ("input_ids", "attention_mask")],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(rng.normal(size=(100, hidden)).astype(np.float32), "table"),
            numpy_helper.from_array(rng.normal(size=(hidden, 3)).astype(np.float32), "out"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([2], np.int64), "two"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
