"""The queue of rows to a tracker: bounded, with exact counts."""

import numpy as np
import pytest

from service.contract.adjustment import log_softmax
from service.contract.shift.tracking import PriorTracker
from service.priors.shift.stream import (
    FULL_PRICE_CLASSES,
    MAX_SETTINGS,
    MAX_WAITING_ROWS,
    RANKED_FROM,
    Ranking,
    Setting,
    Stream,
    estimate_of,
    ratios_of,
)
from tests.support.priors import make_bundle


def rows(n, label=2):
    return np.tile(9.0 * np.eye(3, dtype=np.float32)[label], (n, 1))


def test_rows_beyond_its_room_are_neither_kept_nor_counted():
    stream = Stream(make_bundle())
    for _ in range(100):
        stream.add(rows(64))
    assert stream.credit <= 0
    stream.learn()
    assert stream.credit > 0
    assert stream.now().rows == MAX_WAITING_ROWS


@pytest.mark.parametrize("classes", [3, 1024, RANKED_FROM - 1])
def test_the_work_of_tracking_does_not_grow_with_the_classes(classes):
    bundle = make_bundle(class_names=tuple(map(str, range(classes))), class_counts=(1.0,) * classes)
    stream, ticks, batch = Stream(bundle), 60, np.zeros((4, classes), np.float32)
    for _ in range(ticks):
        while stream.credit > 0:
            stream.add(batch)
        stream.learn()
    cells = stream.now().rows * max(classes, FULL_PRICE_CLASSES)
    most = (ticks + 1) * MAX_WAITING_ROWS * FULL_PRICE_CLASSES
    assert 0.5 * most < cells <= most + 4 * classes


def test_it_follows_what_it_is_given():
    stream = Stream(make_bundle())
    for _ in range(40):
        stream.add(rows(250))
        stream.learn()
    assert stream.now().prior[2] > 0.97


def test_a_model_whose_source_prior_is_unknown_is_not_followed():
    stream = Stream(make_bundle(class_counts=None))
    assert not stream.follows
    assert stream.credit <= 0
    stream.add(rows(10))
    stream.learn()
    assert stream.now() is None
    assert stream.state() is None
    assert not stream.restore(b"")
    assert Stream(make_bundle(class_counts=None, loss_tau=1.0)).follows


def test_a_state_is_restored_unless_as_many_rows_have_been_learnt_since():
    first, second, third = (Stream(make_bundle()) for _ in range(3))
    assert first.state() is None
    first.add(rows(100))
    first.learn()
    third.add(rows(10))
    third.learn()
    for stream in (second, third):
        assert stream.could_restore(first.state())
        assert stream.restore(first.state())
        assert stream.now().rows == 100
        assert not stream.could_restore(first.state())
        assert not stream.restore(first.state())
    assert not Stream(make_bundle()).restore(b"broken")
    assert estimate_of(make_bundle(), first.state()).rows == 100
    other = PriorTracker(temperature=1.0, log_source=np.zeros(5)).state()
    assert estimate_of(make_bundle(), other) is None


CLASSES = 300
SOURCE = np.log(np.random.default_rng(0).dirichlet(np.full(CLASSES, 5.0)))


