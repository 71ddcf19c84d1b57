"""Calibration finds the true values of made-up data, and refuses a split that is too small."""

import numpy as np
import pytest
from scipy.special import logit

from service.contract.adjustment import log_normalise, softmax
from service.contract.scores import (
    balanced_error,
    negative_log_likelihood,
    proportion_interval,
)
from training.scores import calibrate

PRIOR = np.array([0.7, 0.2, 0.08, 0.02])
LOG_PRIOR = np.log(PRIOR)
UNIFORM = np.full(4, -np.log(4))


def posterior_model(n_per_class, *, temperature=1.0, bias=0.0, seed=0):
    """Logits [n, 4] of a classifier that is right under PRIOR, then distorted; and labels."""
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
    """With the prior of log T, which is a row's worth or two."""
    logits, labels = posterior_model([50, 40, 30, 20], temperature=1.7)
    validation = calibrate.log_validation_prior_of(labels, 4)
    found = calibrate.fit_temperature(
        logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=validation
    )

    def loss(temperature):
        penalty = np.log(temperature) ** 2 / (2 * calibrate.LOG_TEMPERATURE_SD**2)
        return len(labels) * nll(logits, labels, temperature, LOG_PRIOR, validation) + penalty

    for factor in (0.8, 0.97, 1.03, 1.25):
        assert loss(found * factor) > loss(found)


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
    found = calibrate.calibrate_temperature(perfect, labels, **args)
    assert found.interval[0] == calibrate.MIN_TEMPERATURE
    opposite = calibrate.calibrate_temperature(-perfect, labels, **args)
    assert opposite.interval[1] == pytest.approx(calibrate.MAX_TEMPERATURE)
    assert 1 < opposite.value < calibrate.MAX_TEMPERATURE


def temperature_of(logits, labels):
    return calibrate.calibrate_temperature(
        logits,
        labels,
        log_source_prior=LOG_PRIOR,
        log_validation_prior=calibrate.log_validation_prior_of(labels, 4),
    )


def test_a_split_of_one_class_leaves_the_temperature_at_one_and_says_why():
    found = temperature_of(*posterior_model([200, 0, 0, 0], temperature=3.0))
    assert found.value == 1
    assert "all of one class" in found.why_one
    assert found.is_wide


def test_a_split_without_an_error_leaves_the_temperature_at_one_and_says_why():
    labels = np.arange(40) % 4
    found = temperature_of(8 * np.eye(4)[labels] + LOG_PRIOR, labels)
    assert found.value == 1
    assert "none of the 40 validation rows is wrong" in found.why_one


def test_a_split_that_fits_a_range_up_to_a_bound_says_so():
    logits, labels = posterior_model([12, 4, 4, 4], seed=5)
    logits[np.arange(len(labels)), labels] += 6
    logits[0] = 0.0
    logits[0, 1] = 0.2
    found = temperature_of(logits, labels)
    if found.why_one is not None:
        assert "24 validation rows" in found.why_one
    assert found.value == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("rows", [30, 120])
@pytest.mark.parametrize("spread", [1.0, 2.2])
def test_a_fitted_temperature_is_never_worse_than_none_by_more_than_noise(rows, spread):
    """Logits that are exactly right: the loss of a fit is what its noise costs, on 1,000 rows."""
    losses, held, prior = [], [], np.array([0.6, 0.3, 0.1])
    for seed in range(60):
        rng = np.random.default_rng([9, seed])
        centres = np.random.default_rng(5).normal(size=(3, 4)) * spread
        labels = rng.choice(3, rows + 1000, p=prior)
        x = centres[labels] + rng.normal(size=(len(labels), 4))
        f = -0.5 * ((x[:, None] - centres) ** 2).sum(2) + np.log(prior)
        split = labels[:rows]
        found = calibrate.calibrate_temperature(
            f[:rows],
            split,
            log_source_prior=np.log(prior),
            log_validation_prior=calibrate.log_validation_prior_of(split, 3),
        )
        z = [log_normalise(f[rows:] / t) for t in (found.value, 1.0)]
        fitted, plain = (negative_log_likelihood(each, labels[rows:]) for each in z)
        losses.append(fitted - plain)
        held.append(found.interval[0] <= 1 <= found.interval[1])
    assert np.mean(losses) < 1 / rows
    assert np.mean(held) >= 0.88  # 0.95, and the noise of 60 runs


