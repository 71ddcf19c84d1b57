"""Labels and inputs of .npz files in the forms that people save."""

import numpy as np
import pytest

from service.contract.bundle import load_bundle
from tests.support.server import ROOT
from training.commands.cli import main
from training.data.dataset import Known
from training.data.problems import problems
from training.data.sources import load as data
from training.faults import BadData
from training.run.prepare import prepare_data
from training.run.recipe_file import make


def write(path, labels, *, x=None, **more):
    labels = np.asarray(labels)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(len(labels), 4)) if x is None else x
    np.savez(path, x_train=inputs, y_train=labels, x_test=inputs, y_test=labels, **more)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3] * 4, ("1", "2", "3")),
        ([-1, 1] * 6, ("-1", "1")),
        ([-1.0, 1.0] * 6, ("-1", "1")),
        ([True, False] * 6, ("False", "True")),
        ([[0], [1], [2]] * 4, ("0", "1", "2")),
        ([b"cat", b"dog"] * 6, ("cat", "dog")),
        (["10", "9", "8"] * 4, ("8", "9", "10")),
    ],
)
def test_labels_are_taken_as_a_table_takes_them(tmp_path, labels, names):
    found = data.load(write(tmp_path / "own.npz", labels), seed=0)
    assert found.class_names == names
    assert [found.class_names[i] for i in found.train.labels[:2]] == [
        str(np.asarray(label).ravel()[0].astype(str)).removesuffix(".0")
        for label in np.asarray(labels)[:2]
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.array(["cat", "dog"] * 6, object)}, "save it with .astype"),
        ({"labels": [0] * 12}, "every label is 0; expected at least 2 classes"),
        ({"labels": [1, 2] * 6, "class_names": ["cat", "dog"]}, "start at 1: subtract 1"),
        ({"labels": [0, 1] * 6, "x": np.zeros((12, 9, 9, 4), np.uint8)}, "looks like RGBA"),
        ({"labels": [0, 1] * 6, "x": np.array([b"text"] * 12)}, "np.char.decode"),
        ({"labels": [0, 1] * 6, "x": np.zeros(12)}, r"one number a row is x.reshape\(-1, 1\)"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_cure(tmp_path, changed, said):
    with pytest.raises(BadData, match=said):
        data.load(write(tmp_path / "own.npz", **changed), seed=0)


@pytest.mark.parametrize(
    ("name", "meant"), [("x_valid", "x_val"), ("y_dev", "y_val"), ("X_test", "x_test")]
)
def test_an_array_that_is_a_split_under_another_name_is_not_passed_over(tmp_path, name, meant):
    spec = write(tmp_path / "own.npz", [0, 1] * 6, **{name: np.zeros(12), "notes": np.zeros(2)})
    with pytest.raises(BadData, match=rf"the array {name} would not be read; expected {meant}"):
        data.load(spec, seed=0)


def test_images_with_channels_last_are_told(tmp_path):
    spec = write(tmp_path / "own.npz", [0, 1] * 6, x=np.zeros((12, 16, 16, 3)))
    assert "channels last" in data.load(spec, seed=0).notes[0]


def test_test_rows_alone_suffice_for_a_model_with_labels_or_without(tmp_path):
    model = Known(class_names=("cat", "dog"))
    x = np.zeros((5, 4))
    np.savez(tmp_path / "bare.npz", x_test=x)
    bare = data.load(f"npz:{tmp_path / 'bare.npz'}", seed=0, known=model)
    assert not bare.labelled
    np.savez(tmp_path / "one.npz", x_test=x, y_test=["dog"] * 5)
    one = data.load(f"npz:{tmp_path / 'one.npz'}", seed=0, known=model)
    assert (len(one.test), one.class_names) == (5, ("dog",))


def test_texts_without_spaces_are_told_of_the_flag_for_characters(tmp_path):
    texts = np.array(["今天天气很好我们去公园散步吧明天也一样"[i % 3 :] for i in range(12)])
    spec = write(tmp_path / "own.npz", ["good", "bad"] * 6, x=texts)
    found = prepare_data(make(None, {"data": spec, "network": "text"}))
    assert any("use --tokens characters" in reported for reported in problems(found))
    recipe = make(None, {"data": spec, "network": "text", "tokens": "characters"})
    assert not any("--tokens" in reported for reported in problems(prepare_data(recipe)))


def test_texts_that_are_all_equal_are_told(tmp_path):
    spec = write(tmp_path / "own.npz", ["good", "bad"] * 6, x=np.array(["same text"] * 12))
    found = prepare_data(make(None, {"data": spec, "network": "text"}))
    assert "all training texts are equal: 'same text'" in problems(found)


def test_texts_that_the_service_would_refuse_are_told_with_their_number_and_the_longest(tmp_path):
    texts = ["a b " * 5_000, *["a b"] * 9, "a b " * 6_000, "a b " * 5_001]
    spec = write(tmp_path / "own.npz", ["good", "bad"] * 6, x=np.array(texts))
    found = prepare_data(make(None, {"data": spec, "network": "text", "validation_per_class": 0}))
    reported = [each for each in problems(found) if "the service refuses" in each]
    for each, split in zip(reported, ("training", "test"), strict=True):
        assert each.startswith(f"2 of 12 {split} texts have more than 20,000 characters, the ")
        assert "the longest 24,000:" in each


def test_texts_without_a_repeated_word_are_refused_before_training(tmp_path):
    texts = np.array([f"第{i}句话" for i in range(1500)])
    spec = write(tmp_path / "own.npz", ["good", "bad"] * 750, x=texts)
    with pytest.raises(BadData, match=r"no word is in two training texts.*--tokens characters"):
        prepare_data(make(None, {"data": spec, "network": "text"}))


def test_a_validation_split_that_eats_a_class_is_told(tmp_path):
    spec = write(tmp_path / "own.npz", [0] * 60 + [1] * 40 + [2] * 20)
    reported = problems(prepare_data(make(None, {"data": spec, "validation_per_class": 100_000})))
    assert any(
        "classes with one training row and more in validation: '0', '1', '2'" in t for t in reported
    )
    assert not any(
        "lower --validation" in t for t in problems(prepare_data(make(None, {"data": spec})))
    )


def test_a_split_may_have_a_class_of_the_model_that_the_training_rows_lack(tmp_path):
    """The training rows of the file decided which classes there are."""
    x = np.zeros((3, 4))
    file = tmp_path / "own.npz"
    np.savez(file, x_train=x, y_train=["a", "b", "a"], x_test=x, y_test=["c", "a", "d"])
    known = Known(class_names=("a", "b", "c", "d", "e"))
    found = data.load(f"npz:{file}", seed=0, known=known)
    assert [found.class_names[i] for i in found.test.labels] == ["c", "a", "d"]
    assert [found.class_names[i] for i in found.train.labels] == ["a", "b", "a"]


def test_numbers_for_a_model_with_named_classes_are_refused_with_the_array_to_add(tmp_path, capsys):
    pictures = np.zeros((10, 28, 28), np.uint8)
    arrays = {"x_test": pictures, "y_test": np.arange(10)}
    model = ROOT / "models" / "fashion" / "2"
    names = load_bundle(model).class_names
    for more, status, says in (
        (
            {},
            2,
            "if the labels number the classes from 0, add their names as the array class_names",
        ),
        ({"class_names": names}, 0, ""),
    ):
        np.savez(tmp_path / "own.npz", **arrays, **more)
        assert main(["evaluate", str(model), "--data", f"npz:{tmp_path / 'own.npz'}"]) == status
        assert says in capsys.readouterr().err
