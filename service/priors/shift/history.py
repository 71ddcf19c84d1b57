"""The tracked estimate over time, in bounded memory: long streams keep fewer points per hour."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from service.contract.shift.tracking import Tracked

MOST_POINTS = 2880
MAX_HISTORY_BYTES = 2**20
"""The most points kept for one model version. If two points need more than that, none is kept: with
so many classes, no answer has room for one.
"""


@dataclass(frozen=True)
class Point:
    """The estimate at a moment, with its 95 % intervals: vectors [C], float32."""

    at: datetime
    prior: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    verdict: str | None


class History:
    """Points in the order of time.

    When it is full, every second point is dropped, and from then on only every second new point is
    kept, and so on. So memory is bounded, and the points always span the whole time.
    """

    def __init__(self, classes: int) -> None:
        room = MAX_HISTORY_BYTES // (12 * classes)
        self.capacity = min(MOST_POINTS, room) if room > 1 else 0
        self._points: list[Point] = []
        self._every = self._passed = 1

    def __iter__(self) -> Iterator[Point]:
        return iter(list(self._points))

    def __len__(self) -> int:
        return len(self._points)

    def add(
        self,
        at: datetime,
        tracked: Tracked,
        *,
        calibration_variance: NDArray[np.float64] | float,
        verdict: str | None,
    ) -> None:
        """Add a point with the current estimate, unless this one is to be skipped."""
        self._passed += 1
        if self._passed < self._every or not self.capacity:
            return
        self._passed = 0
        low, high = tracked.interval(calibration_variance)
        prior, first, last = (vector.astype(np.float32) for vector in (tracked.prior, low, high))
        self._points.append(Point(at, prior, first, last, verdict))
        if len(self._points) >= self.capacity:
            self._points = self._points[::2]
            self._every *= 2