@pytest.mark.parametrize("errors", [1, 3, 20])
def test_the_interval_of_the_temperature_is_wilsons_where_all_rows_have_one_margin(errors):
    """Then T is a function of the error alone, whose score interval is Wilson's."""
    rows, margin, uniform = 100, 3.0, np.log([0.5, 0.5])
    labels = np.arange(rows) % 2
    logits = margin * np.eye(2)[labels]
    logits[:errors] = logits[:errors, ::-1]
    found = calibrate.calibrate_temperature(
        logits, labels, log_source_prior=uniform, log_validation_prior=uniform
    )
    expected = [margin / -logit(end) for end in proportion_interval(errors / rows, rows)]
    assert found.interval == pytest.approx(expected, rel=1e-3)


def test_the_score_of_a_temperature_is_standard_normal_at_the_truth():
    scores = []
    for seed in range(150):
        logits, labels = posterior_model([100, 30, 20, 10], temperature=1.5, seed=seed)
        split = calibrate.SplitLikelihood.of(
            logits,
            labels,
            log_source_prior=LOG_PRIOR,
            log_validation_prior=calibrate.log_validation_prior_of(labels, 4),
        )
        scores.append(split.score(1 / 1.5))
    assert np.mean(scores) == pytest.approx(0, abs=0.2)
    assert np.std(scores) == pytest.approx(1, abs=0.15)


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
    logits, labels = posterior_model([100, 100, 0, 0])
    with pytest.raises(
        calibrate.CalibrationRefused, match=r"2 of 4 classes have none \(the first is class 2\)"
    ):
        calibrate.fit_bcts(
            logits, labels, log_source_prior=LOG_PRIOR, log_validation_prior=LOG_PRIOR
        )


def test_the_bias_of_a_class_with_few_rows_stays_small():
    logits, labels = posterior_model([400, 100, 30, 2], bias=np.array([0, 0, 0, 3.0]))
    fitted = calibrate.fit_bcts(
        logits,
        labels,
        log_source_prior=LOG_PRIOR,
        log_validation_prior=calibrate.log_validation_prior_of(labels, 4),
    )
    assert abs(fitted.bias[3]) < 1.5


@pytest.mark.parametrize("counts", [[1000] * 4, [3000, 800, 300, 80]])
def test_for_a_true_posterior_the_chosen_tau_is_one_within_its_interval(counts):
    logits, labels = posterior_model(counts)
    choice = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR)
    assert choice.interval[0] <= 1 <= choice.interval[1]
    assert choice.interval[0] <= choice.lowest <= choice.interval[1]
    assert choice.chosen == 1
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
    assert dict(choice.curve)[choice.lowest] == min(value for _, value in choice.curve)
    for (_, value), (low, high) in zip(choice.curve, choice.bands, strict=True):
        assert low <= value <= high


def test_with_a_uniform_source_every_tau_is_as_good_and_one_is_chosen():
    logits, labels = posterior_model([100] * 4)
    choice = calibrate.choose_tau(logits, labels, log_source_prior=UNIFORM)
    assert choice.chosen == choice.lowest == 1
    assert choice.interval == (0, 4)


def test_tau_leaves_one_where_validation_is_sure():
    """Logits that hold the source prior twice need tau = 2."""
    logits, labels = posterior_model([2000] * 4)
    choice = calibrate.choose_tau(logits + LOG_PRIOR, labels, log_source_prior=LOG_PRIOR)
    assert choice.chosen == choice.lowest
    assert choice.chosen == pytest.approx(2, abs=0.4)


def test_tau_is_not_lowered_for_the_frequent_class_where_the_rare_one_has_no_row():
    """A validation split without the rare class says nothing of what a lower tau would cost it."""
    rng = np.random.default_rng(4)
    logits, labels = rng.normal((2.0, -2.0), size=(2000, 2)), np.zeros(2000, np.int64)
    source = np.log([0.999, 0.001])
    choice = calibrate.choose_tau(logits, labels, log_source_prior=source)
    assert dict(choice.curve)[1.0] > dict(choice.curve)[choice.lowest] + 0.2
    assert choice.chosen == 1
    assert choice.interval == (0, 4)


def test_the_interval_of_tau_holds_the_best_tau_and_the_choice_rarely_costs():
    held, cost = [], []
    for seed in range(25):
        logits, labels = posterior_model([100, 40, 12, 4], seed=seed)
        choice = calibrate.choose_tau(logits, labels, log_source_prior=LOG_PRIOR)
        fresh, truth = posterior_model([1500] * 4, seed=1000 + seed)
        errors = {
            tau: balanced_error((fresh - tau * LOG_PRIOR).argmax(1), truth, 4)
            for tau in (choice.chosen, choice.lowest, 1.0)
        }
        held.append(choice.interval[0] <= 1 <= choice.interval[1])
        cost.append(errors[choice.chosen] - errors[1.0])
    assert np.mean(held) >= 0.92
    assert np.mean(np.array(cost) > 0.01) <= 0.08


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
