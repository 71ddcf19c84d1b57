"""The estimate over time: bounded, in order, from the first moment to the last."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from service.contract.shift.tracking import Tracked
from service.priors.shift.history import MAX_HISTORY_BYTES, MOST_POINTS, History

START = datetime(2026, 1, 1, tzinfo=UTC)


def filled(moments, classes=2):
    history = History(classes)
    for i in range(moments):
        prior = np.full(classes, 1 / classes)
        tracked = Tracked(prior, np.zeros(classes), i, float(i))
        history.add(
            START + timedelta(minutes=i), tracked, calibration_variance=0.01, verdict="usable"
        )
    return history


def test_a_short_history_holds_every_moment():
    points = list(filled(50))
    assert [point.at for point in points] == [START + timedelta(minutes=i) for i in range(50)]
    assert points[0].low == pytest.approx(0.5 - 1.96 * 0.1, abs=1e-3)
    assert points[0].verdict == "usable"


@pytest.mark.parametrize("moments", [MOST_POINTS, 3 * MOST_POINTS, 20 * MOST_POINTS])
def test_a_long_history_stays_bounded_and_spans_all_of_it(moments):
    points = list(filled(moments))
    assert MOST_POINTS / 4 <= len(points) <= MOST_POINTS
    assert points[0].at == START
    gaps = np.diff([point.at.timestamp() for point in points])
    assert points[-1].at >= START + timedelta(minutes=moments) - 2 * timedelta(seconds=gaps.max())
    assert gaps.min() > 0


@pytest.mark.parametrize("classes", [2, 1000, 20_000, 43_690, 43_691, 1_000_000])
def test_its_memory_stays_within_the_limit_for_any_number_of_classes(classes):
    history = History(classes)
    held = 0
    for at in range(40):
        history.add(
            START + timedelta(minutes=at),
            Tracked(np.ones(classes), np.ones(classes), at, 1.0),
            calibration_variance=0.0,
            verdict=None,
        )
        held = max(held, len(history))
        if classes > 1000 and at > 20:
            break
    assert 12 * classes * held <= MAX_HISTORY_BYTES
    assert bool(held) == (24 * classes <= MAX_HISTORY_BYTES)
