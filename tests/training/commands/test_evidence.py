"""`training synthetic` and `training estimate` as a user calls them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from service.contract.bundle import load_bundle
from tests.support.small_models import TEXT_FIELDS, publish_model, text_model
from training.commands.tables import table


def test_synthetic_writes_a_report_and_finds_the_adjusted_losses_near_bayes(command, tmp_path):
    code, result, _ = command("synthetic", "--out", tmp_path, "--trials", 3, "--json")
    assert code == 0
    errors = result["balanced_error"]
    assert result["bayes"] < errors["logit-adjusted"]["mean"] < 0.081
    assert errors["erm"]["mean"] > 0.15
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") >= 3


def test_estimate_tells_the_mix_of_unlabelled_data_with_its_interval(command):
    code, result, _ = command("estimate", "models/digits/2", "--data", "digits", "--json")
    assert code == 0
    found = result["methods"][result["recommended"]]
    assert len(found["prior"]) == len(result["class_names"]) == 10
    assert sum(found["prior"]) == pytest.approx(1)
    assert all(
        low <= share <= high
        for share, (low, high) in zip(found["prior"], found["interval"], strict=True)
    )


def test_synthetic_refuses_too_few_trials(command, tmp_path):
    code, _, reported = command("synthetic", "--out", tmp_path, "--trials", 1)
    assert code == 2
    assert "--trials" in reported


def test_calibrate_publishes_the_next_version_with_a_block_and_the_same_graph(command, tmp_path):
    shutil.copytree("models/digits", tmp_path / "digits")
    for extra in [*(tmp_path / "digits").iterdir()][1:]:
        shutil.rmtree(extra)
    first = next((tmp_path / "digits").iterdir())
    code, result, _ = command("calibrate", first, "--data", "digits", "--json")
    assert code == 0
    folder = Path(result["bundle"])
    assert int(folder.name) == int(first.name) + 1
    before, after = load_bundle(first), load_bundle(folder)
    assert after.files == before.files
    assert after.estimation.temperature == after.temperature == result["temperature"]
    assert after.provenance["calibrated"]["from_version"] == before.version
    assert after.estimation.self_test.surest_rows is not None
    report = json.loads((folder / "report.json").read_text())
    assert report["temperature"] == after.temperature
    assert report["test"]["n"] == before.provenance["scores"]["test"]["n"]
    assert report["samples"] == json.loads((first / "report.json").read_text())["samples"]
    scores = after.provenance["scores"]["test"]["at_tau"]
    assert scores["1"]["balanced_error"] == report["test"]["at_tau"]["1"]["balanced_error"]
    assert scores["0"]["error"] == before.provenance["scores"]["test"]["at_tau"]["0"]["error"]
    again = command("calibrate", first, "--data", "digits", "--json")[1]
    assert load_bundle(Path(again["bundle"])).estimation == after.estimation


def test_calibrate_measures_a_model_that_does_not_state_its_counts(command, tmp_path):
    shutil.copytree("models/digits/2", tmp_path / "digits/2")
    manifest = tmp_path / "digits/2/model.json"
    fields = json.loads(manifest.read_text())
    fields |= {"class_counts": None, "default_tau": 0}
    manifest.write_text(json.dumps(fields | {"loss_tau": 0}))
    code, result, _ = command("calibrate", tmp_path / "digits/2", "--data", "digits", "--json")
    assert code == 0
    bundle = load_bundle(Path(result["bundle"]))
    assert bundle.class_counts is None
    assert bundle.tau == 1
    counts = np.array(load_bundle(Path("models/digits/2").resolve()).class_counts)
    measured = np.argsort(bundle.calibrated_log_source)
    assert np.corrcoef(bundle.calibrated_log_source, np.log(counts))[0, 1] > 0.7, measured


def test_calibrate_refuses_rows_that_lack_a_class(command, tmp_path):
    x = np.zeros((30, 64), np.float32)
    x[:, 0] = np.arange(30)
    y = np.arange(30) % 3
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    code, _, reported = command(
        "calibrate", "models/digits/2", "--data", f"npz:{tmp_path / 'few.npz'}", "--split", "test"
    )
    assert code == 2
    assert "7 of 10 classes have no row" in reported


@pytest.mark.parametrize("verb", ["evaluate", "estimate", "calibrate"])
def test_texts_that_the_service_would_refuse_are_named(command, tmp_path, verb):
    publish_model(tmp_path / "models", "text", model=text_model(), **TEXT_FIELDS)
    texts = np.array(["a " * 10_001, *["a", "b", "ö"] * 40])
    np.savez(tmp_path / "own.npz", x_test=texts, y_test=np.array(["x", *["y", "z", "x"] * 40]))
    _, _, reported = command(
        verb, tmp_path / "models/text/1", "--data", f"npz:{tmp_path / 'own.npz'}"
    )
    expected = "of 121 chosen texts have more than 20,000 characters, the longest 20,002: the"
    assert f"1 {expected}" in reported


def test_score_prints_the_verdict_on_its_estimate_and_which_prior_the_answers_have(
    command, tmp_path
):
    digits = load_digits().data.astype(np.float32)
    noise = np.random.default_rng(0).uniform(0, 16, (600, 64)).astype(np.float32)
    for x, verdict, prior in ((digits, "usable", "as estimated"), (noise, "not_exp", "uniform")):
        np.savez(tmp_path / "rows.npz", x=x)
        where = [
            "--array",
            "x",
            "--model",
            "models/digits/2",
            "--out",
            tmp_path / f"{prior}.parquet",
        ]
        code, result, _ = command("score", tmp_path / "rows.npz", *where, "--estimate", "--json")
        assert code == 0
        first, _, said, *rows = table(result).splitlines()
        assert f"prior {prior}" in first
        assert said.startswith(f"verdict on the estimate: {verdict}")
        assert (said.endswith("the answers have the prior uniform instead")) == (prior == "uniform")
        assert len(rows) == 1 + len(result["predicted"])
        assert all("…" in row for row in rows[1:])
