"""A bounded sample of recent logits: what a preview and an estimate of the class prior look at. Never the inputs."""

import mmap
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

MAX_ROWS = 4096
MAX_BYTES = 16 * 2**20
WINDOW_SECONDS = 600.0


@dataclass(frozen=True)
class Sample:
    """Logits [n, C] that stand for the recent traffic in equal parts, and when the oldest and newest were seen."""

    logits: Rows
    since: datetime | None
    until: datetime | None


class LogitReservoir:
    """The logits of one model version. Full, it renews itself about once in `window_seconds`, however busy it is.

    Until it is full every row is kept. Then rows are let in at a fixed rate, each with the number of rows that it stands
    for, so that a busy minute counts for more than a quiet one. `add` never waits and costs a few microseconds.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        window_seconds: float = WINDOW_SECONDS,
        seed: int | None = None,
    ) -> None:
        """max_rows = 0 switches it off; else at least one row is kept, whatever max_bytes says."""
        self.capacity = (
            0 if max_rows == 0 else max(1, min(max_rows, max_bytes // (4 * num_classes)))
        )
        self._rows = _pages(self.capacity, num_classes)
        self._weights = np.zeros(self.capacity)
        self._seen = np.zeros(self.capacity)
        self._rate = self.capacity / window_seconds
        self._tokens = 0.0
        self._next = self._held = 0
        self._unrepresented = 0
        self._looked_at = time.monotonic()
        self._lock = threading.Lock()
        self._rng = random.Random(seed)  # noqa: S311 - a sample, no secret; np.random alone takes 2 MiB

    def wants_rows(self) -> bool:
        """Whether rows that are offered now would be let in, so that nobody fetches logits for nothing."""
        return self.capacity > 0 and self._admitted() > 0

    def pass_over(self, rows: int) -> None:
        """Count rows whose logits were not fetched; those that come in next stand for them too."""
        self._unrepresented += rows

    def add(self, logits: Rows) -> None:
        """Offer the logits [n, C] of a batch; they are copied, or passed over."""
        n = len(logits)
        if self.capacity == 0 or n == 0:
            return
        self._unrepresented += n
        take = min(n, self._admitted())
        if take == 0 or not self._lock.acquire(blocking=False):
            return
        try:
            chosen = slice(None) if take == n else self._rng.sample(range(n), take)
            places = (self._next + np.arange(take)) % self.capacity
            self._rows[places] = logits[chosen]
            self._weights[places] = self._unrepresented / take
            self._seen[places] = time.time()
            self._unrepresented = 0
            self._next = (self._next + take) % self.capacity
            self._held = min(self.capacity, self._held + take)
            self._tokens = max(0.0, self._tokens - take)
        finally:
            self._lock.release()

    def sample(self) -> Sample:
        """A copy of what is held, thinned so that each row stands for the same number of rows."""
        with self._lock:
            held = slice(0, self._held)
            logits, weights = self._rows[held].copy(), self._weights[held].copy()
            seen = self._seen[held].copy()
        if len(logits) == 0:
            return Sample(logits, None, None)
        chosen = _in_equal_parts(weights, self._rng)
        since, until = (datetime.fromtimestamp(moment, UTC) for moment in (seen.min(), seen.max()))
        return Sample(logits[chosen], since, until)

    def _admitted(self) -> int:
        """How many rows may come in now."""
        if self._held < self.capacity:
            return self.capacity - self._held
        now = time.monotonic()
        most = max(1.0, self.capacity / 8)
        self._tokens = min(most, self._tokens + (now - self._looked_at) * self._rate)
        self._looked_at = now
        return int(self._tokens)


def _pages(rows: int, columns: int) -> Rows:
    """float32 [rows, columns] in pages of its own, which come when they are written and go with the array.

    An allocator would hand out used pages instead, and keep these when a model version goes.
    """
    if rows == 0:
        return np.empty((0, columns), np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * rows * columns), np.float32).reshape(rows, columns)


def _in_equal_parts(weights: NDArray[np.float64], rng: random.Random) -> NDArray[np.int64]:
    """Indices of a systematic sample by weight, as large as the effective number of rows: all, once, for equal weights."""
    effective = max(1, int(weights.sum() ** 2 / (weights**2).sum() + 1e-6))
    ends = np.cumsum(weights)
    points = (rng.random() + np.arange(effective)) * (ends[-1] / effective)
    chosen: NDArray[np.int64] = np.searchsorted(ends, points, side="right")
    return chosen.clip(max=len(weights) - 1)
