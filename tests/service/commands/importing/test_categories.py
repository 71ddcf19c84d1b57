"""Columns whose values a graph knows are tried, served and checked by those values."""

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests.support.server import running


def drawn(first, second, dtype):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(first, 300), rng.choice(second, 300)], axis=1).astype(dtype)
    return rows, (rows[:, 0] == first[0]) + 2 * (rows[:, 1] == second[0]).astype(int) % 3


def published(import_file, tmp_path, pipeline, rows, kind):
    model = to_onnx(
        pipeline, initial_types=[("x", kind([None, 2]))], options={"zipmap": False}, target_opset=17
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    status, bundle, err = import_file(tmp_path / "m.onnx")
    assert status == 0, err
    return bundle


@pytest.mark.parametrize(
    ("values", "kind", "dtype"),
    [
        ((["a", "b"], ["blue", "green", "red"]), StringTensorType, object),
        (([3, 7], [100, 200, 300]), Int64TensorType, np.int64),
    ],
    ids=["texts", "whole numbers"],
)
def test_each_column_of_one_tensor_has_its_own_values(import_file, tmp_path, values, kind, dtype):
    first, second = values
    rows, labels = drawn(first, second, dtype)
    pipeline = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, labels)
    bundle = published(import_file, tmp_path, pipeline, rows, kind)
    assert bundle.input.categories == [first, second]
    with running(tmp_path / "imported") as server:
        answers = httpx.post(
            f"{server.url}/models/m/predict",
            json={"instances": rows[:20].tolist(), "parameters": {"tau": 0, "top_k": 4}},
        ).json()["predictions"]
        unknown = httpx.post(
            f"{server.url}/models/m/predict",
            json={"instances": [rows[0].tolist(), [first[0], first[1]]], "parameters": {"tau": 0}},
        )
    wanted = pipeline.predict_proba(rows[:20]).max(axis=1)
    np.testing.assert_allclose([each["probability"] for each in answers], wanted, atol=1e-6)
    assert unknown.status_code == 422
    if dtype is object:
        assert "instance 1, column 1, is 'b', which the model does not know" in unknown.text


def test_a_column_whose_unknown_values_are_ignored_takes_any_text(import_file, tmp_path):
    rows, labels = drawn(["a", "b"], ["blue", "green", "red"], object)
    columns = [("s", OneHotEncoder(), [1]), ("i", OneHotEncoder(handle_unknown="ignore"), [0])]
    pipeline = make_pipeline(ColumnTransformer(columns), LogisticRegression()).fit(rows, labels)
    bundle = published(import_file, tmp_path, pipeline, rows, StringTensorType)
    assert bundle.input.categories == [None, ["blue", "green", "red"]]


def encoded(inputs, before, columns, *, dynamic=False, width=3):
    """A strict OneHotEncoder of three colours over whole columns, and a linear layer."""
    rng = np.random.default_rng(5)
    weights = {"w": rng.normal(size=(width * 3, 3)).astype(np.float32)}
    weights["flat"] = np.array([-1, width * 3])
    nodes = [
        *before,
        helper.make_node(
            "OneHotEncoder",
            [columns],
            ["hot"],
            domain="ai.onnx.ml",
            zeros=0,
            cats_strings=["blue", "green", "red"],
        ),
        helper.make_node("Reshape", ["hot", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["logits" if not dynamic else "raw"]),
    ]
    if dynamic:
        nodes.append(helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0]))
        nodes.append(helper.make_node("Sub", ["raw", "mean"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "encoded",
        [helper.make_tensor_value_info(n, TensorProto.STRING, ["n", k]) for n, k in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model.metadata_props.add(key="class_names", value='["a", "b", "c"]')
    return model


JOINED = helper.make_node("Concat", ["x", "y"], ["columns"], axis=1)
COLOURS = ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("inputs", "read", "known"),
    [
        ({"x": 3}, ([], "x"), {"x": [COLOURS] * 3}),
        ({"x": 2, "y": 1}, ([JOINED], "columns"), {"x": [COLOURS] * 2, "y": COLOURS}),
    ],
    ids=["one input", "joined inputs"],
)
def test_an_encoder_that_reads_whole_inputs_knows_the_values_of_each_column(
    import_file, tmp_path, inputs, read, known
):
    (tmp_path / "m.onnx").write_bytes(encoded(inputs, *read).SerializeToString())
    status, bundle, err = import_file(tmp_path / "m.onnx")
    assert status == 0, err
    assert {i.name: i.categories for i in bundle.input.columns or [bundle.input]} == known


def test_a_column_of_joined_inputs_is_found_in_the_input_that_holds_it(import_file, tmp_path):
    picked = helper.make_node("Gather", ["columns", "third"], ["one"], axis=1)
    model = encoded({"x": 2, "y": 1}, [JOINED, picked], "one", width=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "third"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    status, bundle, err = import_file(tmp_path / "m.onnx")
    assert status == 0, err
    assert [i.categories for i in bundle.input.columns] == [None, COLOURS]


def test_rows_of_known_values_that_influence_each_other_run_one_at_a_time(import_file, tmp_path):
    model = encoded({"x": 3}, [], "x", dynamic=True)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    status, bundle, err = import_file(tmp_path / "m.onnx")
    assert status == 0, err
    assert bundle.max_batch_rows == 1
    assert "a row's answer depends on the other rows" in err