def answers(f, tau, target, k):
    """The k best classes of logits [n, C], as a graph answers them, and their setting."""
    with np.errstate(divide="ignore"):
        offset = (SOURCE - np.where(target > 0, np.log(target), -1e30)).astype(np.float32)
    p = np.exp(log_softmax(f - np.reshape(tau, (-1, 1)) * offset))
    top = np.argsort(-p, axis=1)[:, :k]
    return top, np.take_along_axis(p, top, axis=1).astype(np.float32), offset


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.5])
def test_the_prior_of_an_answer_is_divided_out_of_its_best_classes(tau):
    rng = np.random.default_rng(1)
    f, target = rng.normal(scale=3, size=(20, CLASSES)), rng.dirichlet(np.ones(CLASSES))
    top, p, offset = answers(f, tau, target, CLASSES // 2)
    found = ratios_of([Ranking(top, p, [Setting(20, tau, [offset], None)], None)], SOURCE)
    wanted = np.exp(f - SOURCE)
    listed = np.take_along_axis(wanted, top, axis=1)
    factor = listed[:, :1] / found.ratios[:, :1]
    np.testing.assert_allclose(found.ratios * factor, listed, rtol=2e-4)
    odds = np.exp(SOURCE - tau * offset)
    rest = np.ones((20, CLASSES), bool)
    np.put_along_axis(rest, top, values=False, axis=1)
    means = [(wanted[i] * odds)[rest[i]].sum() / odds[rest[i]].sum() for i in range(20)]
    np.testing.assert_allclose(found.rest * factor[:, 0], means, rtol=2e-3)


def test_rows_of_a_batch_may_have_their_own_tau_and_prior_and_explorations_do_not_count():
    rng = np.random.default_rng(2)
    f, taus = rng.normal(scale=3, size=(4, CLASSES)), np.array([0, 1, 1, 2], np.float32)
    some, other = rng.dirichlet(np.ones(CLASSES), 2)
    parts = [answers(f[i : i + 1], taus[i], other if i == 2 else some, 40) for i in range(4)]
    top, p = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    mixed = Setting(3, taus[:3], [parts[0][2], parts[2][2]], np.array([0, 0, 1]))
    last = Setting(1, 2.0, [parts[3][2]], None)
    answered = np.array([True, True, False, True])
    found = ratios_of([Ranking(top, p, [mixed, last], answered)], SOURCE)
    assert len(found.rest) == 3
    alone = [
        ratios_of([Ranking(*parts[i][:2], [Setting(1, float(taus[i]), [parts[i][2]], None)], None)],
                  SOURCE)
        for i in (0, 1, 3)
    ]  # fmt: skip
    found_rows = {tuple(row): rest for row, rest in zip(found.ratios, found.rest, strict=True)}
    assert found_rows == {tuple(one.ratios[0]): one.rest[0] for one in alone}


def test_a_class_that_the_target_excludes_is_no_evidence_against_it():
    f = np.zeros((1, CLASSES))
    target = np.where(np.arange(CLASSES) < 4, 0.25, 0.0)
    top, p, offset = answers(f, 1.0, target, 8)
    ranking = Ranking(top, p, [Setting(1, 1.0, [offset], None)], None)
    assert ratios_of([ranking], SOURCE) is None
    few = Ranking(top[:, :2], p[:, :2], ranking.settings, None)
    assert ratios_of([few], SOURCE).rest[0] > 0


def test_so_many_priors_in_one_call_are_divided_out_and_no_more():
    offsets = [np.full(CLASSES, at, np.float32) for at in range(MAX_SETTINGS + 5)]
    top, p = np.array([[0, 1]]), np.array([[0.5, 0.1]], np.float32)
    many = [Ranking(top, p, [Setting(1, 1.0, [each], None)], None) for each in offsets]
    assert len(ratios_of(many, SOURCE).rest) == MAX_SETTINGS


def test_many_classes_are_followed_by_the_best_of_each_row_with_true_counts():
    counts = tuple(np.linspace(1, 100, RANKED_FROM))
    bundle = make_bundle(class_names=tuple(map(str, range(RANKED_FROM))), class_counts=counts)
    stream, rng = Stream(bundle), np.random.default_rng(3)
    assert stream.top_k == 16
    offset = np.zeros(RANKED_FROM, np.float32)
    for _ in range(30):
        sent = 0
        while stream.credit > 0:
            label = rng.integers(100, size=(64, 1))
            top = np.concatenate([label, 1000 + np.tile(np.arange(19), (64, 1))], axis=1)
            p = np.repeat(np.array([[0.9, *[0.005] * 19]], np.float32), 64, axis=0)
            stream.add_ranking(Ranking(top, p, [Setting(64, 0.0, [offset], None)], None))
            sent += 64
        assert sent == MAX_WAITING_ROWS
        stream.learn()
    found = stream.now()
    assert found.rows == 30 * MAX_WAITING_ROWS
    assert found.prior[:100].sum() > 0.9
    second = Stream(bundle)
    assert second.restore(stream.state())
    assert second.now().rows == found.rows
