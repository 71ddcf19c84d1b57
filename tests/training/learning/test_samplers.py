"""Samplers: the class mix that they promise, determinism, and what they record."""

import numpy as np
import pytest
import torch

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
        for loss in LOSSES:
            if loss in ("erm", "adaptive", "focal"):
                continue
            with pytest.raises(InvalidObjective, match="both divide out the label frequencies"):
                recorded(make_loss(loss, COUNTS), make_sampler(sampler, LABELS, 4, seed=0))


def test_a_resampling_sampler_with_a_plain_loss_records_the_samplers_share():
    square_root = make_sampler("square-root", LABELS, 4, seed=0)
    assert recorded(make_loss("erm", COUNTS), square_root) == (0.5, "exact")
    assert recorded(make_loss("adaptive", COUNTS), square_root) == (0.5, "approximate")
    assert recorded(make_loss("logit-adjusted", COUNTS, loss_tau=0), square_root).loss_tau == 0.5


def test_ldam_without_its_later_weights_may_be_resampled():
    together = recorded(
        make_loss("ldam", COUNTS, drw=0), make_sampler("balanced", LABELS, 4, seed=0)
    )
    assert together == (1.0, "approximate")


def optimal_logits(loss, likelihoods, class_prior):
    """[X, C] the logits at which the expected loss of each of X values of x is least."""
    joint = torch.from_numpy(likelihoods * class_prior)
    weights = joint / joint.sum(dim=1, keepdim=True)
    labels = torch.arange(joint.shape[1]).expand_as(joint).reshape(-1)
    logits = torch.zeros(joint.shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [logits], max_iter=500, history_size=30, line_search_fn="strong_wolfe"
    )

    def expected():
        search.zero_grad()
        each = loss.double().example_loss(logits.repeat_interleave(joint.shape[1], 0), labels)
        total = (each.reshape(joint.shape) * weights).sum()
        total.backward()
        return total

    search.step(expected)
    return logits.detach().numpy()


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_the_best_logits_of_every_exact_combination_have_the_recorded_source_prior(sampler_name):
    """For 30 values of x with known p(x | y), softmax(f) is p(y | x) at the recorded sigma."""
    own = COUNTS / COUNTS.sum()
    likelihoods = np.random.default_rng(1).dirichlet(np.ones(30), size=len(own)).T
    sampler = make_sampler(sampler_name, LABELS, len(own), seed=0)
    checked = 0
    for name in LOSSES:
        objective = make_loss(name, COUNTS)
        try:
            share, exactness = recorded(objective, sampler)
        except InvalidObjective:
            continue
        drawn = sampler.class_prior(1.0)
        if exactness == "approximate":
            continue
        logits = optimal_logits(objective, likelihoods, own if drawn is None else drawn)
        log_source = (1 - share) * np.log(own)
        posteriors = likelihoods * np.exp(log_source)
        posteriors /= posteriors.sum(axis=1, keepdims=True)
        found = np.exp(logits - logits.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
        assert found == pytest.approx(posteriors, abs=2e-3), name
        assert (logits - log_source).argmax(axis=1).tolist() == likelihoods.argmax(axis=1).tolist()
        checked += 1
    assert checked == {"uniform": 5, "balanced": 1, "square-root": 1}.get(sampler_name, 0)


def test_an_unknown_sampler_is_refused_with_the_names():
    with pytest.raises(InvalidObjective, match="expected one of uniform, balanced"):
        make_sampler("class-aware", LABELS, 4, seed=0)
