"""Image folders and lists as people have them."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import data_files as files
from training.commands.cli import main
from training.data.dataset import Known
from training.data.image_files import made_ready
from training.data.order import Part
from training.data.sources import load as data
from training.faults import BadData


@pytest.fixture
def folders(tmp_path):
    return files.write_class_folders(tmp_path / "own", (10, 6, 6))


def load(folder, **options):
    return data.load(f"images:{folder}", seed=0, **options)


@pytest.mark.parametrize(
    "hidden",
    ["ant/.ipynb_checkpoints", "__MACOSX/ant", "ant/__MACOSX", ".x/y", "@eaDir/ant", "ant/@eaDir"],
)
def test_folders_that_tools_leave_behind_are_left_out_at_every_depth(folders, hidden):
    (folders / hidden).mkdir(parents=True)
    shutil.copy(folders / "ant" / "000.jpg", folders / hidden / "copy.jpg")
    found = load(folders)
    assert found.class_names == ("ant", "bee", "cat")
    assert len(found.whole) == 22


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("training", "dev", "testing"),
        ("training_set", "validation_set", "test_set"),
    ],
)
def test_the_usual_names_of_the_splits_are_known(tmp_path, train, val, test):
    for name, counts in ((train, (5, 4, 3)), (val, (2, 2, 2)), (test, (1, 1, 1))):
        files.write_class_folders(tmp_path / name, counts)
    (tmp_path / "notes" / "old").mkdir(parents=True)
    found = load(tmp_path)
    assert [len(split) for split in (found.train, found.val, found.test)] == [12, 6, 3]
    assert any("left out: notes" in note for note in found.notes)


@pytest.mark.parametrize("bare", ["val", "test"])
def test_a_split_without_images_is_refused_and_of_no_account_to_a_model(tmp_path, bare):
    other = {"val": "test", "test": "val"}[bare]
    for name, counts in (("train", (5, 4, 3)), (other, (2, 2, 2))):
        files.write_class_folders(tmp_path / name, counts)
    (tmp_path / bare / "ant").mkdir(parents=True)
    with pytest.raises(BadData, match=f"{bare}: has no image in a class folder; .*remove this"):
        load(tmp_path)
    found = load(tmp_path, known=Known(class_names=("ant", "bee", "cat")))
    assert getattr(found, bare) is None
    assert len(getattr(found, other)) == 6


def test_a_class_may_be_called_train(tmp_path):
    files.write_class_folders(tmp_path, (4, 4, 4), names=("bus", "train", "tram"))
    assert load(tmp_path).class_names == ("bus", "train", "tram")


@pytest.mark.parametrize("suffix", [".JPG", ".jpe", ".jfif"])
def test_images_are_known_by_every_suffix_of_their_form(folders, suffix):
    for path in (folders / "bee").iterdir():
        path.rename(path.with_suffix(suffix))
    assert np.bincount(load(folders).whole.labels).tolist() == [10, 6, 6]


def test_a_folder_above_the_right_one_is_told(folders):
    with pytest.raises(BadData, match=f"one class folder, own, .* is images:{folders} meant"):
        load(folders.parent)


def test_linked_folders_are_entered_and_dangling_links_are_told(folders, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(folders / "bee", moved)
    (folders / "bee").mkdir()
    (folders / "bee" / "more").symlink_to(moved)
    (folders / "bee" / "up").symlink_to(folders / "bee")
    (folders / "bee" / "all").symlink_to(folders)  # where the other classes' images are
    (folders / "bee" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = load(folders)
    assert np.bincount(found.whole.labels).tolist() == [10, 6, 6]
    assert any("1 links to missing files" in note for note in found.notes)


def test_pipes_and_images_outside_a_class_folder_are_told_apart_from_missing_ones(folders):
    os.mkfifo(folders / "bee" / "pipe.jpg")
    shutil.copy(folders / "ant" / "000.jpg", folders / "stray.jpg")
    found = load(folders)
    assert len(found.whole) == 22
    assert any("1 pipes, sockets and devices are left out" in note for note in found.notes)
    assert any(
        "1 images in no class folder are left out, such as stray.jpg" in note
        for note in found.notes
    )
    assert not any("missing" in note for note in found.notes)


def test_a_folder_too_deep_to_read_is_refused_and_not_taken_for_an_empty_one(folders):
    home = Path.cwd()
    os.chdir(folders / "bee")
    try:
        for _ in range(30):
            Path("x" * 200).mkdir()
            os.chdir("x" * 200)
        with pytest.raises(BadData, match="File name too long"):
            load(folders)
    finally:
        os.chdir(home)
        subprocess.run(["rm", "-rf", str(folders)], check=True)


def test_file_names_that_are_not_utf8_are_read(folders):
    old = folders / "bee" / "000.jpg"
    old.rename(os.fsdecode(os.fsencode(old.parent) + b"/\xff\xfe.jpg"))
    assert len(load(folders).whole) == 22


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_broken_images_are_named_at_once_and_can_be_left_out(folders, in_memory, capsys):
    (folders / "ant" / "000.jpg").write_bytes(b"")
    (folders / "cat" / "001.jpg").write_text("<html>not found</html>")
    read = {"in_memory": in_memory, "part": Part()}
    with pytest.raises(BadData, match="2 of 22 images cannot be read") as refused:
        made_ready(load(folders), **read)
    assert "000.jpg" in str(refused.value)
    assert "001.jpg" in str(refused.value)
    kept = made_ready(load(folders), **read, skip_broken=True)
    assert len(kept.train) + len(kept.test) == 20
    assert np.asarray(kept.train.inputs).shape[0] == len(kept.train.labels)
    assert "001.jpg" in capsys.readouterr().err
    (folders / "cat" / "002.jpg").write_bytes(b"")
    with pytest.raises(BadData, match="too many to leave out"):
        made_ready(load(folders), **read, skip_broken=True)


def test_a_fit_leaves_broken_images_out_when_it_is_asked_to(folders, tmp_path):
    (folders / "ant" / "000.jpg").write_bytes(b"")
    run = ["fit", "--data", f"images:{folders}", "--network", "linear", "--steps", "3", "--quiet",
           "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]  # fmt: skip
    assert main(run) == 1
    assert main([*run, "--skip-broken"]) == 0


def test_images_for_a_model_need_neither_all_classes_nor_splits(tmp_path):
    folder = files.write_class_folders(tmp_path / "own", (3,), names=("bee",))
    found = load(folder, known=Known(class_names=("ant", "bee", "cat")))
    assert found.whole.labels.tolist() == [1, 1, 1]


def test_lists_may_begin_with_a_mark_count_from_one_and_name_files_elsewhere(tmp_path):
    spec = files.write_imagenet_lt(tmp_path)
    for path in tmp_path.glob("*.txt"):
        lines = [line.rpartition(" ") for line in path.read_text().splitlines()]
        text = "".join(f"{tmp_path}/{name} {int(label) + 1}\n" for name, _, label in lines)
        path.write_text(text, encoding="utf-8-sig")
    (tmp_path / "other").mkdir()
    found = data.load(spec.rpartition("@")[0] + f"@{tmp_path / 'other'}", seed=0)
    assert found.class_names == ("n00", "n01", "n02")
    assert sorted(set(found.train.labels)) == [0, 1, 2]


def test_one_of_several_lists_of_inaturalist_can_be_chosen_and_a_part_be_used(tmp_path):
    files.write_inaturalist(tmp_path, train=(12, 6, 0))
    shutil.copy(tmp_path / "train2018.json", tmp_path / "train_mini.json")
    with pytest.raises(ValueError, match=r"choose one: inaturalist:.*\?train=train2018.json"):
        data.load(f"inaturalist:{tmp_path}", seed=0)
    found = data.load(f"inaturalist:{tmp_path}?train=train_mini.json", seed=0)
    assert found.class_names == ("species 0", "species 1")
    assert found.notes == ("1 of 3 categories have no training image and are left out",)
