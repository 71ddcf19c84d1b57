"""A foreign pipeline over named columns is imported, scored, calibrated and served."""

import contextlib
import csv
import io
import json
import shutil

import httpx
import numpy as np
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from service.__main__ import main as service
from tests.support.server import running
from training.commands.cli import main as training

COLUMNS = ["age", "fare", "sex"]
ROWS = 900


def drawn():
    """Columns as [n, 1] arrays, and labels."""
    rng = np.random.default_rng(0)
    age = rng.normal(40, 12, (ROWS, 1)).round(1)
    fare = rng.gamma(2, 15, (ROWS, 1)).round(2)
    sex = rng.choice(["f", "m"], (ROWS, 1))
    lean = 0.08 * (age - 40) - 0.05 * (fare - 30) + (sex == "f")
    noise = rng.gumbel(size=(ROWS, 3)) + np.concatenate([lean, -lean, 0 * lean], axis=1)
    labels = np.array(["stays", "leaves", "returns"])[noise.argmax(axis=1)]
    age[::17] = np.nan
    return {"age": age, "fare": fare, "sex": sex}, labels


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(folder of version 1, CSV of rows that were not trained on, their probabilities, labels)."""
    home = tmp_path_factory.mktemp("pipeline")
    columns, labels = drawn()
    table = np.concatenate([columns[name].astype(object) for name in COLUMNS], axis=1)
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    front = ColumnTransformer([("n", numbers, [0, 1]), ("t", OneHotEncoder(), [2])])
    pipeline = make_pipeline(front, LogisticRegression()).fit(table[:500], labels[:500])
    types = [(n, FloatTensorType([None, 1])) for n in COLUMNS[:2]]
    types.append(("sex", StringTensorType([None, 1])))
    model = to_onnx(pipeline, initial_types=types, target_opset=17)  # it ends in a ZipMap
    (home / "pipeline.onnx").write_bytes(model.SerializeToString())
    new = home / "new.csv"
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "sex", "fare", "age"])
        for row, label in zip(table[500:], labels[500:], strict=True):
            writer.writerow([label, row[2], row[1], "" if np.isnan(row[0]) else row[0]])
    counts = dict(
        zip(*map(np.ndarray.tolist, np.unique(labels[:500], return_counts=True)), strict=True)
    )
    (home / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    arguments = ["import", str(home / "pipeline.onnx"), "--name", "people"]
    arguments += ["--models", str(home / "models"), "--class-counts", str(home / "counts.json")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert service(arguments) == 0
    probabilities = pipeline.predict_proba(table[500:])
    return home / "models" / "people" / "1", new, probabilities, labels[500:], pipeline.classes_


def asked(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert training([*map(str, arguments), "--json"]) == 0
    return json.loads(out.getvalue())


def test_a_pipeline_over_columns_is_scored_as_its_own_library_does(imported):
    folder, new, probabilities, labels, classes = imported
    scores = asked("evaluate", folder, "--data", f"table:{new}?label=label", "--tau", 0)
    wrong = classes[probabilities.argmax(axis=1)] != labels
    assert scores["n"] == len(labels)
    assert scores["error"] == pytest.approx(wrong.mean())


def test_a_model_of_unknown_counts_has_no_scores_of_an_adjustment(imported, tmp_path):
    folder, new, _, _, _ = imported
    unknown = tmp_path / "models" / "people" / "1"
    shutil.copytree(folder, unknown)
    manifest = json.loads((unknown / "model.json").read_text(encoding="utf-8"))
    manifest |= {"class_counts": None, "default_tau": 0}
    (unknown / "model.json").write_text(json.dumps(manifest), encoding="utf-8")
    scores = asked("evaluate", unknown, "--data", f"table:{new}?label=label")
    assert set(scores["at_tau"]) == {"0", "chosen"}


def test_calibrating_it_publishes_a_version_with_a_report_that_the_service_shows(imported):
    folder, new, probabilities, labels, classes = imported
    found = asked("evaluate", folder, "--data", f"table:{new}?label=label", "--publish")
    version = folder.parent / "2"
    assert found["published"] == str(version)
    report = json.loads((version / "report.json").read_text(encoding="utf-8"))
    assert report["validation"]["n"] + report["test"]["n"] == len(labels)
    assert {"0", "1", "chosen"} == set(report["at_tau"])
    assert report["tau"]["validation_curve"]
    manifest = json.loads((version / "model.json").read_text(encoding="utf-8"))
    assert manifest["temperature"] == report["temperature"]
    assert len(manifest["input"]["statistics"]["mean"]) == 2
    with running(folder.parent.parent) as server:
        shown = httpx.get(f"{server.url}/models/people/report").json()
        assert shown["at_tau"] == report["at_tau"]
        asked_rows = [sample["instance"] for sample in report["samples"]]
        answer = httpx.post(f"{server.url}/models/people/predict", json={"instances": asked_rows})
        assert answer.status_code == 200, answer.text
        whole = httpx.post(
            f"{server.url}/predict?tau=0&version=1&top_k=3",
            content=without_label(new),
            headers={"content-type": "text/csv"},
        )
    tops = [{t["label"]: t["probability"] for t in p["top"]} for p in whole.json()["predictions"]]
    served = np.array([[top[name] for name in classes] for top in tops])
    np.testing.assert_allclose(served, probabilities, atol=2e-6)


def without_label(path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    out = io.StringIO()
    csv.writer(out).writerows(row[1:] for row in rows)
    return out.getvalue()
