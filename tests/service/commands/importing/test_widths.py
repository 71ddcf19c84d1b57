"""A graph that takes rows of any width is published with the width it was trained with, or refused:
rows of another width would be scored without an error.
"""

import numpy as np
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC

WIDTH = 6
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(150, WIDTH)).astype(np.float32)
LABELS = np.argmax(ROWS[:, :3] + ROWS[:, 3:], axis=1)


def forest():
    return RandomForestClassifier(5, random_state=0)


def exported(tmp_path, model):
    """The file of a model, as skl2onnx writes it without a width."""
    made = to_onnx(
        model.fit(ROWS, LABELS),
        initial_types=[("x", FloatTensorType([None, None]))],
        options={"zipmap": False},
        target_opset=17,
    )
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    return tmp_path / "m.onnx"


@pytest.mark.filterwarnings("ignore:.*was deprecated:FutureWarning")  # SVC(probability=True)
@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(PCA(3), LogisticRegression()),
        make_pipeline(SimpleImputer(), forest()),
        make_pipeline(MinMaxScaler(), forest()),
        SVC(probability=True),
        KNeighborsClassifier(),
        GaussianNB(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_width_is_read_from_the_weights_or_found_by_trial(import_file, tmp_path, model):
    status, bundle, err = import_file(exported(tmp_path, model))
    assert status == 0, err
    assert bundle.input.shape == [None, WIDTH]


@pytest.mark.parametrize("model", [forest(), make_pipeline(Normalizer(), forest())], ids=str)
def test_trees_tell_only_the_columns_that_they_read_so_the_caller_names_all(
    import_file, tmp_path, model
):
    file = exported(tmp_path, model)
    status, _, err = import_file(file)
    assert status == 1
    assert "input 'x' takes rows of any width, and the graph reads at least 6 columns" in err
    assert "--column-names F" in err
    names = tmp_path / "names"
    names.write_text("\n".join("abcdef"))
    status, bundle, err = import_file(file, "--column-names", str(names))
    assert status == 0, err
    assert bundle.input.shape == [None, WIDTH]


def test_too_few_names_are_refused(import_file, tmp_path):
    names = tmp_path / "names"
    names.write_text("a\nb")
    status, _, err = import_file(exported(tmp_path, forest()), "--column-names", str(names))
    assert status == 1
    assert "--column-names has 2 names; input 'x' has at least 6 columns" in err
