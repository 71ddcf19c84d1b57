"""Comparing two rules on recent logits."""

import numpy as np
import pytest

from service.contract.bundle import Bundle
from service.contract.members.body import PriorBody
from service.contract.prior import resolve_prior
from service.priors.preview import (
    NotAdoptable,
    TooLittleTraffic,
    check_adoptable,
    estimate,
    evidence_note,
    preview,
)
from service.priors.rule import Rule, jensen_shannon

NAMES = ["a", "b", "c"]


def prior(target="uniform", counts=(100.0, 50.0, 5.0)):
    return resolve_prior(
        PriorBody(target=target), class_names=NAMES, class_counts=counts, loss_tau=0.0
    )


def traffic(n=4000, truth=(0.3, 0.3, 0.4), seed=0):
    """Labels, and the logits of Bayes' rule under the source prior of `prior()`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=n, p=truth)
    x = rng.normal(size=(n, 3)) + 2 * np.eye(3)[labels]
    return labels, (2 * x + np.log(np.array([100, 50, 5]) / 155)).astype(np.float32)


def test_a_rule_compared_with_itself_changes_nothing():
    _, logits = traffic()
    rule = Rule(prior(), 1.0)
    found = preview(logits, temperature=1.0, before=rule, after=rule)
    assert found.decisions_changed == 0
    assert np.array_equal(found.before.rates, found.after.rates)
    assert found.before.expected_error == found.after.expected_error


def test_at_tau_zero_priors_make_no_difference():
    _, logits = traffic()
    found = preview(
        logits, temperature=1.0, before=Rule(prior(), 0.0), after=Rule(prior([8.0, 1.0, 1.0]), 0.0)
    )
    assert found.decisions_changed == 0


def test_rates_and_probabilities_sum_to_one_and_a_forbidden_class_is_never_decided():
    _, logits = traffic()
    found = preview(
        logits, temperature=1.5, before=Rule(prior(), 0.0), after=Rule(prior([1.0, 1.0, 0.0]), 1.0)
    )
    for outcome in (found.before, found.after):
        assert outcome.rates.sum() == pytest.approx(1)
        assert outcome.mean_probability.sum() == pytest.approx(1)
    assert found.after.rates[2] == found.after.mean_probability[2] == 0


def test_the_expected_errors_are_near_the_true_ones():
    labels, logits = traffic(n=20_000)
    found = preview(logits, temperature=1.0, before=Rule(prior(), 0.0), after=Rule(prior(), 1.0))
    offset = prior().offset
    for outcome, tau in ((found.before, 0.0), (found.after, 1.0)):
        decided = (logits - tau * offset).argmax(axis=1)
        recalls = [(decided[labels == c] == c).mean() for c in range(3)]
        assert outcome.expected_error == pytest.approx((decided != labels).mean(), abs=0.02)
        assert outcome.expected_balanced_error == pytest.approx(1 - np.mean(recalls), abs=0.02)
    assert found.after.expected_balanced_error < found.before.expected_balanced_error


def test_rows_are_taken_in_pieces_without_a_difference():
    _, logits = traffic(n=1000)
    rules = {"before": Rule(prior(), 0.0), "after": Rule(prior(), 1.0)}
    whole = preview(logits, temperature=1.0, **rules)
    pieces = preview(logits, temperature=1.0, **rules, chunk_cells=31)
    assert pieces.decisions_changed == whole.decisions_changed
    assert np.allclose(pieces.after.mean_probability, whole.after.mean_probability)
    assert pieces.after.expected_error == pytest.approx(whole.after.expected_error)


def test_without_a_source_prior_rates_are_told_and_errors_are_not():
    _, logits = traffic(n=200)
    unknown = prior(counts=None)
    found = preview(logits, temperature=1.0, before=Rule(unknown, 0.0), after=Rule(unknown, 0.0))
    assert found.before.expected_error is None
    assert found.before.rates.sum() == pytest.approx(1)


def test_the_divergence_is_zero_for_equals_and_log_two_for_strangers():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(p, q) == pytest.approx(np.log(2))
    assert jensen_shannon(p, q) == jensen_shannon(q, p)


def bundle(**changes):
    fields = {
        "format_version": 1,
        "name": "m",
        "version": 1,
        "class_names": NAMES,
        "class_counts": [100, 50, 5],
        "loss_tau": 0.0,
        "input": {"name": "x", "kind": "tensor", "shape": [None, 3], "dtype": "float32"},
        "output": {"name": "logits", "kind": "logits"},
        "files": {"model.onnx": "0"},
    }
    return Bundle.model_validate(fields | changes)


def calibrated(class_counts=(500, 500, 500)):
    return bundle(
        estimation={
            "calibration": "none",
            "temperature": 1.0,
            "bias": [0.0] * 3,
            "source_prior": [100 / 155, 50 / 155, 5 / 155],
            "validation": {"rows": 1500, "class_counts": list(class_counts)},
        }
    )


def estimated(logits, model, **body):
    found = resolve_prior(
        PriorBody(**body),
        class_names=NAMES,
        class_counts=model.class_counts,
        loss_tau=0.0,
        calibrated_log_source=model.calibrated_log_source,
    )
    return estimate(logits, bundle=model, prior=found, capacity=4096)


def test_the_prior_of_the_traffic_is_found_whatever_the_target():
    truth = (0.1, 0.2, 0.7)
    _, logits = traffic(truth=truth)
    found = estimated(logits, bundle(), target=[8.0, 1.0, 1.0])
    assert np.abs(found.estimate.prior - truth).max() < 0.04
    assert found.verdict == "uncalibrated"


def test_too_little_traffic_is_told():
    _, logits = traffic(n=40)
    assert estimated(logits, calibrated()).verdict == "too_little_traffic"
    with pytest.raises(TooLittleTraffic, match="send traffic first"):
        estimated(logits[:0], calibrated())


def test_the_block_calibrates_the_estimate_whether_or_not_decisions_use_it():
    _, logits = traffic()
    model = calibrated()
    used, plain = estimated(logits, model), estimated(logits, model.without_calibrated_source())
    assert used.verdict == plain.verdict == "usable"
    assert np.array_equal(used.estimate.prior, plain.estimate.prior)


def test_a_prior_with_its_own_frequencies_or_a_block_that_lacks_a_class_is_uncalibrated():
    _, logits = traffic()
    own = estimated(logits, calibrated(), label_frequencies=[1.0, 1.0, 1.0])
    assert (own.verdict, own.calibrated) == ("uncalibrated", False)
    assert "label_frequencies of its own" in own.reason
    lacking = estimated(logits, calibrated(class_counts=(500, 500, 0)))
    assert lacking.verdict == "uncalibrated"
    assert "no row of some classes" in lacking.reason


def test_only_an_estimate_that_helps_is_adopted_and_the_note_says_what_it_rests_on():
    _, shifted = traffic(truth=(0.05, 0.15, 0.8))
    found = estimated(shifted, calibrated(), target="training")
    check_adoptable(found)
    assert "verdict usable; gain" in evidence_note(found)
    assert "forced" not in evidence_note(found)
    _, same = traffic(truth=(100 / 155, 50 / 155, 5 / 155))
    stays = estimated(same, calibrated(), target="training")
    with pytest.raises(NotAdoptable, match="not adopted: the expected gain"):
        check_adoptable(stays)
    assert "forced although the expected gain" in evidence_note(stays)


def test_a_balanced_error_is_missing_where_no_class_is_expected_once():
    _, logits = traffic(n=1)
    found = preview(
        np.zeros_like(logits), temperature=1.0, before=Rule(prior(), 0.0), after=Rule(prior(), 1.0)
    )
    assert found.after.expected_balanced_error is None
    assert found.after.expected_error is not None
