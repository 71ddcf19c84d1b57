"""The queue of one model: bounded, first come first served, cut into pieces that fit a batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from service.batching.work import (
    LARGE_ANSWER_VALUES,
    Abandoned,
    Caller,
    DeadlinePassed,
    Overloaded,
    RequestTooLarge,
    Work,
    size_of,
)
from service.graph.session import GraphOutputs

FLOOD_SECONDS = 1.0
"""Flood mode ends when no request has been refused for this many seconds."""

Reply: TypeAlias = "Callable[[list[Entry]], None]"
"""Called on the event loop with entries that finished together, each with its scores or its error.

Each entry is passed to its reply exactly once.
"""


class Entry:
    """A queued request. Once it is finished, it has its scores or its `error`.

    The scores are rows `start` to `stop` of `outputs`.
    """

    __slots__ = (
        "admitted",
        "ask",
        "begun",
        "bytes_per_row",
        "caller",
        "error",
        "inference_seconds",
        "outputs",
        "parts",
        "pieces_left",
        "reply",
        "span",
        "start",
        "stop",
        "timer",
        "work",
    )

    outputs: GraphOutputs

    def __init__(self, work: Work, *, caller: Caller, reply: Reply, ask: Any = None) -> None:
        """Make an entry for a batcher to queue.

        work: what to score.
        caller: who asked; when it leaves, the work is dropped.
        reply: where the finished entry goes, together with others that finished at the same time.
        ask: what `reply` needs to know about the request; the batcher ignores it.
        """
        self.work, self.caller, self.reply, self.ask = work, caller, reply, ask
        self.admitted = self.begun = self.inference_seconds = 0.0
        self.pieces_left = self.bytes_per_row = 0
        self.start = self.stop = -1
        self.error: Exception | None = None
        self.span: Any = None
        self.timer: Any = None
        """The timer of a hard deadline, while it runs."""
        self.parts: list[tuple[int, GraphOutputs, int, int]] | None = None
        """Results in several pieces, not joined yet: (first row, outputs, start, stop)."""

    def done(self) -> bool:
        """Whether the entry has its scores or an error."""
        return self.stop >= 0 or self.error is not None

    def why_drop(self, now: float) -> Exception | None:
        """The error for a request that need not be scored at `now` (time.monotonic()), or None."""
        if self.error is not None:
            return self.error
        if self.caller.connection.disconnected:
            return Abandoned("the client left before its rows were scored")
        deadline = self.work.deadline
        return DeadlinePassed(deadline.message(now)) if deadline.at <= now else None

    def add_part(self, first: int, outputs: GraphOutputs, start: int, stop: int) -> None:
        """Keep the scores of the rows from `first` on until all rows have theirs."""
        if self.parts is None:
            self.parts = []
        self.parts.append((first, outputs, start, stop))

    def scored(self, outputs: GraphOutputs, start: int, stop: int) -> None:
        """Store the scores of the last piece, and join them with those of the other pieces.

        The scores of a large answer are not joined here: `join` does so in a thread.
        """
        self.outputs, self.start, self.stop = outputs, start, stop
        if self.parts is not None:
            self.start, self.stop = 0, len(self.work.inputs)
            if self.work.answer_values <= LARGE_ANSWER_VALUES:
                self.join()

    def join(self) -> None:
        """Join the scores of a request that ran in several pieces. A second call changes
        nothing.
        """
        parts, self.parts = self.parts, None
        if parts is not None:
            parts.sort(key=lambda part: part[0])
            found = [outputs.rows(start, stop) for _, outputs, start, stop in parts]
            if not self.work.full:  # logits of many classes are there for others
                found = [each.ranked_only() for each in found]
            self.outputs = GraphOutputs.joined(found)


class Piece:
    """Rows `start` to `start + rows` of a request."""

    __slots__ = ("entry", "rows", "settled", "start")

    def __init__(self, entry: Entry, start: int, rows: int) -> None:
        self.entry, self.start, self.rows = entry, start, rows
        self.settled = False
        """Whether the batcher has finished with these rows."""


Dropped: TypeAlias = tuple[Piece, Exception]
"""A piece whose rows are not scored, and the error for its request."""


class Batch:
    """Pieces of requests with one input shape, filled by the event loop until a thread runs it."""

    __slots__ = ("_begun", "_lock", "pieces", "rows", "shape")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        """The input shape of a row, once the batch has one."""
        self._lock = threading.Lock()
        self._begun = False

    @contextmanager
    def open(self) -> Iterator[bool]:
        """Whether the batch still accepts pieces. The answer holds until the `with` block ends."""
        with self._lock:
            yield not self._begun

    def begin(self) -> list[Piece]:
        """Return the pieces; none is added from now on. Called in the thread that runs them."""
        with self._lock:
            self._begun = True
            return self.pieces


class Queue:
    """The queue of one batcher, with its limits. Used from the event loop only.

    `ahead` is always the number of rows in the thread's inbox, in a batch that has not begun. The
    rows that wait are these and the rows queued here.
    """

    def __init__(
        self,
        *,
        max_batch_rows: int,
        max_rows: int,
        max_bytes: int,
        max_waiting_rows: int | None = None,
        max_flood_rows: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty queue.

        max_batch_rows: rows of a batch; a larger request is cut into pieces.
        max_rows: rows of the largest request, which is accepted only when no other waits.
        max_bytes: bytes of all queued inputs together.
        max_waiting_rows: rows that may wait when a request arrives; None is max_rows.
        max_flood_rows: the same in flood mode, where requests wait less; None: max_waiting_rows.
        clock: returns the time, as time.monotonic() does.
        """
        self.max_rows, self._max_bytes, self._clock = max_rows, max_bytes, clock
        self._max_batch_rows = max_batch_rows
        self.bound(max_waiting_rows, max_flood_rows)
        self._flood_ends = 0.0
        self.pieces: deque[Piece] = deque()
        self.rows = self.bytes = 0
        """Of all pieces together."""

    def add(self, entry: Entry, now: float, *, ahead: int = 0) -> None:
        """Queue a request at the end, cut into pieces that fit a batch.

        Raises RequestTooLarge, Overloaded or DeadlinePassed; nothing is queued then.
        """
        work = entry.work
        inputs = work.inputs
        rows, limit = len(inputs), self._max_batch_rows
        size = size_of(inputs) if inputs.dtype.hasobject else inputs.nbytes
        if rows > self.max_rows or size > self._max_bytes:
            raise RequestTooLarge(
                f"the request has {rows} instances of {size} bytes together; expected at most "
                f"{self.max_rows} instances and {self._max_bytes} bytes"
            )
        if self.rows + ahead + rows > self._max_flood_rows:
            self.check_room(rows, ahead=ahead)
        if self.bytes + size > self._max_bytes:
            raise Overloaded(
                f"the queue holds {self.bytes} bytes of at most {self._max_bytes}; "
                "send the request again later"
            )
        if work.deadline.at <= now:
            raise DeadlinePassed(work.deadline.message(now))
        entry.admitted = now
        per_row = entry.bytes_per_row = size // rows
        if rows <= limit:
            entry.pieces_left = 1
            self.pieces.append(Piece(entry, 0, rows))
        else:
            entry.pieces_left = -(-rows // limit)
            for start in range(0, rows, limit):
                self.pieces.append(Piece(entry, start, min(limit, rows - start)))
        self.rows += rows
        self.bytes += per_row * rows

    def bound(self, max_waiting_rows: int | None, max_flood_rows: int | None) -> None:
        """Set how many rows may wait; those that wait already stay."""
        most = self.max_rows if max_waiting_rows is None else min(max_waiting_rows, self.max_rows)
        self._max_waiting_rows = most
        self._max_flood_rows = most if max_flood_rows is None else min(max_flood_rows, most)

    def check_room(self, rows: int, *, ahead: int) -> None:
        """Raise Overloaded when this many more rows would exceed the limit."""
        waiting = self.rows + ahead
        if waiting + rows <= self._max_flood_rows or (not waiting and rows <= self.max_rows):
            return
        now, most = self._clock(), self._max_waiting_rows
        if now < self._flood_ends:
            most = self._max_flood_rows
        if waiting + rows > most:
            if (
                2 * waiting > most
            ):  # otherwise this one request is large, which is not a sign of a flood
                self._flood_ends = now + FLOOD_SECONDS
            raise Overloaded(
                f"{waiting} rows are queued of at most {most}; send the request again later"
            )

    def fill(self, batch: Batch, dropped: list[Dropped]) -> None:
        """Move the first pieces that fit to a batch. Pieces that need not be scored go to
        `dropped`.
        """
        queue, limit = self.pieces, self._max_batch_rows
        pieces, rows, shape = batch.pieces, batch.rows, batch.shape
        now = self._clock()
        while queue:
            piece = queue[0]
            entry, taken = piece.entry, piece.rows
            reason = entry.why_drop(now)
            if reason is None:
                own_shape = entry.work.inputs.shape[1:]
                if pieces and (rows + taken > limit or own_shape != shape):
                    break
                shape = own_shape
            queue.popleft()
            self.rows -= taken
            self.bytes -= entry.bytes_per_row * taken
            if reason is not None:
                dropped.append((piece, reason))
                continue
            entry.begun = entry.begun or now
            pieces.append(piece)
            rows += taken
        batch.rows, batch.shape = rows, shape

    def take_all(self) -> list[Piece]:
        """Empty the queue, and return all its pieces."""
        pieces = list(self.pieces)
        self.pieces.clear()
        self.rows = self.bytes = 0
        return pieces
