"""What goes through a batcher: a request's rows in, scored rows out, and what can keep them from being scored."""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching.waiting import Waiting
from service.graph.session import GraphOutputs

logger = logging.getLogger(__name__)

Array = NDArray[Any]


class Overloaded(Exception):
    """The queue is full."""


class RequestTooLarge(ValueError):
    """A request with more rows or bytes than the queue could ever hold."""


class DeadlinePassed(Exception):
    """The caller's deadline passed before its rows were scored."""


class Abandoned(Exception):
    """The caller left before its rows were scored."""


class UnscorableRows(ValueError):
    """Rows that the graph refuses or turns into NaN; `rows` are their positions in the request."""

    def __init__(self, rows: Sequence[int], reason: str) -> None:
        self.rows = list(rows)
        listed = ", ".join(map(str, self.rows[:10])) + (", …" if len(self.rows) > 10 else "")
        super().__init__(f"instance {listed}: {reason}")


class RowsNotFinite(UnscorableRows):
    """Rows that hold NaN or infinity."""

    def __init__(self, rows: Sequence[int], reason: str) -> None:
        ValueError.__init__(self, f"instance {rows[0]} {reason}")
        self.rows = list(rows)


class BatcherFailed(RuntimeError):
    """The batching loop failed; the request was not answered and may be sent again."""


class Work(NamedTuple):
    """One request. inputs [n, …]; tau and slot are scalars or [n]; held slots are released when it is done."""

    inputs: Array
    tau: float | NDArray[np.float32]
    slot: int | NDArray[np.int64]
    held_slots: tuple[int, ...]
    top_k: int
    full: bool = False
    deadline: float = float("inf")
    is_abandoned: Callable[[], bool] | None = None
    is_traffic: bool = True
    """False: an exploration, which is not counted among the answers."""


class BatchFacts(NamedTuple):
    """What one graph call did, for metrics."""

    outputs: GraphOutputs
    rows: int
    seconds: float
    queue_seconds: Sequence[float] = ()
    """Of the requests whose first rows are in it."""
    answered: NDArray[np.bool_] | None = None
    """[rows] which of them answer traffic: not those of a refused request, nor of an exploration. None: all."""
    requests: int = 1
    """That have rows in it."""
    refused: Sequence[int] = ()
    """Of the requests that are refused because a row came out as NaN: how many rows each has in it."""


class TracedPart(NamedTuple):
    """Rows of a request that a graph call held, for traces; `admitted` (time.monotonic()) where they are its first."""

    span: Any
    rows: int
    admitted: float | None


class Tracer(Protocol):
    """Who is told of each request and each graph call when traces are asked for."""

    def current(self) -> Any:
        """The span of the request that is being served, or None."""

    def graph_call(self, parts: Sequence[TracedPart], seconds: float, *, failed: bool) -> None:
        """A graph call has just ended; the answers to its requests are not given yet."""


