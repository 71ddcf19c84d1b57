"""Each kind of data, written by independent code, loads with the right rows, labels and names."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.support import data_files as files
from training.data.dataset import counts_of
from training.data.sources import load as data
from training.data.sources.listing import ImageOptions
from training.run.prepare import prepare_data
from training.run.recipe_file import make


def counts(split, classes):
    return counts_of(split.labels, classes).tolist()


@pytest.mark.parametrize("parent", [True, False])
def test_cifar_10_is_read_from_its_batches_or_their_parent(tmp_path, parent):
    folder = files.write_cifar10(tmp_path)
    found = data.load(f"cifar10:{tmp_path if parent else folder}", seed=0)
    assert found.class_counts.tolist() == [20] * 10
    assert counts(found.test, 10) == [4] * 10
    assert found.class_names[3] == "kind 3"
    assert found.train.inputs.shape == (200, 32, 32, 3)
    # the red plane comes first in the file, and is the first channel here
    assert (found.train.inputs[..., 0] == found.train.labels[:, None, None] * 20).all()


def test_cifar_100_has_its_fine_labels(tmp_path):
    files.write_cifar100(tmp_path)
    found = data.load(f"cifar100:{tmp_path}", seed=0)
    assert found.class_counts.tolist() == [2] * 100
    assert found.class_names[99] == "fine 99"


def test_a_folder_a_class_is_split_by_the_seed(tmp_path):
    files.write_class_folders(tmp_path, (20, 10, 5))
    one, same, other = (data.load(f"images:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert one.class_names == ("ant", "bee", "cat")
    assert np.add(counts(one.train, 3), counts(one.test, 3)).tolist() == [20, 10, 5]
    assert counts(one.test, 3) == [4, 2, 1]
    assert list(one.test.inputs.paths) == list(same.test.inputs.paths)
    assert list(one.test.inputs.paths) != list(other.test.inputs.paths)


def test_folders_may_bring_their_splits(tmp_path):
    for split, sizes in (("train", (9, 5, 2)), ("val", (2, 2, 2)), ("test", (3, 3, 3))):
        files.write_class_folders(tmp_path / split, sizes, suffix="png")
    found = data.load(f"images:{tmp_path}", seed=0)
    assert [counts(s, 3) for s in (found.train, found.val, found.test)] == [
        [9, 5, 2], [2, 2, 2], [3, 3, 3],
    ]  # fmt: skip


def test_imagenet_lt_lists_are_read_and_classes_named_after_their_folders(tmp_path):
    found = data.load(files.write_imagenet_lt(tmp_path), seed=0)
    assert [counts(s, 3) for s in (found.train, found.val, found.test)] == [
        [12, 6, 2], [2, 2, 2], [3, 3, 3],
    ]  # fmt: skip
    assert found.class_names == ("n00", "n01", "n02")


def test_inaturalist_s_validation_images_are_the_test_split(tmp_path):
    found = data.load(f"inaturalist:{files.write_inaturalist(tmp_path)}", seed=0)
    assert counts(found.train, 3) == [12, 6, 2]
    assert counts(found.test, 3) == [2, 2, 2]
    assert found.val is None
    assert found.class_names == ("species 0", "species 1", "species 2")


def test_images_of_one_small_size_stay_as_they_are_and_others_become_224(tmp_path):
    files.write_class_folders(tmp_path, (3, 3, 3))
    assert data.load(f"images:{tmp_path}", seed=0).image.size == (36, 40)
    Image.new("RGB", (50, 50)).save(tmp_path / "ant" / "other.png")
    found = data.load(f"images:{tmp_path}", seed=0).image
    assert (found.size, found.resize) == ((224, 224), 256)
    asked = ImageOptions(size=32, resize="crop", color="L", mean=(0.4,), std=(0.3,))
    found = data.load(f"images:{tmp_path}", seed=0, options=asked).image
    assert (found.size, found.resize, found.color) == ((32, 32), "crop", "L")
    assert (found.mean, found.std) == ((0.4,), (0.3,))


def rows_of_a_table(n=60):
    rng = np.random.default_rng(0)
    labels = [("oak", "elm", "ash")[i % 3] for i in range(n)]
    parts = [("train", "train", "val", "test")[i // 3 % 4] for i in range(n)]
    return rng.normal(size=(n, 2)).round(3), labels, parts


def write_csv(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_numbers_keeps_its_columns_classes_and_splits(tmp_path, kind):
    x, labels, parts = rows_of_a_table()
    columns = {"height": x[:, 0].tolist(), "tree": labels, "width": x[:, 1].tolist(), "part": parts}
    path = tmp_path / f"own.{kind}"
    if kind == "csv":
        write_csv(path, columns)
    else:
        parquet.write_table(pa.table(columns), path)
    found = data.load(f"table:{path}?label=tree&split=part", seed=0)
    assert found.class_names == ("ash", "elm", "oak")
    assert found.origin["columns"] == ["height", "width"]
    assert [len(s) for s in (found.train, found.val, found.test)] == [30, 15, 15]
    assert np.allclose(found.train.inputs[0], x[0])
    assert found.train.labels[:3].tolist() == [2, 1, 0]


def test_a_table_without_splits_is_split_by_the_seed_and_may_hold_text(tmp_path):
    texts, labels = files.texts((30, 12, 2))
    path = write_csv(tmp_path / "own.csv", {"id": range(44), "review": texts, "label": labels})
    found = data.load(f"table:{path}?label=label&text=review", seed=0)
    assert found.kind == "text"
    assert len(found.train) + len(found.test) == 44
    assert counts(found.train, 3) == [10, 1, 24]  # negative, peculiar (of two rows), positive
    again = data.load(f"table:{path}?label=label&text=review", seed=1)
    assert list(again.test.inputs) != list(found.test.inputs)


def test_whole_numbers_are_classes_in_their_own_order(tmp_path):
    path = write_csv(tmp_path / "own.csv", {"x": range(30), "y": [10 - i % 3 for i in range(30)]})
    assert data.load(f"table:{path}?label=y", seed=0).class_names == ("8", "9", "10")


def test_validation_is_set_aside_before_the_profile_is_applied(tmp_path):
    files.write_cifar10(tmp_path, per_class=20)
    given = {"data": f"cifar10:{tmp_path}", "profile": "exp", "imbalance_ratio": 10.0}
    found = prepare_data(make(None, given))
    assert counts(found.val, 10) == [20] * 10  # a fifth of 100, there being fewer than 2,000 rows
    assert counts(found.train, 10)[0] == 80
    assert counts(found.train, 10)[9] == 8
    everything = prepare_data(make(None, given | {"validation_per_class": 0}))
    assert counts(everything.train, 10)[0] == 100
    assert everything.val is None
