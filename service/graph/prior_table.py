"""The rows of a graph's `prior_table` input: one slot for each prior in use or used recently.

The event loop gives slots to requests. The thread that runs the graph writes their rows before its
next call: 64 rows of a million classes take it half a second. A slot is given to another prior only
while no request holds it. So a running graph call never reads a row that changes.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.members.sparse import SparseOffset

Rows = NDArray[np.float32]
Offset = NDArray[Any] | SparseOffset | None

MAX_BYTES = 512 * 2**20
"""The most memory of a model's table; for 1,000,000 classes, 134 rows."""
_QUICK_NUMBERS = 100_000
"""Numbers that are written in less than about 0.1 ms."""


class TableFull(RuntimeError):
    """Requests that wait or run use as many different priors as the table may hold."""


class PriorTable:
    """float32 [capacity, C] with rows log σ − log ρ; slot 0 is all zeros, for tau = 0.

    Slots are acquired and released on the event loop; `rows` may be read in any thread.
    """

    NO_PRIOR = 0

    def __init__(self, num_classes: int, *, capacity: int = 8, max_bytes: int = MAX_BYTES) -> None:
        """capacity: rows at the start, at least 2. max_bytes: the most memory of more rows."""
        self._rows: Rows = np.zeros((capacity, num_classes), np.float32)
        self.generation = 0
        """The number of writes so far. A copy on a device is outdated when this number has changed.
        """
        self._most = max(capacity, max_bytes // (4 * num_classes))
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._holders = [0] * capacity
        self._free = list(range(capacity - 1, 0, -1))
        self.unwritten: dict[int, NDArray[Any] | SparseOffset] = {}
        """The offsets of acquired slots whose rows are not written yet."""
        self._writing = threading.Lock()

    @property
    def rows(self) -> Rows:
        """The table, after writing each row that was acquired before. Read `generation` after it.

        Growing makes a new array; graph calls that run keep the old one.
        """
        if self.unwritten or self._writing.locked():
            self._write()
        return self._rows

    @property
    def is_slow(self) -> bool:
        """Whether reading `rows` now would take long, so that the event loop must not do it."""
        if not self.unwritten:
            return False
        to_grow = self._rows.size if len(self._holders) > len(self._rows) else 0
        to_write = len(self.unwritten) * self._rows.shape[1]
        return int(to_grow + to_write) > _QUICK_NUMBERS

    @property
    def most_priors(self) -> int:
        """How many different priors can be in use at a time."""
        return self._most - 1

    def acquire(self, key: Hashable, offset: Offset) -> int:
        """Return the slot with the row of `key` and hold it; `offset` None is the row of zeros.

        The caller must `release` it. Raises TableFull.
        """
        if offset is None:
            return self.NO_PRIOR
        slot = self._slots.get(key)
        if slot is None:
            slot = self._claim()
            self.unwritten[slot] = offset
            self._slots[key] = slot
        else:
            self._slots.move_to_end(key)
        self._holders[slot] += 1
        return slot

    def acquire_all(self, priors: Iterable[tuple[Hashable, Offset]]) -> list[int]:
        """Acquire a slot for each (key, offset), or none at all. Raises TableFull."""
        slots: list[int] = []
        try:
            for key, offset in priors:
                slots.append(self.acquire(key, offset))
        except TableFull:
            for slot in slots:
                self.release(slot)
            raise
        return slots

    def release(self, slot: int) -> None:
        """Give a slot back. Its row stays until another prior needs the slot."""
        if slot != self.NO_PRIOR:
            self._holders[slot] -= 1

    def _claim(self) -> int:
        if self._free:
            return self._free.pop()
        for key, slot in self._slots.items():  # least recently used first
            if self._holders[slot] == 0:
                del self._slots[key]
                return slot
        old = len(self._holders)
        if old >= self._most:
            raise TableFull(
                f"requests that wait or run use {self.most_priors} different priors already, the "
                "most that a model with this many classes holds; send the request again"
            )
        capacity = min(2 * old, self._most)
        self._holders += [0] * (capacity - old)
        self._free = list(range(capacity - 1, old, -1))
        return old

    def _write(self) -> None:
        """Write the rows that wait. Two threads do so only when one of them was given up."""
        with self._writing:
            while self.unwritten:
                slot, offset = self.unwritten.popitem()
                try:
                    self._grow(slot)
                    self._rows[slot] = np.asarray(offset)
                except BaseException:  # no memory: the row must not be taken for written
                    self.unwritten.setdefault(slot, offset)
                    raise
                self.generation += 1

    def _grow(self, slot: int) -> None:
        """Make a larger array where the slot has no row yet."""
        if slot >= len(self._rows):
            grown = np.zeros((len(self._holders), self._rows.shape[1]), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
