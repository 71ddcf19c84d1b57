"""Scores: the definitions, and the relations between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss

from service.contract import scores
from service.contract.adjustment import log_softmax, softmax

COUNTS = np.array([500, 101, 100, 20, 19, 1])


def split(n=400, num_classes=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, n, p=COUNTS[:num_classes] / COUNTS[:num_classes].sum())
    labels[:num_classes] = np.arange(num_classes)
    logits = rng.normal(size=(n, num_classes)) + 2 * np.eye(num_classes)[labels]
    return logits, labels


def test_groups_follow_the_training_counts():
    names = [scores.group_of(count) for count in COUNTS]
    assert names == ["many", "many", "medium", "medium", "few", "few"]


def test_balanced_error_is_one_minus_balanced_accuracy():
    logits, labels = split()
    predicted = logits.argmax(1)
    expected = 1 - balanced_accuracy_score(labels, predicted)
    assert scores.balanced_error(predicted, labels, 6) == pytest.approx(expected)


def test_on_a_balanced_split_balanced_error_is_error():
    logits, _ = split()
    labels = np.arange(400) % 5
    predicted = logits[:, :5].argmax(1)
    assert scores.balanced_error(predicted, labels, 5) == pytest.approx(
        scores.error(predicted, labels)
    )


def test_a_class_without_examples_has_no_error_and_no_say():
    predicted, labels = np.array([0, 1, 2]), np.array([0, 0, 1])
    errors = scores.per_class_errors(predicted, labels, 3)
    assert errors[:2].tolist() == [0.5, 1.0]
    assert np.isnan(errors[2])
    assert scores.balanced_error(predicted, labels, 3) == 0.75
    groups = scores.group_errors(errors, [500, 50, 5])
    assert (groups["many"], groups["medium"]) == (0.5, 1.0)
    assert np.isnan(groups["few"])


def test_a_groups_error_is_the_mean_of_its_classes_errors():
    errors = np.array([0.1, 0.3, 0.2, 0.6, 0.5, 0.9])
    groups = scores.group_errors(errors, COUNTS)
    assert groups == pytest.approx({"many": 0.2, "medium": 0.4, "few": 0.7})


def test_target_weights_give_the_split_the_targets_mix():
    _, labels = split()
    target = np.array([1, 2, 3, 4, 5, 0])
    weights = scores.target_weights(labels, target)
    assert weights.mean() == pytest.approx(1)
    assert scores.class_totals(labels, 6, weights) == pytest.approx(400 * target / 15)


def test_under_a_uniform_target_the_weighted_error_is_the_balanced_error():
    logits, labels = split()
    predicted = logits.argmax(1)
    weights = scores.target_weights(labels, np.ones(6))
    assert np.average(predicted != labels, weights=weights) == pytest.approx(
        scores.balanced_error(predicted, labels, 6)
    )


def test_a_target_that_the_split_cannot_show_is_refused():
    with pytest.raises(ValueError, match="no mass to any class of the split"):
        scores.target_weights(np.array([0, 0]), np.array([0.0, 1.0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_likelihood_and_brier_agree_with_scikit_learn(weighted):
    logits, labels = split()
    weights = scores.target_weights(labels, np.ones(6)) if weighted else None
    p = softmax(logits)
    ours = scores.negative_log_likelihood(log_softmax(logits), labels, weights)
    assert ours == pytest.approx(log_loss(labels, p, sample_weight=weights))
    expected = brier_score_loss(labels, p, sample_weight=weights, scale_by_half=False)
    assert scores.brier(p, labels, weights) == pytest.approx(expected)


def test_calibration_error_is_the_gap_when_all_confidences_are_equal():
    p = np.tile([0.7, 0.3], (10, 1))
    labels = np.array([0] * 5 + [1] * 5)
    assert scores.expected_calibration_error(p, labels) == pytest.approx(0.2)
    weights = np.array([2.0] * 5 + [0.0] * 5)
    assert scores.expected_calibration_error(p, labels, weights) == pytest.approx(0.3)


def test_a_calibrated_classifier_has_a_calibration_error_near_zero():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(40_000, 3)) * 2)
    labels = (rng.random((40_000, 1)) > p.cumsum(1)).sum(1).clip(max=2)
    assert scores.expected_calibration_error(p, labels) < 0.01
    assert scores.expected_calibration_error(softmax(np.log(p) * 4), labels) > 0.05


def test_bins_of_the_reliability_diagram_hold_their_upper_edge_and_may_be_empty():
    p = np.array([[0.5, 0.5], [0.6, 0.4], [1.0, 0.0]])
    diagram = scores.reliability(p, np.array([0, 1, 0]), bins=5)
    assert diagram.share == pytest.approx([0, 0, 2 / 3, 0, 1 / 3])
    assert diagram.accuracy[[2, 4]] == pytest.approx([0.5, 1.0])
    assert diagram.confidence[[2, 4]] == pytest.approx([0.55, 1.0])
    assert np.isnan(diagram.accuracy[0])


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_every_score_is_within_its_range(seed, num_classes):
    logits, labels = split(60, num_classes, seed)
    p = softmax(logits)
    assert 0 <= scores.balanced_error(logits.argmax(1), labels, num_classes) <= 1
    assert 0 <= scores.expected_calibration_error(p, labels) <= 1
    assert 0 <= scores.brier(p, labels) <= 2
    assert scores.negative_log_likelihood(np.log(p), labels) >= 0


@pytest.mark.parametrize("name", ["error", "balanced_error"])
def test_intervals_of_errors_are_those_of_drawing_examples_again(name):
    """Where every class has many examples; with few, drawing them again has no width."""
    logits, labels = split(2000)
    rows = labels < 5  # the sixth class has one example
    predicted, labels = logits.argmax(1)[rows], labels[rows]
    totals = scores.class_totals(labels, 5)
    errors = scores.per_class_errors(predicted, labels, 5)
    drawn = scores.bootstrap_rng(0).binomial(totals.astype(int), errors, size=(4000, 5))
    means = {
        "error": drawn.sum(axis=1) / totals.sum(),
        "balanced_error": (drawn / totals).mean(axis=1),
    }
    fast = getattr(scores.error_intervals(errors, totals), name)
    assert fast == pytest.approx(np.quantile(means[name], [0.025, 0.975]), abs=0.015)


def coverage(totals, draw_errors, runs=400):
    """How often the interval of the balanced error holds the true one."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(runs):
        truth = draw_errors(rng)
        seen = rng.binomial(totals, truth) / totals
        low, high = scores.error_intervals(seen, totals).balanced_error
        hits += low <= truth.mean() <= high
    return hits / runs


