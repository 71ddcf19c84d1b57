"""Many callers, one graph call: bounded, without a timer, and never silent when something fails.

A batch is whatever queued while the last one ran. Cheap batches run on the event loop at the end of its tick; others run in
the one thread that owns the session. The batch key is the input's shape alone: tau, prior and top_k travel per row.
"""

import asyncio
import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.graph import GraphOutputs
from service.prior_table import PriorTable
from service.waiting import Waiting

logger = logging.getLogger(__name__)

Array = NDArray[Any]
MAX_GRAPH_TOP_K = 64
"""TopK in the graph is flat up to here; rows that want more are ranked by the caller from adjusted_logits."""


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


class BatcherFailed(RuntimeError):
    """The batching loop failed; the request was not answered and may be sent again."""


class RunGraph(Protocol):
    """What the batcher needs of a Graph."""

    def __call__(
        self,
        inputs: Array,
        *,
        tau: NDArray[np.float32],
        prior_index: NDArray[np.int64],
        prior_table: NDArray[np.float32],
        top_k: int,
        generation: int,
        with_logits: bool,
        full: bool,
    ) -> GraphOutputs:
        """See Graph.run."""
        ...


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


class Scored(NamedTuple):
    """The answer to one Work: rows start … stop of a graph call's outputs, and where its time went."""

    outputs: GraphOutputs
    start: int
    stop: int
    queue_seconds: float
    inference_seconds: float


class BatchFacts(NamedTuple):
    """What one graph call did, for metrics."""

    outputs: GraphOutputs
    rows: int
    seconds: float
    answered: NDArray[np.bool_] | None = None
    """[rows] which of them answer traffic: not those of a refused request, nor of an exploration. None: all."""


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


class _Entry:
    """A queued request: its pieces fit a batch each, and the future is the way back."""

    __slots__ = (
        "admitted",
        "begun",
        "bytes_per_row",
        "future",
        "inference_seconds",
        "pieces_left",
        "results",
        "span",
        "work",
    )

    def __init__(
        self,
        work: Work,
        future: "Waiting[Scored]",
        pieces: int,
        now: float,
        bytes_per_row: int,
    ) -> None:
        self.work, self.future, self.pieces_left, self.admitted = work, future, pieces, now
        self.bytes_per_row = bytes_per_row
        self.begun = 0.0
        self.inference_seconds = 0.0
        self.results: list[tuple[int, GraphOutputs, int, int]] = []
        self.span: Any = None


class _Piece:
    __slots__ = ("entry", "rows", "settled", "start")

    def __init__(self, entry: _Entry, start: int, rows: int) -> None:
        self.entry, self.start, self.rows = entry, start, rows
        self.settled = False


_Outcome = tuple[list[_Piece], GraphOutputs | Exception]


