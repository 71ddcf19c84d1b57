"""A model of a table is scored by the names of its columns, on all rows that are new to it."""

import csv
import json
import shlex
import shutil
from html import escape

import numpy as np
import pytest
from pyarrow import parquet

from training.commands.cli import main

COLUMNS = ("f0", "f1", "f2", "f3")
NAMES = ("cat", "dog", "eel")


def drawn(counts, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(3), counts))
    centres = np.array([[0, 0, 0, 0], [3, -3, 1, 0], [-3, 1, 3, 2]])
    return centres[labels] + rng.normal(size=(len(labels), 4)), labels


def write(path, rows, *, labels=None, order=COLUMNS, renamed=None, **more):
    table = {name: rows[:, COLUMNS.index(name)].round(4) for name in order}
    table = {(renamed or {}).get(name, name): column for name, column in table.items()}
    if labels is not None:
        table["label"] = [NAMES[label] for label in labels]
    table |= more
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return f"table:{path}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with train.csv and the model that was trained on it."""
    home = tmp_path_factory.mktemp("table")
    rows, labels = drawn((120, 80, 60), seed=0)
    spec = write(home / "train.csv", rows, labels=labels)
    flags = ["--models", str(home / "models"), "--runs", str(home / "runs"), "--quiet"]
    assert main(["fit", "--name", "own", "--data", f"{spec}?label=label", "--network", "linear",
                 "--steps", "150", *flags]) == 0  # fmt: skip
    return home


@pytest.fixture
def new():
    return drawn((30, 20, 10), seed=9)


def test_reordered_columns_score_as_they_did_in_order(home, new, tmp_path, command):
    rows, labels = new
    scores = []
    for name, order in (("same", COLUMNS), ("turned", ("f2", "f0", "f3", "f1"))):
        spec = write(tmp_path / f"{name}.csv", rows, labels=labels, order=order)
        code, found, err = command(
            "evaluate", home / "models/own/1", "--data", f"{spec}?label=label", "--json"
        )
        assert code == 0
        assert "using all 60 rows" in err
        assert found["n"] == 60
        scores.append((found["error"], found["nll"]))
    assert scores[0] == scores[1]
    assert scores[0][0] < 0.1


def test_evaluate_names_the_version_that_it_published_and_says_each_thing_once(
    home, new, tmp_path, capsys
):
    shutil.copytree(home / "models/own/1", tmp_path / "own/1")
    rows, labels = new
    spec = write(tmp_path / "new.csv", rows, labels=labels) + "?label=label"
    arguments = ["evaluate", str(tmp_path / "own/1"), "--data", spec]
    assert main([*arguments, "--publish"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'own/2'}\n"
    assert printed.err.count("all 60 rows") == 1
    page = (tmp_path / "own/2/report.html").read_text(encoding="utf-8")
    assert f"<code>{escape(shlex.join(['training', *arguments, '--publish']))}</code>" in page
    assert "calibrated from" in page
    one, two = (tmp_path / "own" / version / "weights.pt" for version in "12")
    assert one.read_bytes() == two.read_bytes()

    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "load it" not in printed.err, "nothing was published"


def test_renamed_columns_are_refused_by_name(home, new, tmp_path, command):
    rows, labels = new
    renamed = write(tmp_path / "own.csv", rows, labels=labels, renamed={"f1": "height"})
    code, _, err = command("evaluate", home / "models/own/1", "--data", f"{renamed}?label=label")
    assert code == 2
    assert "lacks 1 of the model's 4 columns: f1; columns the model does not know: height" in err


def test_the_training_file_itself_is_scored_on_its_test_rows(home, command):
    spec = f"table:{home / 'train.csv'}?label=label"
    _, found, err = command("evaluate", home / "models/own/1", "--data", spec, "--json")
    assert found["n"] == 52  # a fifth
    assert "using all" not in err


def test_test_rows_alone_are_scored(home, new, tmp_path, command):
    rows, labels = new
    spec = write(tmp_path / "own.csv", rows, labels=labels, part=["test"] * 60)
    where = f"{spec}?label=label&split=part"
    _, found, _ = command("evaluate", home / "models/own/1", "--data", where, "--json")
    assert (found["n"], found["split"]) == (60, "test")
    code, _, err = command("evaluate", home / "models/own/1", "--data", where, "--split", "val")
    assert code == 2
    assert "has no val rows; it has --split test" in err


def without_calibration(model, tmp_path):
    """A copy of a model as it was published before models carried their calibration."""
    folder = tmp_path / "older" / "own" / "1"
    shutil.copytree(model, folder)
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["estimation"]
    (folder / "model.json").write_text(json.dumps(manifest))
    return folder


def test_rows_without_labels_are_estimated_with_labelled_ones_held_out(home, tmp_path, command):
    rows, _ = drawn((100, 250, 150), seed=4)
    bare = write(tmp_path / "bare.csv", rows)
    model = home / "models/own/1"
    code, found, _ = command("estimate", model, "--data", bare, "--json")
    assert code == 0, "the model carries its own calibration"
    assert found["n"] == 500
    code, _, err = command("estimate", without_calibration(model, tmp_path), "--data", bare)
    assert code == 2
    assert "give --held-out" in err
    held, labels = drawn((60, 60, 60), seed=5)
    spec = write(tmp_path / "held.csv", held, labels=labels)
    code, found, _ = command(
        "estimate", model, "--data", bare, "--held-out", f"{spec}?label=label", "--json"
    )
    assert code == 0
    assert (found["n"], found["n_held_out"]) == (500, 180)
    assert found["methods"]["em"]["prior"] == pytest.approx([0.2, 0.5, 0.3], abs=0.08)
    code, _, err = command("evaluate", model, "--data", bare)
    assert code == 2
    assert "has no labels, so it cannot be scored" in err


def test_a_table_of_categories_and_gaps_is_evaluated_and_scored_as_it_is(tmp_path, command):
    rng = np.random.default_rng(0)
    labels = np.repeat(NAMES, [60, 40, 20])
    sizes = np.repeat([0.0, 4.0, 8.0], [60, 40, 20]) + rng.normal(size=120)
    table = {
        "city": [f"city {name[0]}" if rng.random() < 0.8 else "" for name in labels],
        "size": [f"{size:.3f}" if i % 6 else "" for i, size in enumerate(sizes)],
        "label": labels,
    }
    train = write_all(tmp_path / "train.csv", table)
    code, _, err = command(
        "fit", "--name", "own", "--data", f"{train}?label=label", "--network", "linear",
        "--models", tmp_path / "models", "--runs", tmp_path / "runs", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    model = tmp_path / "models/own/1"
    new = write_all(tmp_path / "new.csv", dict(reversed(table.items())))
    code, found, err = command("evaluate", model, "--data", f"{new}?label=label", "--json")
    assert (code, found["n"]) == (0, 120), err
    assert found["balanced_error"] < 0.1
    code, reported, err = command(
        "score", tmp_path / "new.csv", "--model", model, "--out", tmp_path / "out.parquet", "--json"
    )
    assert code == 0, err
    assert reported["n"] == 120
    answers = parquet.read_table(tmp_path / "out.parquet").column("label").to_pylist()
    assert np.mean(np.array(answers) != labels) < 0.1
    plain = write_all(tmp_path / "words.csv", table | {"size": ["tall"] * 120})
    code, _, err = command("evaluate", model, "--data", f"{plain}?label=label")
    assert code == 1
    assert "column 'size': 'tall' is not a number" in err


def write_all(path, table):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return f"table:{path}"
