"""The class prior of unlabelled data is recovered, with intervals that contain it."""

import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.contract.shift import label_shift
from service.contract.shift.estimation import Replicates
from service.contract.shift.label_shift import NotConverged, bbse_prior, em_prior

SOURCE = np.array([0.7, 0.2, 0.1])


def posteriors(prior, n=4000, seed=0, separation=2.0):
    """Exact posteriors under SOURCE of examples that follow `prior`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=prior)
    x = rng.normal(size=(n, 3)) + separation * np.eye(3)[labels]
    return softmax(separation * x + np.log(SOURCE)), labels


def estimate_prior(p, *, source_prior, replicates=None):
    """Of posteriors, as if their logs were logits."""
    return label_shift.estimate_prior(
        np.log(np.maximum(p, 1e-300)),
        temperature=1.0,
        log_source=np.log(source_prior),
        replicates=replicates,
    )


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
        estimate = estimate_prior(p, source_prior=SOURCE)
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
    estimate = estimate_prior(p, source_prior=SOURCE)
    assert estimate.prior == pytest.approx([0, 1, 0])
    assert estimate.effective_n == pytest.approx(50, rel=0.1) or estimate.effective_n < 50
    assert estimate.low[1] > 0.8


def test_drawing_in_pieces_changes_nothing(monkeypatch):
    p, _ = posteriors([0.2, 0.3, 0.5], n=100)
    doubt = Replicates(
        temperature=[1.1, 0.9], log_source=[np.log(SOURCE).tolist(), np.log(SOURCE[::-1]).tolist()]
    )
    whole = estimate_prior(p, source_prior=SOURCE, replicates=doubt)
    monkeypatch.setattr(label_shift, "_CHUNK_CELLS", 25)
    pieces = estimate_prior(p, source_prior=SOURCE, replicates=doubt)
    assert pieces.low == pytest.approx(whole.low, abs=1e-12)


def test_doubt_about_the_calibration_widens_the_interval():
    p, _ = posteriors([0.2, 0.3, 0.5])
    log_source = np.log(SOURCE)
    moved = log_source + np.array([0.3, 0.0, -0.3])
    doubt = Replicates(temperature=[1.2, 0.8], log_source=[moved.tolist(), log_source.tolist()])
    sure = estimate_prior(p, source_prior=SOURCE)
    unsure = estimate_prior(p, source_prior=SOURCE, replicates=doubt)
    assert unsure.prior == pytest.approx(sure.prior)
    assert (unsure.high - unsure.low > sure.high - sure.low).all()
    assert unsure.effective_n < sure.effective_n


def test_the_step_to_a_replicates_estimate_is_about_the_estimate_itself():
    p, _ = posteriors([0.2, 0.3, 0.5])
    other = np.log(SOURCE) + np.array([0.02, 0.0, -0.02])
    doubt = Replicates(temperature=[1.0, 1.0], log_source=[other.tolist(), other.tolist()])
    base = estimate_prior(p, source_prior=SOURCE)
    exact = estimate_prior(p, source_prior=np.exp(other)).prior - base.prior
    added = estimate_prior(p, source_prior=SOURCE, replicates=doubt).covariance - base.covariance
    assert np.sqrt(added.diagonal()) == pytest.approx(np.abs(exact) * 2.093 / 1.96, rel=0.1)


def test_beyond_a_number_of_classes_variances_stand_alone(monkeypatch):
    p, _ = posteriors([0.2, 0.3, 0.5])
    whole = estimate_prior(p, source_prior=SOURCE)
    monkeypatch.setattr(label_shift, "MAX_CLASSES_WITH_COVARIANCE", 2)
    alone = estimate_prior(p, source_prior=SOURCE)
    assert alone.covariance.shape == (3,)
    assert alone.high - alone.low == pytest.approx(whole.high - whole.low, rel=0.5)


def test_made_up_rows_pull_the_estimate_toward_a_prior_and_fewer_real_rows_resist_less():
    p, _ = posteriors([0.2, 0.3, 0.5], n=400)
    ratios, uniform = p / SOURCE, np.full(3, 1 / 3)
    alone = label_shift.climb(ratios, start=SOURCE)
    pulled = label_shift.climb(ratios, start=SOURCE, toward=uniform, strength=100)
    further = label_shift.climb(ratios, start=SOURCE, toward=uniform, strength=10_000)
    distances = [np.abs(each - uniform).sum() for each in (alone, pulled, further)]
    assert distances == sorted(distances, reverse=True)
    assert further == pytest.approx(uniform, abs=0.02)


def test_a_class_that_the_target_forbids_stays_forbidden_in_the_pulled_estimate():
    p, _ = posteriors([0.2, 0.3, 0.5], n=200)
    target = np.array([0.5, 0.5, 0.0])
    pulled = label_shift.climb(p / SOURCE, start=target, toward=target, strength=15)
    assert pulled[2] == 0
    assert pulled.sum() == pytest.approx(1)


def test_a_confusion_matrix_gives_the_prior_that_it_was_made_of():
    rates = np.array([[0.8, 0.3], [0.2, 0.7]])
    prior = np.array([0.1, 0.9])
    cells = rates * np.array([600.0, 400.0])
    assert bbse_prior(cells, 1000 * rates @ prior) == pytest.approx(prior)
    assert bbse_prior(cells, [50.0, 950.0]) == pytest.approx([0, 1])
    assert bbse_prior(np.array([[50.0, 49.9], [50.0, 50.1]]), [1, 1]) is None
    assert bbse_prior(np.array([[5.0, 0.0], [0.0, 0.0]]), [1, 1]) is None


def test_an_estimate_that_does_not_settle_is_refused(monkeypatch):
    monkeypatch.setattr(label_shift, "MAX_ITERATIONS", 3)
    with pytest.raises(NotConverged, match="after 3 iterations"):
        em_prior(posteriors([0.05, 0.15, 0.8])[0], source_prior=SOURCE)


def test_an_estimate_is_no_surer_than_the_labelled_rows_that_it_is_worth():
    p, _ = posteriors(np.array([0.2, 0.3, 0.5]))
    found = estimate_prior(p, source_prior=np.full(3, 1 / 3))
    assert label_shift.no_surer(found, None) is found
    wider = label_shift.no_surer(found, 100.0)
    np.testing.assert_allclose(wider.prior, found.prior)
    assert (wider.high - wider.low > found.high - found.low).all()
    alone = label_shift.no_surer(
        label_shift.with_intervals(found.prior, np.diag(found.covariance), n=found.n), 100.0
    )
    np.testing.assert_allclose(alone.low, wider.low)


def test_rows_of_one_input_are_found_whatever_their_order_and_rounding():
    rng = np.random.default_rng(1)
    few = rng.normal(size=(40, 5))
    which = rng.integers(40, size=300)
    rounded = few[which] + rng.normal(size=(300, 5)) * 1e-6
    found = label_shift.inputs_of(rounded)
    assert len(np.unique(found)) == len(np.unique(which))
    assert all(len(np.unique(which[found == one])) == 1 for one in np.unique(found))
    assert label_shift.inputs_of(few) is None
    assert label_shift.inputs_of(few[:1]) is None


def test_inputs_that_come_again_count_once_for_the_certainty():
    p, _ = posteriors([0.2, 0.3, 0.5], n=500)
    logits = np.log(p)
    common = {"temperature": 1.0, "log_source": np.log(SOURCE)}
    once = label_shift.estimate_prior(logits, **common)
    again = np.tile(logits, (4, 1))
    believed = label_shift.estimate_prior(again, **common)
    known = label_shift.estimate_prior(again, **common, inputs=label_shift.inputs_of(again))
    assert known.prior == pytest.approx(once.prior, abs=1e-5)
    assert known.covariance == pytest.approx(once.covariance, rel=0.05, abs=1e-6)
    assert believed.covariance.trace() == pytest.approx(once.covariance.trace() / 4, rel=0.05)
    assert known.effective_n == pytest.approx(once.effective_n, rel=0.05)


def test_the_calibrations_share_of_the_variances_is_told_apart():
    p, _ = posteriors([0.2, 0.3, 0.5], n=500)
    found = estimate_prior(p, source_prior=SOURCE)
    assert found.calibration_variance.tolist() == [0.0] * 3
    wider = label_shift.less_sure(found, np.array([0.1, 0.2, 0.3]))
    assert wider.calibration_variance == pytest.approx([0.1, 0.2, 0.3])
    assert wider.calibration_covariance[0, 1] < 0
    assert label_shift.with_intervals(found.prior, found.covariance, n=9).calibration_variance == 0
