"""The synthetic experiment: the paper's Figure 2, with exact errors."""

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from training.commands.cli import main
from training.learning.losses import make_loss
from training.studies import synthetic, synthetic_report


@pytest.fixture(scope="module")
def results():
    return synthetic.run(trials=8)


def mean(results, name):
    return results.errors[name].mean()


def test_the_exact_balanced_error_is_that_of_counted_points():
    half_space = np.array([1.0, 2.0, 0.7])
    x, labels = synthetic.draw(400_000, np.random.default_rng(5))
    wrong = ((x @ half_space[:2] + half_space[2] > 0) != labels).astype(float)
    counted = np.mean([wrong[labels == y].mean() for y in (0, 1)])
    assert synthetic.exact_balanced_error(half_space) == pytest.approx(counted, abs=0.004)


def test_bayes_separator_passes_through_the_origin_and_no_half_space_beats_it():
    assert pytest.approx(0.07865, abs=5e-6) == synthetic.BAYES
    assert synthetic.exact_balanced_error(np.array([1.0, 1.0, 0.0])) == pytest.approx(
        synthetic.BAYES
    )
    others = np.random.default_rng(0).normal(size=(1000, 3))
    assert synthetic.exact_balanced_error(others).min() >= synthetic.BAYES


def test_the_errors_are_the_reference_ones(results):
    assert mean(results, "erm") == pytest.approx(0.181, abs=0.008)
    assert mean(results, "adaptive") == pytest.approx(0.162, abs=0.006)
    assert mean(results, "equalised") == pytest.approx(0.0873, abs=0.002)
    assert mean(results, "logit-adjusted") == pytest.approx(0.0788, abs=0.0003)
    assert mean(results, "post-hoc") == pytest.approx(0.0788, abs=0.0003)


def test_every_consistent_loss_reaches_bayes_and_no_other_does(results):
    consistent = {n for n in results.errors if mean(results, n) < synthetic.BAYES + 0.001}
    assert consistent == {
        "logit-adjusted",
        "weighted-logit-adjusted (τ = 0.5)",
        "balanced",
        "post-hoc",
    }


def test_with_an_affine_model_the_logit_adjusted_loss_and_post_hoc_adjustment_are_one(results):
    trained = results.half_spaces["logit-adjusted"]
    adjusted = results.half_spaces["post-hoc"]
    assert trained == pytest.approx(adjusted, abs=2e-4)


def test_the_same_holds_for_an_affine_softmax_of_many_classes():
    """CE(Wx + b + log pi) is CE(Wx + b') with b' = b + log pi, so the minimum is the ERM one with b
    moved.
    """
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(4, 600, p=[0.7, 0.2, 0.07, 0.03]))
    x = torch.from_numpy(rng.normal(size=(600, 3))) + torch.eye(4, 3)[labels]
    counts = np.bincount(labels.numpy(), minlength=4)

    def logits(name):
        weight = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        design = torch.cat([x, torch.ones(600, 1)], dim=1).double()
        optimiser = torch.optim.LBFGS(
            [weight], max_iter=2000, tolerance_grad=1e-9, tolerance_change=0
        )
        objective = make_loss(name, counts)

        def closure():
            optimiser.zero_grad()
            loss = objective(design @ weight.T, labels)
            loss.backward()
            return loss

        optimiser.step(closure)
        found = (design @ weight.T).detach()
        return found - found.mean(dim=1, keepdim=True)

    log_pi = torch.from_numpy(np.log(counts / counts.sum()))
    post_hoc = logits("erm") - log_pi
    trained = logits("logit-adjusted")
    assert torch.allclose(post_hoc - post_hoc.mean(dim=1, keepdim=True), trained, atol=1e-4)


def test_adjustment_is_best_at_tau_1_and_costs_as_much_on_either_side(results):
    sweep = dict(zip(synthetic.TAUS, results.tau_sweep.mean(axis=1), strict=True))
    assert min(sweep, key=sweep.get) == pytest.approx(1, abs=0.1)
    for tau, expected in ((0.0, 0.181), (0.5, 0.107), (1.0, 0.079), (1.5, 0.107), (2.0, 0.181)):
        assert sweep[tau] == pytest.approx(expected, abs=0.01)


def test_weight_normalisation_starts_from_erm_and_cannot_help(results):
    sweep = results.norm_sweep.mean(axis=1)
    assert sweep[0] == pytest.approx(mean(results, "erm"))
    assert sweep[-1] > sweep[0] + 0.01
    assert results.negative_share[:, 1].mean() > 0.3


def test_with_one_separator_weight_normalisation_changes_no_decision():
    erm = np.array([2.0, 1.9, -1.0])
    pair = np.stack([-erm / 2, erm / 2])[None]
    for tau in (0.5, 1.0, 3.0):
        assert synthetic.exact_balanced_error(synthetic.normalised(pair, tau=tau)) == pytest.approx(
            synthetic.exact_balanced_error(erm)
        )


def test_a_run_is_determined_by_its_seed(results):
    again = synthetic.run(trials=1)
    assert again.errors["erm"][0] == results.errors["erm"][0]
    assert synthetic.run(trials=1, seed=1).errors["erm"][0] != results.errors["erm"][0]


def test_the_report_is_self_contained_and_every_figure_is_well_formed(results, tmp_path):
    synthetic_report.write(results, tmp_path, command="training synthetic --out here")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<code>training synthetic --out here</code>" in html
    for foreign in ("<script", "src=", "@import", "<link", "url(http"):
        assert foreign not in html
    assert html.count("<svg") == 3
    assert "above Bayes' 7.865 %, points (logarithmic)" in html
    for name in ("errors", "separators", "tau"):
        ET.parse(tmp_path / f"{name}.svg")
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert document["trials"] == 8
    assert document["balanced_error"]["erm"]["sd"] > 0
    assert [0.0, pytest.approx(mean(results, "erm"))] in document["tau_sweep"]
    assert math.isclose(document["bayes"], synthetic.BAYES)
    assert "| logit-adjusted | 7.8" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_full_disk_names_the_folder_of_the_results(tmp_path, capsys):
    (tmp_path / "results.json").symlink_to("/dev/full")
    assert main(["synthetic", "--trials", "2", "--out", str(tmp_path)]) == 1
    assert f"training: {tmp_path}: No space left on device" in capsys.readouterr().err