class Batcher:
    """The queue of one model version. Everything but the worker thread runs on the event loop."""

    def __init__(
        self,
        run_graph: RunGraph,
        table: PriorTable,
        *,
        cost_seconds: Callable[[int], float],
        max_batch_rows: int,
        max_queued_rows: int,
        max_queued_bytes: int,
        max_waiting_rows: int | None = None,
        inline_seconds: float,
        on_batch: Callable[[BatchFacts], None],
        wants_logits: Callable[[], bool] = lambda: False,
        name: str = "model",
        tracer: Tracer | None = None,
    ) -> None:
        self._run_graph, self._table, self._cost = run_graph, table, cost_seconds
        self._max_batch_rows, self._inline_seconds = max_batch_rows, inline_seconds
        self._max_queued_rows, self._max_queued_bytes = max_queued_rows, max_queued_bytes
        self._max_waiting_rows = max_queued_rows if max_waiting_rows is None else max_waiting_rows
        self._on_batch, self._wants_logits = on_batch, wants_logits
        self._tracer = tracer
        self._queue: deque[_Piece] = deque()
        self.queued_rows = 0
        self._queued_bytes = 0
        self._explorations = 0
        """Queued and running requests that are no traffic."""
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._in_flight: list[_Piece] = []
        self._done: deque[tuple[_Worker, list[_Outcome] | BaseException, float]] = deque()
        self.busy_since: float | None = None
        """time.monotonic() when the running graph call began; a watchdog reads it."""
        self.failure: str | None = None
        """Why the loop is not alive; None while it is."""
        self.restarts = 0
        self.name = name
        self._worker: _Worker | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, work: Work) -> "Waiting[Scored]":
        """Queue a request. Raises Overloaded, RequestTooLarge or DeadlinePassed at once, and then holds nothing."""
        if self._done:  # under a flood a turn of the loop lasts for seconds: the session must not wait for its end
            self._collect()
        rows, size = len(work.inputs), _size_of(work.inputs)
        if rows > self._max_queued_rows or size > self._max_queued_bytes:
            raise RequestTooLarge(
                f"{rows} instances of {size} bytes together; at most {self._max_queued_rows} and "
                f"{self._max_queued_bytes} are taken at once"
            )
        if (
            self.queued_rows + rows > self._max_queued_rows
            or (self.queued_rows and self.queued_rows + rows > self._max_waiting_rows)
            or self._queued_bytes + size > self._max_queued_bytes
        ):
            most = min(self._max_queued_rows, self._max_waiting_rows)
            raise Overloaded(f"{self.queued_rows} rows are queued; at most {most}")
        now = time.monotonic()
        if work.deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        limit = self._max_batch_rows
        entry = _Entry(work, Waiting(loop=self._loop), -(-rows // limit), now, size // rows)
        if self._tracer is not None:
            entry.span = self._tracer.current()
        for start in range(0, rows, limit):
            self._queue.append(_Piece(entry, start, min(limit, rows - start)))
        self._explorations += not work.is_traffic
        self.queued_rows += rows
        self._queued_bytes += entry.bytes_per_row * rows
        if not self._scheduled:
            self._idle.clear()
            self._schedule()
        return entry.future

    async def drain(self) -> None:
        """Return when nothing is queued or running."""
        await self._idle.wait()

    def close(self) -> None:
        """End the worker thread and fail what is still queued."""
        self._fail_all(BatcherFailed("the model was unloaded"))
        self._abandon_worker()

    # -- the loop side

    def _schedule(self) -> None:
        if not self._scheduled and self.busy_since is None:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start the next batch: here when it is cheap, else in the thread."""
        self._scheduled = False
        if self.busy_since is not None:
            return
        try:
            pieces = self._take()
            if not pieces:
                self._set_idle()
                return
            self._in_flight = pieces
            self.busy_since = time.monotonic()
            if self._cost(sum(piece.rows for piece in pieces)) <= self._inline_seconds:
                begun = time.perf_counter()
                outcomes = self._run(pieces)
                self._answer(outcomes, time.perf_counter() - begun)
            else:
                self._current_worker().inbox.put(pieces)
        except Exception as error:  # noqa: BLE001 - whatever broke the loop, its callers must hear of it
            self._crashed(error)

    def _take(self) -> list[_Piece]:
        """Pop the next batch: pieces of one input shape, without those that nobody waits for any more."""
        pieces: list[_Piece] = []
        rows, queue = 0, self._queue
        now = time.monotonic()
        shape: tuple[int, ...] | None = None
        while queue:
            piece = queue[0]
            entry = piece.entry
            reason = self._why_drop(entry, now)
            if reason is None:
                own_shape = entry.work.inputs.shape[1:]
                if pieces and (rows + piece.rows > self._max_batch_rows or own_shape != shape):
                    break
                shape = own_shape
            queue.popleft()
            self.queued_rows -= piece.rows
            self._queued_bytes -= entry.bytes_per_row * piece.rows
            if reason is not None:
                self._drop(piece, reason)
                continue
            entry.begun = entry.begun or now
            pieces.append(piece)
            rows += piece.rows
        return pieces

    def _why_drop(self, entry: _Entry, now: float) -> Exception | None:
        work = entry.work
        if entry.future.done():
            return Abandoned("already answered or cancelled")
        if work.deadline <= now:
            return DeadlinePassed("the deadline passed while the request was queued")
        if work.is_abandoned is not None and work.is_abandoned():
            return Abandoned("the caller left")
        return None

    def _drop(self, piece: _Piece, reason: Exception) -> None:
        entry = piece.entry
        if not entry.future.done():
            entry.future.set_exception(reason)
        self._settle(piece)

    def _answer(self, outcomes: list[_Outcome], seconds: float) -> None:
        """Give every piece its answer, count the batch, schedule the next one."""
        self.busy_since = None
        self._deliver_all(outcomes, seconds)
        self._in_flight = []
        if self._queue:
            self._schedule()
        else:
            self._set_idle()

    def _deliver_all(self, outcomes: list[_Outcome], seconds: float) -> None:
        explorations = self._explorations  # those of this batch are settled before it is counted
        for pieces, result in outcomes:
            if self._tracer is not None:
                self._trace(self._tracer, pieces, seconds, failed=isinstance(result, Exception))
            bad = _nan_rows(result) if isinstance(result, GraphOutputs) else None
            start = 0
            for piece in pieces:
                self._deliver(piece, result, start, seconds, bad)
                start += piece.rows
            if isinstance(result, GraphOutputs):
                answered = None
                if bad is not None or explorations:
                    answered = _answered(pieces, bad)
                self._count(BatchFacts(result, start, seconds, answered))

    def _count(self, facts: BatchFacts) -> None:
        """Record a batch; what cannot be recorded costs nobody an answer."""
        try:
            self._on_batch(facts)
        except Exception:
            logger.exception("a batch of %s was answered and could not be recorded", self.name)

    def _trace(self, tracer: Tracer, pieces: list[_Piece], seconds: float, *, failed: bool) -> None:
        """The same, before the requests whose rows it held end."""
        parts = [
            TracedPart(p.entry.span, p.rows, None if p.start else p.entry.admitted) for p in pieces
        ]
        try:
            tracer.graph_call(parts, seconds, failed=failed)
        except Exception:
            logger.exception("a batch of %s could not be traced", self.name)

    def _deliver(
        self,
        piece: _Piece,
        result: GraphOutputs | Exception,
        start: int,
        seconds: float,
        bad: NDArray[np.bool_] | None,
    ) -> None:
        """Give a piece its rows of the result, from `start` on; `bad` marks those that are NaN, if there are any."""
        entry = piece.entry
        entry.inference_seconds += seconds
        if isinstance(result, GraphOutputs):
            stop = start + piece.rows
            entry.results.append((piece.start, result, start, stop))
            if bad is not None and bad[start:stop].any():
                rows = np.flatnonzero(bad[start:stop]) + piece.start
                result = UnscorableRows(rows.tolist(), "the model's output is NaN")
        self._settle(piece)
        if entry.future.done():
            return
        if isinstance(result, Exception):
            entry.future.set_exception(result)
        elif entry.pieces_left == 0:
            try:
                entry.future.set_result(_scored(entry))
            except Exception as error:  # noqa: BLE001 - it is this caller's alone, not the batch's
                _tell(entry.future, error)

    def _settle(self, piece: _Piece) -> None:
        """Count a piece off; with the last one the request's prior slots are given back."""
        if piece.settled:
            return
        piece.settled = True
        entry = piece.entry
        entry.pieces_left -= 1
        if entry.pieces_left == 0:
            self._explorations -= not entry.work.is_traffic
            for slot in entry.work.held_slots:
                self._table.release(slot)

    def _set_idle(self) -> None:
        if self.busy_since is None and not self._queue:
            self._idle.set()

    # -- running, on the loop or in the thread

    def _run(self, pieces: list[_Piece]) -> list[_Outcome]:
        """Run a batch; when it fails, run its halves, so that only the guilty row fails."""
        try:
            return [(pieces, self._call(pieces))]
        except Exception:  # noqa: BLE001 - a foreign graph may raise anything
            if len(pieces) > 1:
                middle = len(pieces) // 2
                return self._run(pieces[:middle]) + self._run(pieces[middle:])
            return [(pieces, self._row_by_row(pieces[0]))]

    def _row_by_row(self, piece: _Piece) -> GraphOutputs | UnscorableRows:
        """A failing piece with one graph call a row: the rows that fail alone too, or the answer when none does."""
        rows: list[int] = []
        parts: list[GraphOutputs] = []
        reason = ""
        for row in range(piece.start, piece.start + piece.rows):
            try:
                parts.append(self._call([_Piece(piece.entry, row, 1)]))
            except Exception as error:  # noqa: BLE001 - the row is what is looked for
                reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
                rows.append(row)
        if rows:
            return UnscorableRows(rows, f"the model refuses it: {reason}")
        return GraphOutputs.joined(parts)

    def _call(self, pieces: list[_Piece]) -> GraphOutputs:
        blocks, taus, slots = [], [], []
        top_k, full = 1, False
        for piece in pieces:
            work = piece.entry.work
            inputs, tau, slot = work.inputs, work.tau, work.slot
            if piece.rows != len(inputs):
                rows = slice(piece.start, piece.start + piece.rows)
                inputs, tau, slot = inputs[rows], _rows_of(tau, rows), _rows_of(slot, rows)
            blocks.append(inputs)
            taus.append(tau)
            slots.append(slot)
            full = full or work.full
            top_k = max(top_k, min(work.top_k, MAX_GRAPH_TOP_K))
        # The generation first: a row written in between is then copied to the device once more, never missed.
        generation = self._table.generation
        return self._run_graph(
            blocks[0] if len(blocks) == 1 else np.concatenate(blocks),
            tau=_by_row(taus, pieces, np.float32),
            prior_index=_by_row(slots, pieces, np.int64),
            prior_table=self._table.rows,
            top_k=top_k,
            generation=generation,
            with_logits=self._wants_logits(),
            full=full,
        )

    # -- the thread

    def _current_worker(self) -> "_Worker":
        if self._worker is None:
            self._worker = _Worker(self.name, self._run, self._from_worker)
        return self._worker

    def _abandon_worker(self) -> None:
        if self._worker is not None:
            self._worker.inbox.put(None)
            self._worker = None

    def _from_worker(
        self, worker: "_Worker", result: "list[_Outcome] | BaseException", seconds: float
    ) -> None:
        """Called in the worker's thread."""
        self._done.append((worker, result, seconds))
        self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        while self._done:
            self._finished(*self._done.popleft())

    def _finished(
        self, worker: "_Worker", result: "list[_Outcome] | BaseException", seconds: float
    ) -> None:
        """Start the next batch before the answers of this one are encoded, so that the session never waits for them."""
        if worker is not self._worker:
            return  # its callers were failed when the loop was restarted
        if isinstance(result, BaseException):
            self._crashed(result)
            return
        self.busy_since = None
        delivered, self._in_flight = self._in_flight, []
        try:
            self._pump()
            self._deliver_all(result, seconds)
        except Exception as error:  # noqa: BLE001 - see _pump
            self._in_flight += delivered
            self._crashed(error)

    # -- when the loop itself breaks

    def _crashed(self, error: BaseException) -> None:
        """Fail every caller, turn liveness red, and start again."""
        logger.error("the batching loop of %s failed and is restarted", self.name, exc_info=error)
        self.failure = f"{type(error).__name__}: {error}"
        self.restarts += 1
        self._abandon_worker()
        self._fail_all(BatcherFailed(f"the batching loop failed: {self.failure}"))
        self._loop.call_soon(self._restarted)

    def _restarted(self) -> None:
        self.failure = None
        if self._queue:
            self._schedule()

    def _fail_all(self, error: Exception) -> None:
        pieces = [*self._in_flight, *self._queue]
        self._in_flight = []
        self._queue.clear()
        self.queued_rows = self._queued_bytes = 0
        self.busy_since = None
        for piece in pieces:
            if not piece.entry.future.done():
                piece.entry.future.set_exception(error)
            self._settle(piece)
        self._set_idle()


class _Worker:
    """The thread that owns the session. It ends when it is handed None or when running a batch raises."""

    def __init__(
        self,
        name: str,
        run: Callable[[list[_Piece]], list[_Outcome]],
        report: "Callable[[_Worker, list[_Outcome] | BaseException, float], None]",
    ) -> None:
        self.inbox: queue.SimpleQueue[list[_Piece] | None] = queue.SimpleQueue()
        self._run, self._report = run, report
        threading.Thread(target=self._work, name=f"graph-{name}", daemon=True).start()

    def _work(self) -> None:
        while (pieces := self.inbox.get()) is not None:
            begun = time.perf_counter()
            try:
                outcomes = self._run(pieces)
            except BaseException as error:  # noqa: BLE001 - the loop must hear of it; then this thread ends
                self._report(self, error, time.perf_counter() - begun)
                return
            self._report(self, outcomes, time.perf_counter() - begun)
            del pieces, outcomes  # an idle thread keeps no request alive


def _tell(future: "asyncio.Future[Scored]", error: Exception) -> None:
    if future.done():
        logger.error("what waited for an answer failed when it came", exc_info=error)
    else:
        future.set_exception(error)


def _size_of(inputs: Array) -> int:
    """Bytes that an array holds; of text an array itself knows only its references."""
    if inputs.dtype.kind != "O":
        return inputs.nbytes
    return inputs.nbytes + sum(map(sys.getsizeof, inputs.ravel().tolist()))


def _nan_rows(outputs: GraphOutputs) -> NDArray[np.bool_] | None:
    """[n] which rows came out as NaN; None when none did."""
    bad: NDArray[np.bool_] = np.isnan(outputs.top_probability[:, 0])
    bad |= np.isnan(outputs.unadjusted_probability)
    return bad if bad.any() else None


def _answered(pieces: list[_Piece], bad: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """See BatchFacts; what a request has in this batch is refused as a whole when one of its rows is bad."""
    flags: list[bool] = []
    for piece in pieces:
        start = len(flags)
        refused = bad is not None and bool(bad[start : start + piece.rows].any())
        flags += [piece.entry.work.is_traffic and not refused] * piece.rows
    return None if all(flags) else np.array(flags)


def _rows_of(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, np.ndarray) else value


def _by_row(values: list[Any], pieces: list[_Piece], dtype: Any) -> Array:
    """[n] a value a row; each piece's value is one number or one a row."""
    if any(isinstance(value, np.ndarray) for value in values):
        parts = zip(values, pieces, strict=True)
        return np.concatenate([np.full(piece.rows, value, dtype) for value, piece in parts])
    column = np.array(values, dtype)
    rows = [piece.rows for piece in pieces]
    return column if max(rows) == 1 else np.repeat(column, rows)


def _scored(entry: _Entry) -> Scored:
    queue_seconds = entry.begun - entry.admitted
    if len(entry.results) == 1:
        _, outputs, start, stop = entry.results[0]
        return Scored(outputs, start, stop, queue_seconds, entry.inference_seconds)
    entry.results.sort(key=lambda result: result[0])
    parts = [outputs.rows(start, stop) for _, outputs, start, stop in entry.results]
    return Scored(
        GraphOutputs.joined(parts),
        0,
        len(entry.work.inputs),
        queue_seconds,
        entry.inference_seconds,
    )
