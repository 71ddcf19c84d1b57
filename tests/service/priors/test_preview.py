"""Comparing two rules on recent logits."""

import numpy as np
import pytest

from service.contract.prior import PriorBody, resolve_prior
from service.priors.preview import TooLittleTraffic, estimate, preview
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


def test_the_prior_of_the_traffic_is_found_whatever_the_target():
    truth = (0.1, 0.2, 0.7)
    _, logits = traffic(truth=truth)
    found = estimate(logits, temperature=1.0, prior=prior([8.0, 1.0, 1.0]))
    assert np.abs(found.prior - truth).max() < 0.04


def test_too_little_traffic_is_told():
    _, logits = traffic(n=99)
    with pytest.raises(TooLittleTraffic, match="99"):
        estimate(logits, temperature=1.0, prior=prior())


def test_a_balanced_error_is_missing_where_no_class_is_expected_once():
    _, logits = traffic(n=1)
    found = preview(
        np.zeros_like(logits), temperature=1.0, before=Rule(prior(), 0.0), after=Rule(prior(), 1.0)
    )
    assert found.after.expected_balanced_error is None
    assert found.after.expected_error is not None
