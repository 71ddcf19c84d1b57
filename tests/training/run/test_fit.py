"""One run from a user's own data to a published, checked model, and back."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from service.contract.bundle import load_bundle
from tests.training.conftest import CLASSES, tail_counts
from training.commands.cli import main

FIT = ("--network", "linear", "--steps", 120, "--batch", 32, "--quiet", "--threads", 1)


def fit_arguments(npz, tmp_path, *flags):
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    given = ("fit", "--data", f"npz:{npz}", "--name", "own", *places, "--json", *FIT, *flags)
    return [str(argument) for argument in given]


def fit(command, npz, tmp_path, *flags):
    code, result, err = command(*fit_arguments(npz, tmp_path, *flags))
    assert code == 0, err
    return result


@pytest.fixture(scope="module")
def fitted(own_npz, tmp_path_factory):
    """One run that the tests below only read."""
    home = tmp_path_factory.mktemp("fitted")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(fit_arguments(own_npz, home)) == 0
    return json.loads(out.getvalue())


def folder_of(result):
    return Path(result["bundle"])


def test_a_fit_answers_with_the_members_of_the_contract(fitted):
    assert {"bundle", "loss", "temperature", "tau", "validation", "test", "seconds"} <= set(fitted)
    assert {"chosen", "validation_curve"} <= set(fitted["tau"])
    expected = {
        "n",
        "error",
        "balanced_error",
        "many",
        "medium",
        "few",
        "ece",
        "nll",
        "per_class",
        "at_tau",
    }
    for split in ("validation", "test"):
        assert expected <= set(fitted[split])
        assert {"0", "1", "chosen"} <= set(fitted[split]["at_tau"])


def test_the_published_folder_is_whole_and_says_what_the_model_was_trained_on(fitted):
    bundle = load_bundle(folder_of(fitted))
    assert bundle.temperature == fitted["temperature"]
    assert bundle.loss_tau == 0
    assert bundle.class_names == [f"kind {index}" for index in range(CLASSES)]
    assert sum(bundle.class_counts) + fitted["validation"]["n"] == sum(tail_counts())
    assert bundle.tau == 1
    assert bundle.provenance["scores"]["val"]["n"] == fitted["validation"]["n"]
    assert bundle.provenance["seed"] == 0


def test_every_class_keeps_a_training_row_and_shows_one_to_validation(fitted):
    counts = load_bundle(folder_of(fitted)).class_counts
    assert min(counts) >= 1
    assert counts[-1] == 1  # of two rows, one went to validation
    assert None not in fitted["validation"]["per_class"]


def test_evaluate_reads_back_the_scores_that_fit_reported(command, fitted, own_npz):
    folder = folder_of(fitted)
    chosen = fitted["tau"]["chosen"]
    code, scores, _ = command(
        "evaluate", folder, "--data", f"npz:{own_npz}", "--tau", chosen, "--json"
    )
    assert code == 0
    assert scores["per_class"] == fitted["test"]["per_class"]
    assert scores["nll"] == pytest.approx(fitted["test"]["nll"], abs=1e-5)


def test_evaluate_finds_the_validation_rows_that_fit_set_aside(command, fitted, own_npz):
    folder = folder_of(fitted)
    flags = ("--split", "val", "--tau", fitted["tau"]["chosen"], "--json")
    _, scores, _ = command("evaluate", folder, "--data", f"npz:{own_npz}", *flags)
    assert scores["n"] == fitted["validation"]["n"]
    assert scores["per_class"] == fitted["validation"]["per_class"]


def test_evaluate_says_what_of_a_prior_it_leaves_out(command, fitted, own_npz, tmp_path):
    folder, prior = folder_of(fitted), tmp_path / "prior.json"
    flags = ("evaluate", folder, "--data", f"npz:{own_npz}", "--target", prior)
    prior.write_text('{"target": "uniform", "costs": {"miss": {"kind 0": 9}}}', encoding="utf-8")
    code, _, err = command(*flags)
    assert code == 0
    assert "leave out the prior's costs" in err
    prior.write_text('{"context": {"site": {"north": "winter"}}}', encoding="utf-8")
    code, _, err = command(*flags)
    assert code == 2
    assert "its context or schedule leads to other stored priors" in err


def test_a_split_without_a_class_is_not_resampled_and_the_class_is_named(
    command, fitted, own_npz, tmp_path
):
    data = dict(np.load(own_npz))
    kept = data["y_test"] != 1
    data["x_test"], data["y_test"] = data["x_test"][kept], data["y_test"][kept]
    np.savez(tmp_path / "gap.npz", **data)
    code, _, err = command(
        *("evaluate", folder_of(fitted), "--data", f"npz:{tmp_path / 'gap.npz'}"),
        *("--target", "backward-5"),
    )
    assert code == 2
    assert "the first is 'kind 1'" in err
    assert "--target backward-5" in err


def test_the_same_seed_gives_the_same_file_and_another_seed_another(command, own_npz, tmp_path):
    def model_bytes(seed):
        result = fit(command, own_npz, tmp_path, "--seed", seed)
        return (folder_of(result) / "model.onnx").read_bytes()

    first = model_bytes(3)
    assert model_bytes(3) == first
    assert model_bytes(4) != first


def test_the_graph_is_plain_onnx_without_traces_of_this_machine(fitted):
    path = folder_of(fitted) / "model.onnx"
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")] == [
        ("", 20)
    ]
    assert model.ir_version == 10
    assert not any(node.metadata_props for node in model.graph.node)
    assert b".py" not in path.read_bytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 7):
        assert session.run(None, {"input": np.zeros((rows, 6), np.float32)})[0].shape == (
            rows,
            CLASSES,
        )


def test_a_logit_adjusted_loss_is_recorded_so_that_serving_does_not_adjust_twice(
    command, own_npz, tmp_path
):
    result = fit(command, own_npz, tmp_path, "--loss", "logit-adjusted", "--loss-tau", 1)
    bundle = load_bundle(folder_of(result))
    assert bundle.loss_tau == 1
    divided_out = np.ptp(bundle.calibrated_log_source)  # what validation measured is left of it
    assert divided_out < 0.5 * np.ptp(np.log(bundle.class_counts))


def test_the_chosen_tau_is_published_only_when_asked_for(command, own_npz, tmp_path):
    result = fit(command, own_npz, tmp_path, "--publish-tau", "chosen")
    assert load_bundle(folder_of(result)).tau == result["tau"]["chosen"]


def test_the_report_shows_the_validation_curve_the_confusion_and_samples(fitted):
    report = json.loads((folder_of(fitted) / "report.json").read_text())
    assert report["tau"]["validation_curve"] == fitted["tau"]["validation_curve"]
    confusion = np.array(report["at_tau"]["1"]["confusion"])
    recalls = np.diag(confusion) / confusion.sum(axis=1)
    assert 1 - recalls.mean() == pytest.approx(fitted["test"]["at_tau"]["1"]["balanced_error"])
    assert {sample["label"] for sample in report["samples"]} <= set(report["class_names"])
    assert len(report["samples"][0]["instance"]) == 6


def test_without_validation_nothing_is_tuned(command, own_npz, tmp_path):
    result = fit(command, own_npz, tmp_path, "--validation-per-class", 0)
    assert (result["temperature"], result["tau"]["chosen"], result["validation"]) == (
        1.0,
        1.0,
        None,
    )
    assert sum(load_bundle(folder_of(result)).class_counts) == sum(tail_counts())


def test_calibration_does_not_change_when_the_test_labels_do(command, own_npz, tmp_path):
    first = fit(command, own_npz, tmp_path)
    arrays = dict(np.load(own_npz))
    arrays["y_test"] = np.roll(arrays["y_test"], 1)
    other = tmp_path / "other.npz"
    np.savez(other, **arrays)
    second = fit(command, other, tmp_path)
    assert second["test"]["error"] != first["test"]["error"]
    assert (second["temperature"], second["tau"]) == (first["temperature"], first["tau"])


@pytest.mark.parametrize("target", ["forward-5", "backward-5", "training"])
def test_a_known_target_is_scored_at_its_own_class_mix(command, fitted, own_npz, target):
    folder = folder_of(fitted)
    flags = ("--data", f"npz:{own_npz}", "--target", target, "--json")
    code, scores, err = command("evaluate", folder, *flags)
    assert code == 0, err
    assert (scores["n"] < 10 * CLASSES) == (target != "training")


def test_a_target_of_a_file_excludes_the_classes_it_gives_nothing(
    command, fitted, own_npz, tmp_path
):
    target = tmp_path / "target.json"
    target.write_text(json.dumps([0.0] + [1.0] * (CLASSES - 1)))
    folder = folder_of(fitted)
    _, scores, _ = command(
        "evaluate", folder, "--data", f"npz:{own_npz}", "--target", target, "--json"
    )
    assert scores["per_class"][0] == 1.0  # class 0 cannot occur there, so it is never answered
