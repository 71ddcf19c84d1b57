"""Rows on their way to a tracker: bounded, and truly counted."""

import numpy as np
import pytest

from service.contract.tracking import PriorTracker
from service.priors.shift.stream import (
    FULL_PRICE_CLASSES,
    MAX_WAITING_ROWS,
    Stream,
    estimate_of,
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


@pytest.mark.parametrize("classes", [3, 1024, 50_000])
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


def test_a_state_is_taken_over_before_the_first_row_only():
    first, second = Stream(make_bundle()), Stream(make_bundle())
    assert first.state() is None
    first.add(rows(100))
    first.learn()
    assert second.restore(first.state())
    assert second.now().rows == 100
    assert not second.restore(first.state())
    assert not Stream(make_bundle()).restore(b"broken")
    assert estimate_of(make_bundle(), first.state()).rows == 100
    other = PriorTracker(temperature=1.0, log_source=np.zeros(5)).state()
    assert estimate_of(make_bundle(), other) is None
