"""Columns whose values a graph knows are tried, served and checked by those values."""

import httpx
import numpy as np
import pytest
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
