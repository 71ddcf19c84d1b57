"""Changes of the last layer after training: refused with a reason where meaningless; the prior that
they divide out is measured.
"""

import numpy as np
import pytest

from service.contract.adjustment import adjust_logits
from training.scores.calibrate import fit_divided_share

NO_LAYER = """
from torch import nn

def convolutional(num_classes):
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, num_classes, 6), nn.Flatten())

def softened(num_classes):
    return nn.Sequential(nn.Linear(6, num_classes), nn.Tanh())
"""


@pytest.fixture
def fit(command, own_npz, tmp_path, monkeypatch):
    """`training fit` on a user's own data, with networks of a module of their own."""
    (tmp_path / "own.py").write_text(NO_LAYER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    return lambda *flags: command("fit", "--data", f"npz:{own_npz}", *places, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--afterwards", "weight-norm", "--loss", "logit-adjusted"), "do it twice"),
        (("--afterwards", "weight-norm", "--sampler", "balanced"), "do it twice"),
        (("--afterwards", "weight-norm", "--loss", "ldam"), "'ldam' trains a cosine head"),
        (("--afterwards", "crt", "--loss", "ldam"), "'ldam' trains a cosine head"),
        (
            ("--afterwards", "lws", "--network", "own:convolutional"),
            "does not end in a linear layer",
        ),
        (("--afterwards", "crt", "--network", "own:softened"), "something after its last linear"),
        (("--afterwards", "crt", "--norm-tau", 1), "only for --afterwards weight-norm"),
        (("--norm-tau", 1), "only for --afterwards weight-norm"),
        (("--afterwards", "weight-norm", "--norm-tau", -1), "expected 0 … 10"),
        (("--afterwards", "weight-norm", "--norm-tau", "nan"), "expected 0 … 10"),
        (("--afterwards", "weight-norm", "--validation-per-class", 0), "give --norm-tau"),
    ],
)
def test_what_would_mean_nothing_is_refused_before_training(fit, tmp_path, flags, said):
    code, result, err = fit(*flags)
    assert (code, result) == (2, None)
    assert said in err
    assert not (tmp_path / "runs").exists()


def test_a_recipe_file_with_an_unknown_afterwards_is_refused(fit, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('afterwards = "magic"\n', encoding="utf-8")
    code, _, err = fit("--recipe", file)
    assert code == 2
    assert "expected one of nothing, weight-norm, crt, lws" in err


@pytest.mark.parametrize("divided", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("validation", ["balanced", "long-tailed"])
def test_the_share_that_was_divided_out_is_found_again(divided, validation):
    """Exact posteriors under pi, of which a share is then divided out, at a wrong temperature."""
    rng = np.random.default_rng(0)
    log_pi = np.log([0.9, 0.08, 0.02])
    counts = [4000] * 3 if validation == "balanced" else [9000, 800, 200]
    labels = np.repeat(np.arange(3), counts)
    logits = 1.5 * (rng.normal(size=(len(labels), 3)) + 1.5 * np.eye(3)[labels]) + log_pi
    changed = 2 * adjust_logits(
        logits, log_source_prior=log_pi, log_target_prior=np.zeros(3), tau=divided
    )
    found = fit_divided_share(changed, labels, log_label_frequencies=log_pi)
    assert found == pytest.approx(divided, abs=0.06)
