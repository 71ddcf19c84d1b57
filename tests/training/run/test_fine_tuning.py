"""Training starts from published models, in part, and with features computed once."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Two data sets of rows: one of three classes, and one with a fourth."""
    home = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 5)) * 3
    for name, classes in (("three", 3), ("four", 4)):
        labels = np.repeat(np.arange(classes), 40)
        rows = centres[labels] + rng.normal(size=(len(labels), 5))
        np.savez(home / f"{name}.npz", x_train=rows, y_train=labels, x_test=rows, y_test=labels,
                 class_names=["ant", "bee", "cat", "dog"][:classes])  # fmt: skip
    return home


def test_fine_tuning_with_frozen_layers_a_grown_class_list_and_features_once(
    arrays, tmp_path, command
):
    def fit(data, *flags):
        code, answer, err = command(
            "fit", "--data", f"npz:{arrays / data}.npz", "--network", "mlp", "--name", "own",
            "--models", tmp_path / "models", "--runs", tmp_path / "runs", "--quiet", "--json",
            *flags,
        )  # fmt: skip
        return code, answer, err

    assert fit("three", "--steps", 100)[0] == 0
    first = tmp_path / "models/own/1"
    code, answer, err = fit("four", "--init", first, "--features-once")
    assert code == 0, err
    assert "3 classes keep their weights, 1 start from random" in err
    assert answer["test"]["at_tau"]["1"]["balanced_error"] < 0.2
    code, answer, err = fit(
        "four", "--init", first, "--freeze", "1", "--lr-of", "7=2", "--steps", 60
    )
    assert code == 0, err
    assert answer["test"]["at_tau"]["1"]["balanced_error"] < 0.2
    stated = json.loads((first / "model.json").read_text())
    assert "weights.pt" not in stated["files"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--init", "nowhere"), "--init nowhere: there is no file"),
        (("--freeze", "conv9"), "no parameter is named conv9"),
        (("--lr-of", "1=0"), "expected a factor above 0"),
        (("--features-once", "--optimiser", "sgd"), "fits the last layer by lbfgs"),
        (("--features-once", "--sampler", "balanced"), "takes every row"),
    ],
)
def test_wrong_uses_are_named_before_the_run(arrays, tmp_path, command, flags, said):
    code, _, err = command(
        "fit", "--data", f"npz:{arrays / 'three.npz'}", "--network", "mlp", "--models",
        tmp_path / "models", "--runs", tmp_path / "runs", *flags,
    )  # fmt: skip
    assert code == 2
    assert said in err
