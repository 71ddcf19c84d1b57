"""Decides which rows each step takes: the epochs of a sampler, joined and cut into full batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """The part of each batch that one of several processes computes.

    Of B rows, it is rows rank · B/world up to (rank + 1) · B/world.
    """

    rank: int = 0
    world: int = 1

    def of(self, rows: int) -> slice:
        """Return this part as a slice of a batch of `rows` rows, a multiple of `world`."""
        each = rows // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


class EpochIndices(Protocol):
    """What `batches` needs of a sampler."""

    def epoch_indices(self, epoch: int, total_epochs: int) -> NDArray[np.int64]:
        """Return the [N] row numbers of an epoch; they depend only on the seed and the epoch."""
        ...


def steps_of(*, epochs: float, rows: int, batch_rows: int) -> int:
    """Return the number of steps that take each of `rows` rows `epochs` times; at least 1."""
    return max(1, round(epochs * rows / batch_rows))


def batches(
    sampler: EpochIndices, *, rows: int, batch_rows: int, steps: int, first_step: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (step, row numbers [batch_rows]) from first_step to steps - 1.

    Every batch is full: at the end of an epoch it takes its other rows from the next one. The step
    alone therefore determines the rows, and a run can continue from any step.
    """
    total_epochs = -(-steps * batch_rows // rows)
    position = first_step * batch_rows
    epoch, offset = divmod(position, rows)
    waiting = sampler.epoch_indices(epoch, total_epochs)[offset:]
    for step in range(first_step, steps):
        while len(waiting) < batch_rows:
            epoch += 1
            # the last batch may need rows of an epoch after the planned ones
            following = sampler.epoch_indices(epoch, max(total_epochs, epoch + 1))
            waiting = np.concatenate([waiting, following])
        yield step, waiting[:batch_rows]
        waiting = waiting[batch_rows:]
