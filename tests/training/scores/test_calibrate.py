"""Calibration: what is true of made-up data is found again, and what a split cannot carry is refused."""

import numpy as np
import pytest

from service.contract.adjustment import log_normalise, softmax
from service.contract.scores import balanced_error, negative_log_likelihood
from training.scores import calibrate

PRIOR = np.array([0.7, 0.2, 0.08, 0.02])
LOG_PRIOR = np.log(PRIOR)
UNIFORM = np.full(4, -np.log(4))


def posterior_model(n_per_class, *, temperature=1.0, bias=0.0, seed=0):
    """Logits [n, 4] of a classifier that knows the truth under PRIOR, then distorted; and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), n_per_class)
    x = rng.normal(size=(len(labels), 4)) + 1.5 * np.eye(4)[labels]
    logits = 1.5 * x + LOG_PRIOR  # log p(x | y) up to a constant, for unit Gaussians
    return (logits - bias) * temperature, labels


def nll(logits, labels, temperature, log_source, log_validation):
    z = log_normalise(logits / temperature + log_validation - log_source)
    return negative_log_likelihood(z, labels)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("counts", [[2000] * 4, [5000, 1500, 600, 150]])
def test_the_temperature_is_found_whatever_the_mix_of_the_split(truth, counts):
    logits, labels = posterior_model(counts, temperature=truth)
    found = calibrate.fit_temperature(
        logits,
        labels,
        log_source_prior=LOG_PRIOR,
        log_validation_prior=calibrate.log_validation_prior_of(labels, 4),
    )
    assert found == pytest.approx(truth, rel=0.05)


def test_no_other_temperature_has_a_lower_likelihood_loss():
    logits, labels = posterior_model([50, 40, 30, 20], temperature=1.7)
    validation = calibrate.log_validation_prior_of(labels, 4)
    found = calibrate.fit_temperature(
        logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=validation
    )
    best = nll(logits, labels, found, LOG_PRIOR, validation)
    for factor in (0.8, 0.97, 1.03, 1.25):
        assert nll(logits, labels, found * factor, LOG_PRIOR, validation) > best


def test_plain_likelihood_on_a_balanced_split_would_find_another_temperature():
    logits, labels = posterior_model([2000] * 4)
    right = calibrate.fit_temperature(
        logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=UNIFORM
    )
    wrong = calibrate.fit_temperature(
        logits, labels, log_source_prior=UNIFORM, log_validation_prior=UNIFORM
    )
    assert right == pytest.approx(1, rel=0.05)
    assert wrong > 1.1 * right


def test_a_class_absent_from_the_split_does_not_disturb_the_temperature():
    logits, labels = posterior_model([3000, 1000, 1000, 0], temperature=2.0)
    found = calibrate.fit_temperature(
        logits,
        labels,
        log_source_prior=LOG_PRIOR,
        log_validation_prior=calibrate.log_validation_prior_of(labels, 4),
    )
    assert found == pytest.approx(2.0, rel=0.05)


def test_a_temperature_is_bounded_for_logits_that_say_nothing_or_everything():
    labels = np.arange(40) % 4
    perfect = np.eye(4)[labels]
    args = {"log_source_prior": UNIFORM, "log_validation_prior": UNIFORM}
    assert calibrate.fit_temperature(perfect, labels, **args) == calibrate.MIN_TEMPERATURE
    assert calibrate.fit_temperature(-perfect, labels, **args) == calibrate.MAX_TEMPERATURE


def test_bcts_finds_temperature_and_biases():
    bias = np.array([0.6, -0.2, 0.1, -0.5])
    logits, labels = posterior_model([4000] * 4, temperature=1.6, bias=bias)
    fitted = calibrate.fit_bcts(
        logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=UNIFORM
    )
    assert fitted.temperature == pytest.approx(1.6, rel=0.05)
    assert fitted.bias == pytest.approx(bias, abs=0.1)
    truth = softmax(logits / 1.6 + bias)
    assert softmax(fitted.logits(logits)) == pytest.approx(truth, abs=0.03)


def test_bcts_is_refused_with_the_class_that_is_too_small():
    logits, labels = posterior_model([100, 100, 19, 5])
    with pytest.raises(
        calibrate.CalibrationRefused, match=r"2 of 4 classes have fewer \(class 3: 5\)"
    ):
        calibrate.fit_bcts(
            logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=LOG_PRIOR
        )


@pytest.mark.parametrize("counts", [[1000] * 4, [3000, 800, 300, 80]])
def test_for_a_true_posterior_the_chosen_tau_is_one_within_its_interval(counts):
    logits, labels = posterior_model(counts)
    choice = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR)
    assert choice.interval[0] <= 1 <= choice.interval[1]
    assert choice.interval[0] <= choice.chosen <= choice.interval[1]
    assert choice.n == sum(counts)


def test_a_longtailed_split_chooses_less_surely_than_a_balanced_one():
    def width(counts):
        logits, labels = posterior_model(counts)
        low, high = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR).interval
        return high - low

    assert width([4000, 100, 20, 8]) > width([4000] * 4)


def test_the_curve_holds_the_balanced_error_of_each_tau_and_the_choice_is_its_lowest():
    logits, labels = posterior_model([300, 100, 50, 20])
    choice = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR, temperature=1.3)
    for tau, value in choice.curve[::10]:
        predicted = (logits / 1.3 - tau * LOG_PRIOR).argmax(1)
        assert value == pytest.approx(balanced_error(predicted, labels, 4))
    assert dict(choice.curve)[choice.chosen] == min(value for _, value in choice.curve)
    for (_, value), (low, high) in zip(choice.curve, choice.bands, strict=True):
        assert low <= value <= high


def test_with_a_uniform_source_every_tau_is_as_good_and_one_is_chosen():
    logits, labels = posterior_model([100] * 4)
    choice = calibrate.choose_tau(logits, labels, log_source_prior=UNIFORM)
    assert choice.chosen == 1
    assert choice.interval == (1, 1)


def test_with_the_source_as_target_no_adjustment_is_needed_at_any_tau():
    logits, labels = posterior_model([400, 200, 100, 50])
    choice = calibrate.choose_tau(
        logits, labels, log_source_prior=LOG_PRIOR, log_target_prior=LOG_PRIOR
    )
    errors = [value for _, value in choice.curve]
    assert max(errors) == pytest.approx(min(errors))


def test_a_class_absent_from_the_split_has_no_say_in_the_choice():
    logits, labels = posterior_model([300, 100, 50, 0])
    choice = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR)
    predicted = logits.argmax(1)
    assert dict(choice.curve)[0.0] == pytest.approx(balanced_error(predicted, labels, 4))
