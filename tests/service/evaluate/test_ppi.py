"""Errors of live traffic from few labels: right on average whatever the predictions are."""

import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.contract.members.costs import REJECTED
from service.evaluate import ppi
from service.evaluate.ppi import Labelled, Predicted, figures, without_labels

CLASSES = 8
ROWS = 4000
PRIOR = 0.606 ** np.arange(CLASSES) / (0.606 ** np.arange(CLASSES)).sum()
CENTRES = 2.2 * np.random.default_rng(5).normal(size=(CLASSES, 3))


def traffic(rng, rows=ROWS):
    """(posterior under the traffic's mix, decisions at a uniform target, labels)."""
    labels = rng.choice(CLASSES, rows, p=PRIOR)
    x = CENTRES[labels] + rng.normal(size=(rows, 3))
    likelihood = -0.5 * ((x[:, None] - CENTRES) ** 2).sum(axis=2)
    return softmax(likelihood + np.log(PRIOR)), likelihood.argmax(axis=1), labels


def predicted(posterior, decided, top=5):
    classes = np.argsort(-posterior, axis=1)[:, :top]
    kept = np.take_along_axis(posterior, classes, axis=1)
    return Predicted(classes, kept / kept.sum(axis=1, keepdims=True), decided)


def balanced(decided, labels):
    return np.mean([(decided[labels == y] != y).mean() for y in range(CLASSES)])


def truth():
    _, decided, labels = traffic(np.random.default_rng(1234), 400_000)
    return balanced(decided, labels)


def labelled(everything, labels, sampled, rng):
    chosen = np.flatnonzero(rng.random(len(labels)) < sampled)
    return Labelled(everything.take(chosen), labels[chosen], 1 / sampled[chosen])


def unsure_sampled(draw):
    """A stream's answers, and about 300 labels, drawn 8 times as often where unsure."""
    rng = np.random.default_rng(draw)
    posterior, decided, labels = traffic(rng)
    everything = predicted(posterior, decided)
    likelihood = np.where(posterior.max(axis=1) < 0.9, 8.0, 1.0)
    sampled = np.minimum(1.0, 300 * likelihood / likelihood.sum())
    return everything, labelled(everything, labels, sampled, rng)


def test_300_labels_sampled_where_unsure_cover_the_truth():
    wanted, found = truth(), []
    for draw in range(80):
        figure = figures(*unsure_sampled(draw), groups={}, classes=CLASSES).balanced_error
        found.append(figure.low <= wanted <= figure.high)
    assert np.mean(found) >= 0.9


def test_300_labels_are_right_on_average_with_a_class_of_1_percent_of_the_rows(monkeypatch):
    assert PRIOR.min() == pytest.approx(0.012, abs=0.0005)
    monkeypatch.setattr(ppi, "RESAMPLES", 2)  # the interval is not looked at
    errors = [
        figures(*unsure_sampled(draw), groups={}, classes=CLASSES).balanced_error.value
        for draw in range(500)
    ]
    assert abs(np.mean(errors) - truth()) <= 0.005


def test_labels_of_every_row_give_the_errors_themselves_whatever_was_predicted():
    rng = np.random.default_rng(0)
    posterior, decided, labels = traffic(rng)
    junk = predicted(rng.dirichlet(np.ones(CLASSES), ROWS), decided)
    groups = {"many": np.array([0, 1]), "few": np.arange(2, CLASSES)}
    ours = Labelled(junk, labels, np.ones(ROWS))
    found = figures(junk, ours, groups=groups, classes=CLASSES)
    assert found.balanced_error.value == pytest.approx(balanced(decided, labels))
    assert found.error.value == pytest.approx((decided != labels).mean())
    missed = [(decided[labels == y] != y).mean() for y in range(CLASSES)]
    assert found.groups["few"].value == pytest.approx(np.mean(missed[2:]))
    np.testing.assert_allclose(
        found.class_shares, np.bincount(labels, minlength=CLASSES) / ROWS, atol=1e-12
    )
    true, wrong, share = found.confusions[0]
    assert share.value == pytest.approx(np.mean((labels == true) & (decided == wrong)))
    assert found.error.low < found.error.value < found.error.high
    del posterior


def test_a_calibrated_posterior_alone_is_near_and_says_so_without_an_interval():
    rng = np.random.default_rng(3)
    posterior, decided, labels = traffic(rng)
    found = without_labels(predicted(posterior, decided), groups={}, classes=CLASSES)
    assert found["balanced_error"] == pytest.approx(balanced(decided, labels), abs=0.03)
    assert found["error"] == pytest.approx((decided != labels).mean(), abs=0.02)


def test_rejected_rows_are_left_out():
    rng = np.random.default_rng(4)
    posterior, decided, labels = traffic(rng)
    rejected = posterior.max(axis=1) < 0.8
    partly = predicted(posterior, np.where(rejected, REJECTED, decided))
    kept = ~rejected
    alone = predicted(posterior[kept], decided[kept])
    found = figures(partly, Labelled(partly, labels, np.ones(ROWS)), groups={}, classes=CLASSES)
    assert found.error.value == pytest.approx((decided[kept] != labels[kept]).mean())
    assert without_labels(partly, groups={}, classes=CLASSES) == pytest.approx(
        without_labels(alone, groups={}, classes=CLASSES)
    )


def test_without_a_labelled_row_that_was_decided_nothing_is_sure():
    posterior, decided, _ = traffic(np.random.default_rng(5), 50)
    everything = predicted(posterior, decided)
    none = Labelled(everything.take(np.array([], int)), np.array([], int), np.array([]))
    found = figures(everything, none, groups={}, classes=CLASSES)
    assert (found.balanced_error.low, found.balanced_error.high) == (0.0, 1.0)
