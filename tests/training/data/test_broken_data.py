"""Wrong data are refused before a run starts, with the file and the row."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.support import data_files as files
from training.commands.cli import main

NO_RUN = ("--steps", "1", "--quiet")


def refused(capsys, tmp_path, spec, *flags):
    """The exit code and the message; nothing may have been written."""
    places = ("--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"))
    code = main(["fit", "--data", str(spec), *NO_RUN, *places, *flags])
    assert code != 0
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "runs").exists()
    return capsys.readouterr().err


@pytest.fixture
def lists(tmp_path):
    return files.write_imagenet_lt(tmp_path / "lt")


@pytest.fixture
def folders(tmp_path):
    return files.write_class_folders(tmp_path / "own", (6, 4, 2))


def train_list(tmp_path):
    return tmp_path / "lt" / "ImageNet_LT_train.txt"


def replace_line(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


def test_1_a_list_line_without_a_label(capsys, tmp_path, lists):
    replace_line(train_list(tmp_path), 5, "train/n00/4.JPEG")
    assert "ImageNet_LT_train.txt, line 5" in refused(capsys, tmp_path, lists)


def test_2_a_list_line_whose_image_is_not_there(capsys, tmp_path, lists):
    replace_line(train_list(tmp_path), 3, "train/n00/absent.JPEG 0")
    err = refused(capsys, tmp_path, lists)
    assert "ImageNet_LT_train.txt, line 3" in err
    assert "absent.JPEG" in err


def test_3_a_test_label_that_training_has_not(capsys, tmp_path, lists):
    path = tmp_path / "lt" / "ImageNet_LT_test.txt"
    replace_line(path, 2, "test/n00/1.JPEG 7")
    assert "ImageNet_LT_test.txt, line 2: label 7 is out of range" in refused(
        capsys, tmp_path, lists
    )


def test_4_a_class_without_examples(capsys, tmp_path, lists):
    replace_line(train_list(tmp_path), 20, "train/n02/1.JPEG 4")
    assert "no training example" in refused(capsys, tmp_path, lists)


@pytest.mark.parametrize("memory", ["--in-memory", "--no-in-memory"])
def test_5_a_truncated_jpeg(capsys, tmp_path, folders, memory):
    victim = folders / "bee" / "002.jpg"
    victim.write_bytes(victim.read_bytes()[:-300])
    assert str(victim) in refused(
        capsys, tmp_path, f"images:{folders}", memory, "--image-size", "32"
    )


def test_6_a_file_that_is_no_image(capsys, tmp_path, folders):
    victim = folders / "cat" / "000.jpg"
    victim.write_text("<html>not found</html>")
    assert str(victim) in refused(capsys, tmp_path, f"images:{folders}")


def test_7_an_image_of_a_kind_that_is_not_served(capsys, tmp_path, folders):
    victim = folders / "ant" / "extra.gif"
    Image.new("RGB", (8, 8)).save(victim)
    assert str(victim) in refused(capsys, tmp_path, f"images:{folders}")


def test_8_an_empty_class_folder(capsys, tmp_path, folders):
    (folders / "dog").mkdir()
    err = refused(capsys, tmp_path, f"images:{folders}")
    assert "'dog'" in err
    assert str(folders) in err


def inaturalist(tmp_path, change):
    root = tmp_path / "inat"
    root.mkdir()
    files.write_inaturalist(root)
    path = root / "train2018.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return f"inaturalist:{root}"


def test_9_an_annotation_of_an_unknown_image_or_category(capsys, tmp_path):
    spec = inaturalist(tmp_path, lambda d: d["annotations"][7].update(image_id=999))
    assert "train2018.json, annotations, row 7: image_id 999" in refused(capsys, tmp_path, spec)


def test_10_an_annotation_of_an_unknown_category(capsys, tmp_path):
    spec = inaturalist(tmp_path, lambda d: d["annotations"][2].update(category_id=55))
    assert "train2018.json, annotations, row 2: category_id 55" in refused(capsys, tmp_path, spec)


def test_11_json_that_is_cut_off(capsys, tmp_path):
    spec = inaturalist(tmp_path, lambda d: None)
    path = tmp_path / "inat" / "val2018.json"
    path.write_text(path.read_text()[:-40])
    err = refused(capsys, tmp_path, spec)
    assert "val2018.json" in err
    assert "not JSON" in err


def cifar(tmp_path, name, **changed):
    folder = files.write_cifar10(tmp_path)
    batch = pickle.loads((folder / name).read_bytes(), encoding="bytes")
    batch.update({key.encode(): value for key, value in changed.items()})
    (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return f"cifar10:{tmp_path}"


def test_12_a_cifar_label_out_of_range(capsys, tmp_path):
    spec = cifar(tmp_path, "data_batch_3", labels=[0] * 17 + [10] + [0] * 22)
    err = refused(capsys, tmp_path, spec)
    assert "data_batch_3, row 17: label 10 is out of range" in err


def test_13_a_cifar_batch_of_another_shape(capsys, tmp_path):
    spec = cifar(tmp_path, "data_batch_2", data=np.zeros((40, 1024), np.uint8))
    assert "data_batch_2" in refused(capsys, tmp_path, spec)


def test_14_a_cifar_batch_that_is_missing_or_cut_off(capsys, tmp_path):
    folder = files.write_cifar10(tmp_path)
    victim = folder / "data_batch_4"
    victim.write_bytes(victim.read_bytes()[:5000])
    assert "data_batch_4" in refused(capsys, tmp_path, f"cifar10:{tmp_path}")
    victim.unlink()
    assert "data_batch_4 missing" in refused(capsys, tmp_path, f"cifar10:{tmp_path}")


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return eval, ("1 / 0",)


def test_15_a_pickle_that_would_run_code(capsys, tmp_path):
    folder = files.write_cifar10(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Harmful()}))
    assert "eval" in refused(capsys, tmp_path, f"cifar10:{tmp_path}")


def table(tmp_path, *lines):
    path = tmp_path / "own.csv"
    good = [f"{i}.5,{i % 2},{'ab'[i % 2]},{'train' if i % 3 else 'test'}" for i in range(12)]
    path.write_text("\n".join(["x,z,kind,part", *good, *lines]) + "\n")
    return f"table:{path}?label=kind&split=part"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tall,1,a,train", "column 'x': 'tall' is not a number"),
        ("1.5,1,,train", "column 'kind': has no label"),
        ("1.5,1,c,test", "class 'c' has no training row"),
        ("1.5,1,a,dev", "column 'part': 'dev'"),
        ("inf,1,a,train", "column 'x': inf"),
    ],
)
def test_16_a_wrong_cell_of_a_table(capsys, tmp_path, line, said):
    err = refused(capsys, tmp_path, table(tmp_path, "7,1,a,train", line))
    assert "own.csv, row 13 (line 15)" in err
    assert said in err


def test_17_a_row_of_another_length(capsys, tmp_path):
    err = refused(capsys, tmp_path, table(tmp_path, "1,2,a"))
    assert "own.csv" in err
    assert "14" in err  # the row of the file, its header counted


def test_18_a_column_that_is_not_there(capsys, tmp_path):
    spec = table(tmp_path).replace("label=kind", "label=sort")
    assert "own.csv: has no column 'sort'" in refused(capsys, tmp_path, spec)


def test_19_parquet_that_is_cut_off(capsys, tmp_path):
    path = tmp_path / "own.parquet"
    path.write_bytes(b"PAR1 nothing")
    assert "own.parquet" in refused(capsys, tmp_path, f"table:{path}?label=kind")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("own.csv", "did you mean 'table:own.csv?label=COLUMN'?"),
        ("own.csv?label=a", "did you mean 'table:own.csv?label=a'?"),
        ("folder", "did you mean 'images:folder'?"),
        ("table:own.tsv?label=a", "save the table as CSV with commas, or as Parquet"),
        ("table:book.xlsx?label=a", "(it is a ZIP archive or a workbook: unpack it, or save it"),
        ("table:titled.csv?label=a", "the first line of the file must hold the names of its"),
        ("images:https://example.org/birds", "is an address; training reads folders"),
    ],
)
def test_21_data_in_another_form_are_refused_with_what_to_give(
    capsys, tmp_path, monkeypatch, spec, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("own.csv", "own.tsv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "titled.csv").write_text("# exported by a tool\na,b\n1,2\n")
    assert said in refused(capsys, tmp_path, spec)


def test_22_a_list_with_the_paths_of_windows(capsys, tmp_path, lists):
    replace_line(train_list(tmp_path), 3, "train\\n00\\2.JPEG 0")
    assert "with / between folders" in refused(capsys, tmp_path, lists)


def test_data_finds_an_unreadable_image_before_a_run_does(capsys, folders):
    victim = folders / "bee" / "001.jpg"
    victim.write_bytes(victim.read_bytes()[:400])
    assert main(["data", f"images:{folders}"]) == 1
    assert str(victim) in capsys.readouterr().err
