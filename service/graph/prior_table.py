"""The rows of a graph's `prior_table` input: one slot for each prior in use or used recently.

A slot is written before the first request that names it is queued, and not again while any request
holds it. So a running graph call never reads a row that changes. Used from the event loop only.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.members.sparse import SparseOffset

Rows = NDArray[np.float32]


class PriorTable:
    """float32 [capacity, C] with rows log σ − log ρ; slot 0 is all zeros, for tau = 0."""

    NO_PRIOR = 0

    def __init__(self, num_classes: int, *, capacity: int = 8) -> None:
        self.rows: Rows = np.zeros((capacity, num_classes), np.float32)
        self.generation = 0
        """The number of writes so far. A copy on a device is outdated when this number has changed.
        """
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._holders = [0] * capacity
        self._free = list(range(capacity - 1, 0, -1))

    def acquire(self, key: Hashable, offset: NDArray[Any] | SparseOffset | None) -> int:
        """Return the slot with the row of `key` and hold it; `offset` None is the row of zeros.

        A sparse offset is written out only when the table has no row of `key`.

        The caller must `release` it.
        """
        if offset is None:
            return self.NO_PRIOR
        slot = self._slots.get(key)
        if slot is None:
            slot = self._claim()
            self._slots[key] = slot
            self.rows[slot] = np.asarray(offset)
            self.generation += 1
        else:
            self._slots.move_to_end(key)
        self._holders[slot] += 1
        return slot

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
        return self._grow()

    def _grow(self) -> int:
        """Double the capacity in a new array. Running graph calls keep the old array."""
        old = len(self.rows)
        self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self._holders += [0] * old
        self._free = list(range(2 * old - 1, old, -1))
        return old
