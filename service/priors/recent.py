"""A bounded sample of recent logits, for previews and estimates. Inputs are never kept."""

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
    """Logits [n, C], each row for an equal part of recent traffic; when the first and last came."""

    logits: Rows
    since: datetime | None
    until: datetime | None


class LogitReservoir:
    """Recent logits of one model version.

    Until the reservoir is full, every row is kept. Then rows are admitted at a fixed rate, so that
    its contents turn over about once in `window_seconds`. Each row is weighted with the number of
    rows that it represents: a busy minute counts for more than a quiet one. `add` never waits and
    costs a few microseconds.
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
        """max_rows = 0 switches it off; otherwise at least one row is kept, whatever max_bytes is.

        max_rows, max_bytes: bounds of what is kept. window_seconds: time in which a full reservoir
        turns over. seed: of the choice of rows within a batch.
        """
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
        """Whether rows would be admitted now; if not, their logits need not be fetched."""
        return self.capacity > 0 and self._admitted() > 0

    def pass_over(self, rows: int) -> None:
        """Count rows whose logits were not fetched; the next admitted rows represent them too."""
        self._unrepresented += rows

    def add(self, logits: Rows) -> None:
        """Offer the logits [n, C] of a batch; some are copied, the others counted."""
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
        """A copy of the logits, thinned so that each row represents equally many rows."""
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
        """The number of rows that would be admitted now."""
        if self._held < self.capacity:
            return self.capacity - self._held
        now = time.monotonic()
        most = max(1.0, self.capacity / 8)
        self._tokens = min(most, self._tokens + (now - self._looked_at) * self._rate)
        self._looked_at = now
        return int(self._tokens)


def _pages(rows: int, columns: int) -> Rows:
    """float32 [rows, columns] in pages of its own, allocated when written, freed with the array.

    An ordinary allocator would keep the pages when a model version is unloaded.
    """
    if rows == 0:
        return np.empty((0, columns), np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * rows * columns), np.float32).reshape(rows, columns)


def _in_equal_parts(weights: NDArray[np.float64], rng: random.Random) -> NDArray[np.int64]:
    """Indices of a systematic sample by weight, as many as there are effective rows.

    Equal weights give every index once.
    """
    effective = max(1, int(weights.sum() ** 2 / (weights**2).sum() + 1e-6))
    ends = np.cumsum(weights)
    points = (rng.random() + np.arange(effective)) * (ends[-1] / effective)
    chosen: NDArray[np.int64] = np.searchsorted(ends, points, side="right")
    return chosen.clip(max=len(weights) - 1)
