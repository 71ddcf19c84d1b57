"""Samplers: the class mix that they promise, determinism, and what they record."""

import numpy as np
import pytest

from training.learning.losses import LOSSES, InvalidObjective, make_loss
from training.learning.samplers import SAMPLERS, divided_share, make_sampler, recorded

COUNTS = np.array([4000, 900, 90, 10])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


def drawn_mix(name, epoch, total=10, **options):
    sampler = make_sampler(name, LABELS, 4, seed=3, **options)
    indices = sampler.epoch_indices(epoch, total)
    assert len(indices) == len(LABELS)
    return np.bincount(LABELS[indices], minlength=4) / len(indices)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_is_determined_by_the_seed_and_its_number(name):
    def draw(seed, epoch):
        return make_sampler(name, LABELS, 4, seed=seed).epoch_indices(epoch, 10)

    assert np.array_equal(draw(1, 9), draw(1, 9))
    assert not np.array_equal(draw(1, 9), draw(1, 8))
    assert not np.array_equal(draw(1, 9), draw(2, 9))


def test_uniform_shows_every_example_once():
    indices = make_sampler("uniform", LABELS, 4, seed=0).epoch_indices(2, 5)
    assert np.array_equal(np.sort(indices), np.arange(len(LABELS)))


def test_balanced_shows_the_classes_equally_often():
    assert drawn_mix("balanced", 0) == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_balanced_shows_each_example_of_a_class_equally_often_but_for_one():
    indices = make_sampler("balanced", LABELS, 4, seed=0).epoch_indices(0, 5)
    for label in range(4):
        times = np.bincount(indices[LABELS[indices] == label], minlength=len(LABELS))[
            label == LABELS
        ]
        assert times.max() - times.min() <= 1


def test_square_root_draws_by_the_root_of_the_counts():
    expected = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    assert drawn_mix("square-root", 0) == pytest.approx(expected, abs=0.02)


def test_effective_number_lies_between_uniform_and_balanced():
    own = COUNTS / COUNTS.sum()
    head = drawn_mix("effective-number", 0)[0]
    assert head > 0.25
    assert head < own[0]
    nearly_uniform = drawn_mix("effective-number", 0, beta=1e-9)
    assert nearly_uniform == pytest.approx(own, abs=0.02)


def test_progressive_goes_from_the_training_mix_to_a_balanced_one():
    own = COUNTS / COUNTS.sum()
    assert drawn_mix("progressive", 0) == pytest.approx(own, abs=0.02)
    assert drawn_mix("progressive", 9) == pytest.approx(np.full(4, 0.25), abs=0.02)
    half = (own + 0.25) / 2
    assert drawn_mix("progressive", 5, total=11) == pytest.approx(half, abs=0.02)


def test_deferred_switches_to_balanced_at_its_share_of_the_run():
    own = COUNTS / COUNTS.sum()
    assert drawn_mix("deferred", 7, total=11) == pytest.approx(own)
    assert drawn_mix("deferred", 8, total=11) == pytest.approx(np.full(4, 0.25), abs=0.02)
    assert drawn_mix("deferred", 5, total=11, switch=0.5) == pytest.approx(
        np.full(4, 0.25), abs=0.02
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_class_without_an_example_is_never_drawn(name):
    labels = np.array([0, 0, 0, 2])
    sampler = make_sampler(name, labels, 4, seed=0)
    for epoch in range(3):
        assert set(labels[sampler.epoch_indices(epoch, 3)]) <= {0, 2}


def test_what_a_sampler_divides_out_is_recorded():
    def of(name):
        sampler = make_sampler(name, LABELS, 4, seed=0)
        return sampler.recorded_loss_tau, sampler.source_prior

    assert of("uniform") == (None, "exact")
    assert of("balanced") == (1.0, "exact")
    assert of("square-root") == (0.5, "exact")
    assert of("progressive") == of("deferred") == (1.0, "approximate")
    share, exactness = of("effective-number")
    assert 0 < share < 1
    assert exactness == "approximate"


def test_the_divided_share_is_the_exponent_that_was_used():
    own = COUNTS / COUNTS.sum()
    for exponent in (0.0, 0.3, 1.0):
        mix = own ** (1 - exponent) / (own ** (1 - exponent)).sum()
        assert divided_share(own, mix) == pytest.approx(exponent)
    assert divided_share(np.full(3, 1 / 3), np.full(3, 1 / 3)) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_with_the_uniform_sampler_the_loss_decides_what_is_recorded(name):
    objective = make_loss(name, COUNTS)
    together = recorded(objective, make_sampler("uniform", LABELS, 4, seed=0))
    assert together == (objective.recorded_loss_tau, objective.source_prior)


def test_a_resampling_sampler_with_a_loss_that_adjusts_too_is_refused():
    for sampler in SAMPLERS[1:]:
        for loss in ("logit-adjusted", "balanced", "balanced-softmax", "ldam"):
            with pytest.raises(InvalidObjective, match="both divide out the label frequencies"):
                recorded(make_loss(loss, COUNTS), make_sampler(sampler, LABELS, 4, seed=0))


def test_a_resampling_sampler_with_a_plain_loss_records_the_samplers_share():
    square_root = make_sampler("square-root", LABELS, 4, seed=0)
    assert recorded(make_loss("erm", COUNTS), square_root) == (0.5, "exact")
    assert recorded(make_loss("adaptive", COUNTS), square_root) == (0.5, "approximate")
    assert recorded(make_loss("logit-adjusted", COUNTS, loss_tau=0), square_root).loss_tau == 0.5


def test_an_unknown_sampler_is_refused_with_the_names():
    with pytest.raises(InvalidObjective, match="expected one of uniform, balanced"):
        make_sampler("class-aware", LABELS, 4, seed=0)
