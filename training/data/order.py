"""The rows of each step: the sampler's epochs end to end, cut into full batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """The share of each batch that one of several processes handles.

    Of B rows, these are rank · B/world … (rank + 1) · B/world.
    """

    rank: int = 0
    world: int = 1

    def of(self, rows: int) -> slice:
        """The slice of a batch of `rows` rows (a multiple of world)."""
        each = rows // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


class EpochIndices(Protocol):
    """The part of a sampler that an order needs."""

    def epoch_indices(self, epoch: int, total_epochs: int) -> NDArray[np.int64]:
        """[N] rows of an epoch, a function of (seed, epoch) alone."""
        ...


def steps_of(*, epochs: float, rows: int, batch_rows: int) -> int:
    """How many steps go through `rows` rows `epochs` times, at least 1."""
    return max(1, round(epochs * rows / batch_rows))


def batches(
    sampler: EpochIndices, *, rows: int, batch_rows: int, steps: int, first_step: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(step, rows [batch_rows]) from first_step to steps - 1.

    Every batch is full: one that crosses the end of an epoch is filled from the next epoch. The
    position in the data is therefore a function of the step, and a run can start at any step.
    """
    total_epochs = -(-steps * batch_rows // rows)
    position = first_step * batch_rows
    epoch, offset = divmod(position, rows)
    waiting = sampler.epoch_indices(epoch, total_epochs)[offset:]
    for step in range(first_step, steps):
        while len(waiting) < batch_rows:
            epoch += 1
            # the last batch may reach into an epoch after the planned ones
            following = sampler.epoch_indices(epoch, max(total_epochs, epoch + 1))
            waiting = np.concatenate([waiting, following])
        yield step, waiting[:batch_rows]
        waiting = waiting[batch_rows:]
