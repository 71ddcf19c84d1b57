"""A bounded sample of recent logits, for previews and estimates. Inputs are never kept."""

import math
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
    """Logits [n, C] of rows with equal weight, and when the first and the last were served."""

    logits: Rows
    since: datetime | None
    until: datetime | None


class LogitReservoir:
    """Recent logits of one model version: a sample whose rows all count the same.

    Until the reservoir is full, every row is kept. Then a new row replaces a random kept row with
    probability capacity / T, where T is the number of rows seen, each weighted less with its age.
    The chance that a row is still kept falls by a factor e in `window_seconds`. Busy minutes
    contribute in proportion to their rows. `add` never waits and costs a few microseconds.
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

        num_classes: the length of a row. max_rows, max_bytes: limits on the rows that are kept.
        window_seconds: mean age of the rows under steady traffic. seed: of the generator that
        chooses rows.
        """
        self.capacity = (
            0 if max_rows == 0 else max(1, min(max_rows, max_bytes // (4 * num_classes)))
        )
        self._rows = _pages(self.capacity, num_classes)
        self._seen = np.zeros(self.capacity)
        self._window = window_seconds
        self._held = 0
        self._traffic = self._credit = 0.0
        self._counted_at = time.monotonic()
        self._lock = threading.Lock()
        self._rng = random.Random(seed)  # noqa: S311 - a sample, no secret; np.random alone takes 2 MiB

    def wants_rows(self) -> bool:
        """Whether rows would be admitted now; if not, their logits need not be fetched."""
        return self.capacity > 0 and (self._held < self.capacity or self._credit >= 1)

    def pass_over(self, rows: int) -> None:
        """Count rows whose logits were not fetched."""
        self._count(rows)

    def add(self, logits: Rows) -> None:
        """Offer the logits [n, C] of a batch; some are copied, the others counted."""
        n = len(logits)
        if self.capacity == 0 or n == 0:
            return
        self._count(n)
        free = self.capacity - self._held
        take = min(n, free or int(self._credit))
        if take == 0 or not self._lock.acquire(blocking=False):
            return
        try:
            if n == 1 and free:
                self._rows[self._held], self._seen[self._held] = logits[0], time.time()
                self._held += 1
                return
            chosen = slice(None) if take == n else self._rng.sample(range(n), take)
            places: slice | NDArray[np.int64]
            if free:
                places = slice(self._held, self._held + take)
                self._held += take
            else:
                take = min(take, self.capacity)
                places = np.array(self._rng.sample(range(self.capacity), take))
                self._credit -= take
            if isinstance(places, slice) and isinstance(chosen, list):
                np.take(logits, chosen, axis=0, out=self._rows[places], mode="clip")
            else:
                self._rows[places] = logits[chosen]
            self._seen[places] = time.time()
        finally:
            self._lock.release()

    def sample(self, *, newest: int | None = None, max_age: float | None = None) -> Sample:
        """A copy of the logits: all, the `newest` rows, or those of the last `max_age` seconds."""
        with self._lock:
            logits, seen = self._rows[: self._held].copy(), self._seen[: self._held].copy()
        if max_age is not None:
            fresh = seen >= time.time() - max_age
            logits, seen = logits[fresh], seen[fresh]
        if newest is not None and newest < len(seen):
            order = np.argsort(seen, kind="stable")[len(seen) - newest :]
            logits, seen = logits[order], seen[order]
        if len(logits) == 0:
            return Sample(logits, None, None)
        since, until = (datetime.fromtimestamp(moment, UTC) for moment in (seen.min(), seen.max()))
        return Sample(logits, since, until)

    def _count(self, rows: int) -> None:
        """Add rows to the decayed number of rows seen, and to what may be admitted."""
        now = time.monotonic()
        aged = math.exp(-(now - self._counted_at) / self._window)
        self._counted_at = now
        self._traffic = self._traffic * aged + rows
        if self.capacity and self._held == self.capacity:
            share = min(1.0, self.capacity / max(self._traffic, 1.0))
            self._credit = min(self._credit + rows * share, float(max(1, self.capacity // 8)))


def _pages(rows: int, columns: int) -> Rows:
    """float32 [rows, columns] in separate pages: allocated when written, freed with the array.

    An ordinary allocator would keep the pages when a model version is unloaded.
    """
    if rows == 0:
        return np.empty((0, columns), np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * rows * columns), np.float32).reshape(rows, columns)
