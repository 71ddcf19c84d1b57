"""Digits, Fashion-MNIST and a user's npz: read right, or refused with file and row."""

import gzip
import struct

import numpy as np
import pytest

from training.data.sources import fashion
from training.data.sources import load as data
from training.faults import BadData, WrongUse


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder, *, zipped=False, rows=40):
    rng = np.random.default_rng(0)
    for (split, what), name in fashion.FILES.items():
        n = rows if split == "train" else rows // 2
        content = idx(rng.integers(0, 256, (n, 28, 28)) if what == "images" else np.arange(n) % 10)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_read_from_four_files_gzipped_or_not(tmp_path, zipped):
    write_fashion(tmp_path, zipped=zipped)
    found = data.load(f"fashion-mnist:{tmp_path}", seed=0)
    assert found.class_counts.tolist() == [4] * 10
    assert found.train.inputs.shape == (40, 28, 28, 1)
    assert len(found.test) == 20


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-7], "bytes"),
        (lambda content: b"\0\0\x0d" + content[3:], "not an idx file"),
        (lambda content: gzip.compress(content)[:-20], "cannot be read"),
        (lambda content: content[:8] + bytes([0, 0, 0, 3]) + content[12:], "bytes"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, said):
    write_fashion(tmp_path)
    victim = tmp_path / fashion.FILES["train", "images"]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(BadData, match=said) as refused:
        data.load(f"fashion-mnist:{tmp_path}", seed=0)
    assert victim.name in str(refused.value)


def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path):
    write_fashion(tmp_path)
    victim = tmp_path / fashion.FILES["train", "labels"]
    content = bytearray(victim.read_bytes())
    content[8 + 17] = 10
    victim.write_bytes(content)
    with pytest.raises(BadData, match=r"train-labels.*row 17: label 10 is out of range"):
        data.load(f"fashion-mnist:{tmp_path}", seed=0)


def test_digits_have_the_same_test_rows_whatever_the_seed():
    one, other = (data.load("digits", seed=seed) for seed in (0, 1))
    assert np.array_equal(one.test.inputs, other.test.inputs)
    assert len(one.test) == 400
    assert len(one.train) + len(one.test) == 1797


def arrays(**changed):
    rng = np.random.default_rng(0)
    found = {
        "x_train": rng.normal(size=(30, 4)),
        "y_train": np.arange(30) % 3,
        "x_test": rng.normal(size=(6, 4)),
        "y_test": np.arange(6) % 3,
    }
    return {name: value for name, value in {**found, **changed}.items() if value is not None}


def loaded(tmp_path, **changed):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changed))
    return data.load(f"npz:{path}", seed=0)


def with_nan():
    x = np.ones((30, 4))
    x[12, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x_test": None}, "has no x_test"),
        ({"y_train": np.full(30, 7)}, "no training example of 7 of 8 classes"),
        ({"y_train": np.arange(30) % 3 - 1}, "y_train: the lowest label is -1, and there is a 0"),
        (
            {"y_test": np.array([0, 1, 2, 3, 1, 2]), "class_names": ["a", "b", "c"]},
            "y_test, row 3: label 3 is out of range",
        ),
        ({"y_train": np.linspace(0, 2, 30)}, "whole numbers or names"),
        ({"x_train": with_nan()}, "x_train, row 12: holds NaN"),
        ({"x_test": np.ones((6, 5))}, "x_test: rows have shape"),
        ({"y_test": np.arange(5) % 3}, "x_test has 6 rows, y_test 5"),
        ({"x_val": np.ones((6, 4))}, "x_val and y_val must be given together"),
        ({"class_names": ["a", "b", "a"]}, "class_names: 'a'"),
        ({"x_train": np.array([{}] * 30)}, "x_train: .*Python objects"),
        ({"y_train": np.zeros(30, int), "y_test": np.zeros(6, int)}, "expected"),
    ],
)
def test_wrong_arrays_are_refused_with_the_member_and_the_row(tmp_path, changed, said):
    with pytest.raises(BadData, match=said):
        loaded(tmp_path, **changed)


def test_labels_may_be_names(tmp_path):
    names = np.array(["yak", "ant", "bee"])
    found = loaded(tmp_path, y_train=names[np.arange(30) % 3], y_test=names[np.arange(6) % 3])
    assert found.class_names == ("ant", "bee", "yak")
    assert found.train.labels[:3].tolist() == [2, 0, 1]
    with pytest.raises(BadData, match="y_test, row 1: 'cat' is not a class"):
        loaded(tmp_path, y_train=names[np.arange(30) % 3], y_test=np.array(["ant", "cat"] * 3))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(BadData, match=r"own\.npz"):
        data.load(f"npz:{path}", seed=0)
    with pytest.raises(WrongUse, match="no such file"):
        data.load("npz:absent.npz", seed=0)


def test_bytes_of_three_dimensions_are_images(tmp_path):
    rng = np.random.default_rng(0)
    found = loaded(
        tmp_path,
        x_train=rng.integers(0, 256, (30, 9, 8), dtype=np.uint8),
        x_test=rng.integers(0, 256, (6, 9, 8), dtype=np.uint8),
    )
    assert found.kind == "image"
    assert found.image.size == (9, 8)
    assert found.image.mean[0] == pytest.approx(0.5, abs=0.02)
