"""`import --example-rows` with the library's own probabilities finds what a converter changed."""

import numpy as np
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def data(*, classes=3, dtype=np.float32):
    x, y = make_classification(
        300, 6, n_informative=5, n_redundant=0, n_classes=classes, class_sep=0.7, random_state=0
    )
    return x.astype(dtype), y


def written(folder, model, example, **arrays):
    """(model.onnx, rows.npz) of a fitted model."""
    graph = to_onnx(model, initial_types=example, options={"zipmap": False})
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    np.savez(folder / "rows.npz", **arrays)
    return folder / "model.onnx", "--example-rows", folder / "rows.npz"


@pytest.fixture
def fitted():
    x, y = data()
    return LogisticRegression(max_iter=500).fit(x, y), x


NUMBERS = [("X", FloatTensorType([None, 6]))]


def test_a_file_that_answers_as_its_library_is_imported(import_file, tmp_path, fitted):
    model, x = fitted
    file = written(tmp_path, model, NUMBERS, x=x, probabilities=model.predict_proba(x))
    status, bundle, err = import_file(*file)
    assert status == 0, err
    assert bundle.input.statistics is not None


def test_a_file_that_a_converter_changed_is_refused_until_it_is_set_right(import_file, tmp_path):
    """skl2onnx doubles the logits of this model of two classes."""
    x, y = data(classes=2)
    model = LinearDiscriminantAnalysis().fit(x, y)
    file = written(tmp_path, model, NUMBERS, x=x, probabilities=model.predict_proba(x))
    status, _, err = import_file(*file)
    assert status == 1
    assert "of 300 rows have other probabilities than the array 'probabilities'" in err
    assert "check --output, --temperature" in err
    status, bundle, err = import_file(*file, "--temperature", "2")
    assert status == 0, err
    assert bundle.temperature == 2


def test_a_few_rows_of_a_forest_may_differ_where_float32_crosses_a_threshold(import_file, tmp_path):
    x, y = data(dtype=np.float64)
    model = RandomForestClassifier(20, random_state=0).fit(x, y)
    expected = model.predict_proba(x)
    expected[:3] = expected[3:6]
    file = written(tmp_path, model, NUMBERS, x=x, probabilities=expected)
    status, _, err = import_file(*file)
    assert status == 0, err


def test_texts_are_compared_too(import_file, tmp_path):
    texts = ["a red fox", "a grey wolf", "red red stone", "wolf and fox"] * 5
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(texts, ["fox", "wolf", "stone", "fox"] * 5)
    example = [("text", StringTensorType([None, 1]))]
    right = model.predict_proba(texts)
    file = written(tmp_path, model, example, x=np.array(texts), probabilities=right)
    status, _, err = import_file(*file)
    assert status == 0, err
    file = written(tmp_path, model, example, x=np.array(texts), probabilities=right[:, ::-1])
    status, _, err = import_file(*file)
    assert (status, "and the order of the classes" in err) == (1, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p[:, :2], "expected numbers [rows, 3], in rows that sum to 1"),
        (lambda p: p[:, 0], "expected numbers [rows, 3]"),
        (lambda p: 100 * p, "in rows that sum to 1, as predict_proba gives them"),
        (lambda p: p.astype(str), "the array 'probabilities' is <U"),
        (lambda p: np.where(p > 0.5, np.nan, p), "in rows that sum to 1"),
        (lambda p: p[:7], "has 300 rows but 7 of probabilities; expected one for each"),
    ],
)
def test_an_array_that_is_no_probabilities_is_named(import_file, tmp_path, fitted, change, says):
    model, x = fitted
    wrong = change(model.predict_proba(x))
    status, _, err = import_file(*written(tmp_path, model, NUMBERS, x=x, probabilities=wrong))
    assert status == 1
    assert says in err
