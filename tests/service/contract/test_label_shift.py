"""The class prior of unlabelled data: found again, with intervals that hold it."""

import numpy as np
import pytest

from service.contract import label_shift
from service.contract.adjustment import softmax
from service.contract.label_shift import NotConverged, em_prior, estimate_prior

SOURCE = np.array([0.7, 0.2, 0.1])


def posteriors(prior, n=4000, seed=0, separation=2.0):
    """Exact posteriors under SOURCE of examples that follow `prior`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=prior)
    x = rng.normal(size=(n, 3)) + separation * np.eye(3)[labels]
    return softmax(separation * x + np.log(SOURCE)), labels


@pytest.mark.parametrize("prior", [SOURCE, [1 / 3, 1 / 3, 1 / 3], [0.05, 0.15, 0.8]])
def test_the_prior_of_the_data_is_found_again(prior):
    p, labels = posteriors(prior)
    found = em_prior(p, source_prior=SOURCE)
    assert found.sum() == pytest.approx(1)
    assert found == pytest.approx(np.bincount(labels) / len(labels), abs=0.02)


def test_the_estimate_is_a_fixed_point_and_no_other_prior_nearby_is_likelier():
    p, _ = posteriors([0.2, 0.3, 0.5])
    found = em_prior(p, source_prior=SOURCE)

    def likelihood(prior):
        return np.log(p @ (prior / SOURCE)).mean()

    rng = np.random.default_rng(1)
    for _ in range(20):
        other = found * np.exp(0.1 * rng.normal(size=3))
        assert likelihood(other / other.sum()) < likelihood(found)


def test_only_ratios_of_the_source_matter():
    p, _ = posteriors([0.2, 0.3, 0.5])
    assert em_prior(p, source_prior=SOURCE * 1000) == pytest.approx(
        em_prior(p, source_prior=SOURCE)
    )


def test_a_class_that_does_not_occur_gets_almost_nothing():
    p, _ = posteriors([0.5, 0.5, 0.0], separation=4.0)
    assert em_prior(p, source_prior=SOURCE)[2] < 1e-3


def test_the_interval_holds_the_estimate_and_narrows_with_more_data():
    small = estimate_prior(posteriors([0.2, 0.3, 0.5], n=200)[0], source_prior=SOURCE)
    large = estimate_prior(posteriors([0.2, 0.3, 0.5], n=4000)[0], source_prior=SOURCE)
    for estimate in (small, large):
        assert (estimate.low <= estimate.prior).all()
        assert (estimate.prior <= estimate.high).all()
    assert (large.high - large.low < small.high - small.low).all()
    assert (small.n, large.n) == (200, 4000)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = np.array([0.2, 0.3, 0.5])
    hits = []
    for seed in range(40):
        p, _ = posteriors(truth, n=400, seed=seed)
        estimate = estimate_prior(p, source_prior=SOURCE, resamples=100)
        hits.extend((estimate.low <= truth) & (truth <= estimate.high))
    assert 0.87 <= np.mean(hits) <= 1


def test_unlabelled_examples_are_worth_fewer_than_labelled_ones_and_more_when_classes_are_clear():
    vague = estimate_prior(posteriors([0.2, 0.3, 0.5], separation=1.0)[0], source_prior=SOURCE)
    clear = estimate_prior(posteriors([0.2, 0.3, 0.5], separation=4.0)[0], source_prior=SOURCE)
    assert vague.effective_n < 0.8 * vague.n
    assert vague.effective_n < clear.effective_n
    assert clear.effective_n == pytest.approx(clear.n, rel=0.25)


def test_when_every_example_is_the_same_nothing_varies():
    p = np.tile([[0.0, 1.0, 0.0]], (50, 1))
    estimate = estimate_prior(p, source_prior=SOURCE, resamples=20)
    assert estimate.prior == pytest.approx([0, 1, 0])
    assert estimate.effective_n == 50


def test_drawing_in_pieces_changes_nothing(monkeypatch):
    p, _ = posteriors([0.2, 0.3, 0.5], n=100)
    whole = estimate_prior(p, source_prior=SOURCE, resamples=7)
    monkeypatch.setattr(label_shift, "_CHUNK_CELLS", 250)
    pieces = estimate_prior(p, source_prior=SOURCE, resamples=7)
    assert pieces.low == pytest.approx(whole.low, abs=1e-5)


def test_an_estimate_that_does_not_settle_is_refused(monkeypatch):
    monkeypatch.setattr(label_shift, "MAX_ITERATIONS", 3)
    with pytest.raises(NotConverged, match="after 3 iterations"):
        em_prior(posteriors([0.05, 0.15, 0.8])[0], source_prior=SOURCE)
