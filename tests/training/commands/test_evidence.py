"""`training synthetic` and `training estimate` as a user calls them."""

import pytest


def test_synthetic_writes_a_report_and_finds_the_adjusted_losses_near_bayes(command, tmp_path):
    code, result, _ = command("synthetic", "--out", tmp_path, "--trials", 3, "--json")
    assert code == 0
    errors = result["balanced_error"]
    assert result["bayes"] < errors["logit-adjusted"]["mean"] < 0.081
    assert errors["erm"]["mean"] > 0.15
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") >= 3


def test_estimate_tells_the_mix_of_unlabelled_data_with_its_interval(command):
    code, result, _ = command("estimate", "models/digits/1", "--data", "digits", "--json")
    assert code == 0
    found = result["methods"][result["recommended"]]
    assert len(found["prior"]) == len(result["class_names"]) == 10
    assert sum(found["prior"]) == pytest.approx(1)
    assert all(
        low <= share <= high
        for share, (low, high) in zip(found["prior"], found["interval"], strict=True)
    )


def test_synthetic_refuses_too_few_trials(command, tmp_path):
    code, _, told = command("synthetic", "--out", tmp_path, "--trials", 1)
    assert code == 2
    assert "--trials" in told
