"""The formula: Bayes' rule at tau = 1, the model as trained at tau = 0, and no epsilon anywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.contract.adjustment import (
    LOG_ZERO,
    MIN_TAU,
    InvalidTau,
    adjust_logits,
    check_tau,
    log_normalise,
    log_source_prior,
    log_target_prior,
    softmax,
)

CLASSES = 4
logit_rows = arrays(np.float64, (3, CLASSES), elements=st.floats(-50, 50))
counts = arrays(np.float64, CLASSES, elements=st.floats(1e-3, 1e6))
taus = st.floats(MIN_TAU, 10)


def adjusted(logits, source, target, tau=1.0, temperature=1.0):
    return adjust_logits(
        logits,
        log_source_prior=log_source_prior(source, loss_tau=0),
        log_target_prior=log_target_prior(target),
        tau=tau,
        temperature=temperature,
    )


@given(logit_rows, counts, counts)
def test_at_tau_0_the_logits_are_untouched_to_the_bit(logits, source, target):
    target[0] = 0.0
    assert np.array_equal(adjusted(logits, source, target, tau=0.0), logits)
    assert np.array_equal(adjusted(logits, source, target, 0.0, temperature=1.7), logits / 1.7)


@given(logit_rows, counts, counts)
def test_at_tau_1_the_probabilities_follow_bayes_rule(logits, source, target):
    posterior = softmax(logits) * (target / target.sum()) / (source / source.sum())
    expected = posterior / posterior.sum(axis=1, keepdims=True)
    assert softmax(adjusted(logits, source, target)) == pytest.approx(expected, abs=1e-9)


@given(logit_rows, counts, taus)
def test_a_uniform_target_is_post_hoc_logit_adjustment(logits, source, tau):
    z = adjusted(logits, source, np.ones(CLASSES), tau)
    expected = logits - tau * np.log(source / source.sum())
    assert softmax(z) == pytest.approx(softmax(expected), abs=1e-9)


@given(logit_rows, counts, taus)
def test_the_source_as_target_changes_nothing(logits, source, tau):
    assert adjusted(logits, source, source, tau) == pytest.approx(logits, abs=1e-9)


@given(logit_rows, counts, counts, counts)
def test_adjusting_twice_is_adjusting_once_to_the_last_target(logits, source, between, target):
    twice = adjusted(adjusted(logits, source, between), between, target)
    assert twice == pytest.approx(adjusted(logits, source, target), abs=1e-9)


@given(logit_rows, counts, counts, st.floats(1e-6, 1e6), st.floats(-100, 100))
def test_only_ratios_of_counts_and_differences_of_logits_matter(logits, source, target, scale, by):
    plain = softmax(adjusted(logits, source, target))
    scaled = softmax(adjusted(logits + by, source * scale, target * scale))
    assert scaled == pytest.approx(plain, abs=1e-9)


@given(logit_rows, counts, taus)
def test_tau_is_a_temperature_of_the_decision_but_not_of_the_probabilities(logits, source, tau):
    z = adjusted(logits, source, np.ones(CLASSES), tau)
    decision = logits / tau - np.log(source)
    gap = np.sort(decision, axis=1)
    clear = gap[:, -1] - gap[:, -2] > 1e-6
    assert np.array_equal(z.argmax(1)[clear], decision.argmax(1)[clear])


@given(logit_rows, counts, taus)
def test_a_class_with_target_0_has_probability_exactly_0_in_float32_too(logits, source, tau):
    z = adjusted(logits, source, [0, 1, 2, 3], tau)
    assert (softmax(z)[:, 0] == 0).all()
    narrow = z.astype(np.float32)
    assert (np.exp(narrow - narrow.max(axis=1, keepdims=True))[:, 0] == 0).all()
    assert np.isfinite(narrow).all()


def test_each_row_may_have_its_own_tau_and_target():
    logits = np.zeros((2, 2))
    source = log_source_prior([9, 1], loss_tau=0)
    targets = np.stack([log_target_prior([1, 1]), log_target_prior([1, 0])])
    z = adjust_logits(logits, log_source_prior=source, log_target_prior=targets, tau=[[0.0], [1.0]])
    assert softmax(z).tolist() == [[0.5, 0.5], [1.0, 0.0]]


@given(counts, st.floats(0, 3))
def test_the_source_prior_is_the_frequencies_to_the_power_that_training_left(source, loss_tau):
    expected = (source / source.max()) ** (1 - loss_tau)
    prior = np.exp(log_source_prior(source, loss_tau=loss_tau))
    assert prior == pytest.approx(expected / expected.sum())


def test_a_model_trained_at_loss_tau_1_has_a_uniform_source():
    assert log_source_prior([1e9, 1e-9], loss_tau=1) == pytest.approx(np.log([0.5, 0.5]))


def test_no_epsilon_dulls_a_frequency_of_1e_12():
    source = log_source_prior([1.0, 1e-12], loss_tau=0)
    z = adjust_logits([[0.0, 0.0]], log_source_prior=source, log_target_prior=[0, 0], tau=4)
    assert z[0, 1] - z[0, 0] == pytest.approx(-4 * math.log(1e-12), rel=1e-12)


@pytest.mark.parametrize("bad", [[1, 0], [1, -1], [1, math.nan], [1, math.inf]])
def test_a_source_that_is_not_positive_and_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite and greater than 0"):
        log_source_prior(bad, loss_tau=0)


@pytest.mark.parametrize("bad", [[0, 0], [1, -1], [1, math.nan], [1, math.inf]])
def test_a_target_that_is_negative_not_finite_or_all_zeros_is_refused(bad):
    with pytest.raises(ValueError, match="finite, at least 0, and not all zeros"):
        log_target_prior(bad)


def test_a_zero_target_entry_is_the_stand_in_for_log_zero_and_the_others_sum_to_one():
    log_target = log_target_prior([0, 3, 1])
    assert log_target[0] == LOG_ZERO
    assert np.exp(log_target[1:]) == pytest.approx([0.75, 0.25])


@given(arrays(np.float64, (2, 5), elements=st.floats(-1e4, 1e4)))
def test_normalised_log_weights_sum_to_one_and_keep_their_differences(weights):
    normal = log_normalise(weights)
    assert np.exp(normal).sum(axis=1) == pytest.approx([1, 1])
    assert np.diff(normal) == pytest.approx(np.diff(weights), abs=1e-8)


@pytest.mark.parametrize("tau", [0, 0.0, 1e-6, 1, 10.0, np.float32(0.5), np.int64(2)])
def test_a_legal_tau_is_returned_as_a_float(tau):
    assert check_tau(tau) == float(tau)
    assert type(check_tau(tau)) is float


@pytest.mark.parametrize("tau", [-1, -1e-9, 1e-7, 10.1, math.nan, math.inf, True, "1", None])
def test_an_illegal_tau_is_refused(tau):
    with pytest.raises(InvalidTau, match="expected"):
        check_tau(tau)


def test_the_cap_of_tau_can_be_set():
    assert check_tau(12, cap=20) == 12
    with pytest.raises(InvalidTau, match="to 3"):
        check_tau(4, cap=3)
