"""The work that a batcher gets, and its errors."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.priors.revisions import PriorRevision

Array = NDArray[Any]
LARGE_ANSWER_VALUES = 20_000
"""Answers with more values are joined and encoded in a thread, which takes at least 2 ms.
"""


class Overloaded(Exception):
    """The queue is full."""


class RequestTooLarge(ValueError):
    """A request has more rows or bytes than the queue could ever hold."""


class DeadlinePassed(Exception):
    """The caller's deadline passed before the request was answered."""


class Abandoned(Exception):
    """The caller left before its rows were scored."""


class BatcherFailed(RuntimeError):
    """The batching loop failed. The request was not answered and may be sent again."""


class GraphLost(RuntimeError):
    """The graph no longer runs even on the rows it was warmed up with, as when its GPU is lost."""


class UnscorableRows(ValueError):
    """Rows for which the graph fails or returns NaN. `rows` are their positions in the request."""

    def __init__(self, rows: Sequence[int], reason: str) -> None:
        self.rows = list(rows)
        listed = ", ".join(map(str, self.rows[:10])) + (", …" if len(self.rows) > 10 else "")
        super().__init__(f"instance {listed}: {reason}")


class RowsNotFinite(UnscorableRows):
    """Rows that contain NaN or infinity."""

    def __init__(self, rows: Sequence[int], reason: str) -> None:
        ValueError.__init__(self, f"instance {rows[0]} {reason}")
        self.rows = list(rows)


class Deadline(NamedTuple):
    """The moment when a caller stops waiting, as a time of `time.monotonic()`.

    A request without a deadline of its own gets the service's, which is soft: rows whose graph call
    has begun are still answered. A deadline that the caller set is hard: it ends the wait even
    while the graph runs.
    """

    at: float = float("inf")
    is_hard: bool = False

    def check(self, now: float) -> None:
        """Raise DeadlinePassed if the deadline has passed at `now` (time.monotonic())."""
        if self.at <= now:
            raise DeadlinePassed(self.message(now))

    def message(self, now: float) -> str:
        """The text of the error for a caller whose deadline has passed at `now`
        (time.monotonic()).
        """
        late = 1000 * max(0.0, now - self.at)
        return (
            f"the deadline passed {late:.0f} ms ago, before the request was answered; send it "
            "again later, or allow more time: X-Request-Timeout-Ms, `timeout` of the Open "
            "Inference Protocol, or the deadline of a gRPC call"
        )


NO_DEADLINE = Deadline()


class Connection(Protocol):
    """The connection that a request came over."""

    @property
    def disconnected(self) -> bool:
        """Whether the client has closed the connection."""
        ...


class Caller(Protocol):
    """The sender of a request, as far as a batcher needs to know it."""

    @property
    def connection(self) -> Connection:
        """Its connection: work is dropped when the client has closed it."""
        ...


class Work(NamedTuple):
    """The rows of one request and how to score them.

    inputs [n, …]; `tau` and `slot` are scalars or [n]. The slots of the prior table in `held_slots`
    are released when the request is finished or refused.
    """

    inputs: Array
    tau: float | NDArray[np.float32]
    slot: int | NDArray[np.int64]
    held_slots: tuple[int, ...]
    top_k: int
    full: bool = False
    """Whether all logits and probabilities are needed, not only the best classes."""
    deadline: Deadline = NO_DEADLINE
    is_traffic: bool = True
    """False for an exploration (`/adjust`): its rows do not count as predictions."""
    answer_values: int = 0
    """The size of the answer, in numbers written as JSON."""
    priors: tuple[PriorRevision, ...] = ()
    """The priors of the rows. Where one has costs, `full` is set and the outputs hold decisions."""
    prior_of_row: NDArray[np.int64] | None = None
    """[n] the place of each row's prior in `priors`; None: all rows have the first."""


def size_of(inputs: Array) -> int:
    """Bytes that an array holds. An array of texts knows only the size of its references."""
    if inputs.dtype.names is not None:
        return sum(size_of(inputs[name]) for name in inputs.dtype.names)
    if inputs.dtype.kind != "O":
        return inputs.nbytes
    return inputs.nbytes + sum(map(sys.getsizeof, inputs.ravel().tolist()))