class Entry:
    """A queued request, whose pieces fit a batch each; and its scores once they are there: rows start … stop of `outputs`.

    `told` is called once, when there are scores or an error.
    """

    __slots__ = (
        "_parts",
        "admitted",
        "begun",
        "bytes_per_row",
        "error",
        "inference_seconds",
        "outputs",
        "pieces_left",
        "span",
        "start",
        "stop",
        "work",
    )

    outputs: GraphOutputs

    def __init__(self, work: Work) -> None:
        self.work = work
        self.admitted = self.begun = self.inference_seconds = 0.0
        self.pieces_left = self.bytes_per_row = 0
        self.start = self.stop = -1
        self.error: Exception | None = None
        self.span: Any = None
        self._parts: list[tuple[int, GraphOutputs, int, int]] | None = None
        """Of a request in several pieces: (first row, outputs, start, stop) of each."""

    @property
    def queue_seconds(self) -> float:
        """How long its first rows waited."""
        return self.begun - self.admitted

    def done(self) -> bool:
        """Whether it has its scores or an error, or nobody waits for them."""
        return self.stop >= 0 or self.error is not None

    def told(self) -> None:
        """It has its scores or an error."""

    def why_drop(self, now: float) -> Exception | None:
        """Why nobody waits for the answer at `now`, a time of time.monotonic(); None when somebody does."""
        work = self.work
        if self.done():
            return Abandoned("already answered or cancelled")
        if work.deadline <= now:
            return DeadlinePassed("the deadline passed while the request was queued")
        if work.is_abandoned is not None and work.is_abandoned():
            return Abandoned("the caller left")
        return None

    def add_part(self, first: int, outputs: GraphOutputs, start: int, stop: int) -> None:
        """Keep the scores of the rows from `first` on, until all are there."""
        if self._parts is None:
            self._parts = []
        self._parts.append((first, outputs, start, stop))

    def scored(self, outputs: GraphOutputs, start: int, stop: int) -> None:
        """Take the scores, put together from the pieces' results, of which the last is given."""
        if self._parts is not None:
            self._parts.sort(key=lambda part: part[0])
            parts = [outputs.rows(start, stop) for _, outputs, start, stop in self._parts]
            outputs, start, stop = GraphOutputs.joined(parts), 0, len(self.work.inputs)
        self.outputs, self.start, self.stop = outputs, start, stop
        self.told()

    def fail(self, error: Exception) -> None:
        """Tell the caller, or the log when the caller has an answer and failed with it."""
        if self.done():
            logger.error("what waited for an answer failed when it came", exc_info=error)
        else:
            self.error = error
            self.told()


class Awaited(Entry):
    """One whose caller waits for `future`, which gives the entry."""

    __slots__ = ("future",)

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(work)
        self.future: Waiting[Entry] = Waiting(loop=loop)

    def done(self) -> bool:
        """See Entry."""
        return self.future.done()

    def told(self) -> None:
        """See Entry."""
        if self.error is None:
            self.future.set_result(self)
        else:
            self.future.set_exception(self.error)


class Piece:
    """Rows start … start + rows of a request."""

    __slots__ = ("entry", "rows", "settled", "start")

    def __init__(self, entry: Entry, start: int, rows: int) -> None:
        self.entry, self.start, self.rows = entry, start, rows
        self.settled = False

    @property
    def is_part(self) -> bool:
        """Whether the request has other rows, too."""
        return self.rows != len(self.entry.work.inputs)


def size_of(inputs: Array) -> int:
    """Bytes that an array holds; of text an array itself knows only its references."""
    if inputs.dtype.kind != "O":
        return inputs.nbytes
    return inputs.nbytes + sum(map(sys.getsizeof, inputs.ravel().tolist()))


def nan_rows(outputs: GraphOutputs) -> NDArray[np.bool_] | None:
    """[n] which rows came out as NaN; None when none did."""
    bad: NDArray[np.bool_] = np.isnan(outputs.top_probability[:, 0])
    bad |= np.isnan(outputs.unadjusted_probability)
    return bad if bad.any() else None


def refused_rows(pieces: Sequence[Piece], bad: NDArray[np.bool_]) -> list[int]:
    """See BatchFacts.refused; a request that has its error already counts no more."""
    refused: list[int] = []
    start = 0
    for piece in pieces:
        if bad[start : start + piece.rows].any() and not piece.entry.done():
            refused.append(piece.rows)
        start += piece.rows
    return refused


def answered_rows(
    pieces: Sequence[Piece], bad: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """See BatchFacts; what a request has in this batch is refused as a whole when one of its rows is bad."""
    flags: list[bool] = []
    for piece in pieces:
        start = len(flags)
        refused = bad is not None and bool(bad[start : start + piece.rows].any())
        flags += [piece.entry.work.is_traffic and not refused] * piece.rows
    return None if all(flags) else np.array(flags)