@pytest.mark.parametrize(
    ("classes", "rows"), [(50, 1), (20, 2), (20, 3), (10, 5), (10, 10), (10, 1000)]
)
@pytest.mark.parametrize(("least", "most"), [(0.02, 0.1), (0.1, 0.6)])
def test_the_interval_of_a_balanced_error_holds_it_with_few_rows_a_class(
    classes, rows, least, most
):
    held = coverage(np.full(classes, rows), lambda rng: rng.uniform(least, most, classes))
    assert 0.92 <= held <= 0.985  # 0.95, and the noise of 400 runs


@pytest.mark.parametrize("order", [1, -1])
def test_the_interval_of_a_balanced_error_holds_it_on_a_longtailed_split(order):
    totals = np.array([40, 31, 24, 19, 15, 11, 9, 7, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1])
    assert 0.92 <= coverage(totals, lambda _: np.linspace(0.05, 0.5, 20)[::order]) <= 0.985


def test_one_class_of_one_row_widens_the_interval_by_its_own_doubt():
    totals = np.array([1000] * 19 + [1])
    assert coverage(totals, lambda rng: np.r_[np.full(19, 0.02), rng.uniform()]) >= 0.92


def test_an_interval_has_a_width_when_no_answer_is_wrong():
    low, high = scores.proportion_interval(0.0, 42)
    assert (low, high) == (0.0, pytest.approx(0.084, abs=0.001))
    (_, error), (_, balanced) = scores.error_intervals(np.zeros(3), [14, 14, 14])
    assert error == pytest.approx(high)
    assert balanced == pytest.approx(high)


def test_with_equal_totals_the_balanced_interval_is_wilsons():
    errors = np.array([0.1, 0.3, 0.2])
    both = scores.error_intervals(errors, [50, 50, 50])
    assert both.balanced_error == pytest.approx(both.error, rel=0.1)


def test_a_class_that_weighs_nothing_has_no_part_in_a_weighted_interval():
    errors, totals = np.array([0.2, 0.4, 0.9]), np.array([100, 100, 5])
    weighted = scores.mean_error_interval(errors, totals, shares=[1, 1, 0])
    assert weighted == pytest.approx(scores.mean_error_interval(errors[:2], totals[:2]), abs=0.01)


def test_a_paired_difference_of_a_class_of_one_row_has_a_standard_error():
    labels = np.array([0, 0, 1])
    same, worse = np.zeros(3), np.array([0.0, 0.0, 1.0])
    found = scores.paired_standard_errors(np.stack([same, worse]), labels, np.full(2, 0.5))
    assert (found > 0.1).all()
    assert found[1] > found[0]


def test_the_interval_of_the_error_is_wider_for_fewer_examples():
    errors, totals = np.array([0.2, 0.4]), np.array([10_000, 10_000])
    (low, high), _ = scores.error_intervals(errors, totals)
    (lower, higher), _ = scores.error_intervals(errors, totals / 100)
    assert higher - lower > 5 * (high - low)


def test_an_interval_leaves_out_classes_without_examples():
    for low, high in scores.error_intervals(np.array([0.5, np.nan]), [100, 0]):
        assert 0.3 < low < 0.5 < high < 0.7


def test_intervals_are_the_same_for_the_same_seed_and_wider_for_a_higher_level():
    """These metrics need no seed."""
    errors, totals = np.array([0.2, 0.4]), [50, 50]
    narrow = scores.error_intervals(errors, totals, level=0.5)
    assert narrow == scores.error_intervals(errors, totals, level=0.5)
    wide = scores.error_intervals(errors, totals, level=0.99)
    for (low, high), (lower, higher) in zip(narrow, wide, strict=True):
        assert lower < low < high < higher


def test_resampling_is_independent_of_data_drawn_from_the_same_seed():
    data, again = np.random.default_rng(7).random(500), scores.bootstrap_rng(7).random(500)
    assert abs(np.corrcoef(data, again)[0, 1]) < 0.2
