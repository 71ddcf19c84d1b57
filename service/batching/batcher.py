"""Collects the rows of many callers into one graph call, within bounds and without a timer.

A batch holds the rows that were queued while the last one ran. Cheap batches run on the event loop,
once it has read the requests that have arrived. Others run in the one thread that owns the session.
Requests share a batch when their rows have the same shape; tau, prior and top_k may differ. Every
request gets an answer.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

from service.batching.delivery import Delivery
from service.batching.facts import Record, Tracer
from service.batching.queue import Batch, Dropped, Entry, Queue
from service.batching.run import BatchRun, GraphThread, Outcome, RunGraph
from service.batching.work import (
    BatcherFailed,
    Caller,
    DeadlinePassed,
    GraphLost,
    Work,
)
from service.graph.prior_table import PriorTable
from service.process.threads import is_no_thread, raise_limit

logger = logging.getLogger(__name__)

MAX_TURNS = 3
"""The most turns of the event loop that a cheap batch waits for further requests."""
_THREADLESS_SECONDS = 0.02
"""Without a thread for the graph, batches expected to take no longer run on the event loop."""
_VAIN_WAITS = 32
"""After this many requests that no other joined, only every 32nd request waits for one."""


class Batcher:
    """The queue of one model version. Everything but the graph's thread runs on the event loop."""

    def __init__(
        self,
        run_graph: RunGraph,
        table: PriorTable,
        *,
        record: Record,
        cost_seconds: Callable[[int], float],
        max_batch_rows: int,
        max_queued_rows: int,
        max_queued_bytes: int,
        max_waiting_rows: int | None = None,
        max_flood_rows: int | None = None,
        inline_seconds: float,
        try_graph: Callable[[], object] | None = None,
        name: str = "model",
        tracer: Tracer | None = None,
        answered: Callable[[list[Entry]], None] | None = None,
        least_top_k: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the queue of a model version on the running event loop.

        run_graph: scores a batch; called by one thread at a time.
        table: the priors of queued rows; a request's slots are released when it is finished.
        record: where batches and refusals are counted.
        cost_seconds: returns the expected time of a batch with a number of rows.
        max_batch_rows: rows of the largest batch.
        max_queued_rows: rows of the largest request, which is accepted only when no other waits.
        max_queued_bytes: bytes of all queued inputs together.
        max_waiting_rows: rows that may wait when a request arrives; None is max_queued_rows.
        max_flood_rows: this limit while requests are being refused; None is max_waiting_rows.
        inline_seconds: batches expected to take no longer run on the event loop.
        try_graph: runs the graph on rows of its warm-up; raises when it no longer can.
        name: the model and version, for messages and the thread's name.
        tracer: records requests and graph calls; None without traces.
        answered: called with finished entries just before their replies, where answers are kept.
        least_top_k: how many classes the next batch ranks at least; called in the thread that runs
        it. None: 1.
        clock: returns the time, as time.monotonic() does; a test sets its own.
        """
        self._cost, self._inline_seconds, self._clock = cost_seconds, inline_seconds, clock
        self._batch_run = BatchRun(
            run_graph,
            table,
            record.wants_logits,
            try_graph=try_graph,
            least_top_k=least_top_k,
            clock=clock,
        )
        self._table = table
        self._max_batch_rows, self._tracer, self.name = max_batch_rows, tracer, name
        self._delivery = Delivery(table, record=record, tracer=tracer, name=name, answered=answered)
        self._queue = Queue(
            max_batch_rows=max_batch_rows,
            max_rows=max_queued_rows,
            max_bytes=max_queued_bytes,
            max_waiting_rows=max_waiting_rows,
            max_flood_rows=max_flood_rows,
            clock=clock,
        )
        self.bound = self._queue.bound
        self._loop = asyncio.get_running_loop()
        self._is_scheduled = False
        self._turns = self._seen_rows = 0
        """Turns of the loop since a batch was scheduled, and the number of rows queued in the last
        turn.
        """
        self._vain_waits = 0
        """How many requests in succession no other request joined, whether they waited or not."""
        self._in_flight: deque[Batch] = deque()
        """The batch that runs, and at most one in the thread's inbox, which is filled until it
        begins.
        """
        self._results: deque[tuple[GraphThread, list[Outcome] | BaseException, float]] = deque()
        """Results of the thread that the loop has not taken yet."""
        self._finished: list[Entry] = []
        """Entries that have scores or an error, but whose reply has not been called yet."""
        self._thread: GraphThread | None = None
        self._lacks_thread = False
        self._drained: list[asyncio.Future[None]] = []
        """Callers of `drain`, which wait until nothing is queued or running."""
        self.busy_since: float | None = None
        """time.monotonic() when the running graph call began, for the watchdog."""
        self.failure: str | None = None
        """Why the batching loop failed, until it has restarted; else None."""
        self.lost: str | None = None
        """Why the graph can no longer score anything; None while it can."""

    def put(self, entry: Entry) -> None:
        """Queue a request. A later turn of the loop calls its reply, with its scores or an error.

        Raises Overloaded, RequestTooLarge or DeadlinePassed at once. Such a request is counted as
        refused, and its slots of the prior table are released.
        """
        if (
            self._results
        ):  # A turn of the loop may be long; the session must not stay idle until it ends.
            self._take_results()
        now, work, in_flight = self._clock(), entry.work, self._in_flight
        ahead = in_flight[1].rows if len(in_flight) > 1 else 0
        try:
            self._queue.add(entry, now, ahead=ahead)
        except Exception as error:
            self._delivery.release(entry)
            self._delivery.refused(error)
            raise
        if self._tracer is not None:
            entry.span = self._tracer.current()
        if not work.is_traffic:
            self._delivery.explorations += 1
        if work.deadline.is_hard:
            wait = max(0.0, work.deadline.at - now)
            entry.timer = self._loop.call_later(wait, self._expire, entry)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._turns = self._seen_rows = 0
            self._loop.call_soon(self._turn)

    def submit(self, work: Work, *, caller: Caller | None = None) -> "asyncio.Future[Entry]":
        """Queue a request and get a future of its entry. Raises what `put` raises.

        The work is dropped when the caller leaves or the future is cancelled.
        """
        future: asyncio.Future[Entry] = self._loop.create_future()
        waiter = _Waiter(future, caller)
        self.put(Entry(work, caller=waiter, reply=_resolve, ask=future))
        return future

    def check_room(self) -> None:
        """Check before a body is parsed that one more row may be queued.

        Raises Overloaded, which is counted as a refusal.
        """
        ahead = self._in_flight[1].rows if len(self._in_flight) > 1 else 0
        try:
            self._queue.check_room(1, ahead=ahead)
        except Exception as error:
            self._delivery.refused(error)
            raise

    def refused(self, error: Exception) -> None:
        """Count a request that failed before it could be queued."""
        self._delivery.refused(error)

    @property
    def max_request_rows(self) -> int:
        """The most rows that one request may have."""
        return self._queue.max_rows

    @property
    def queued_rows(self) -> int:
        """Rows whose graph call has not begun."""
        ahead = self._in_flight[1].rows if len(self._in_flight) > 1 else 0
        return self._queue.rows + ahead

    async def drain(self) -> None:
        """Return when nothing is queued or running."""
        while self._in_flight or self._queue.rows or self._finished:
            drained = self._loop.create_future()
            self._drained.append(drained)
            await drained

    def close(self) -> None:
        """End the thread and fail what is still queued."""
        self._fail_all(BatcherFailed("the model was unloaded; send the request again"))
        self._abandon_thread()
        self._reply()
        self._delivery.record()

    # -- from the queue to the graph

    def _schedule(self) -> None:
        """Look at the queue in the next turn of the event loop."""
        self._is_scheduled = True
        self._turns = self._seen_rows = 0
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Start a batch, but let a cheap one wait a few turns while the loop still reads requests.

        Clients whose requests were answered together send their next ones almost together, but not
        within one turn. If those ran in separate batches, they would also be answered separately,
        and batches would stay half as large. A client that sends alone is not made to wait.
        """
        rows = self._queue.rows
        self._turns += 1
        if len(self._queue.pieces) > 1:
            self._vain_waits = 0
        elif self._turns == 1:
            self._vain_waits += 1
        try:
            waits = (
                self._seen_rows < rows < self._max_batch_rows
                and (self._vain_waits <= _VAIN_WAITS or self._vain_waits % _VAIN_WAITS == 0)
                and self._turns < MAX_TURNS
                and not self._in_flight
                and self._cost(rows) <= self._inline_seconds
            )
        except Exception as error:  # noqa: BLE001 - see _start
            self._crashed(error)
            waits = False
        if waits:
            self._seen_rows = rows
            self._loop.call_soon(self._turn)
            return
        self._is_scheduled = False
        self._start()
        self._reply()

    def _start(self) -> None:
        """Run the next batch here if it is cheap, else in the thread; fill the one after
        meanwhile.
        """
        in_flight, queue = self._in_flight, self._queue
        dropped: list[Dropped] = []
        try:
            if len(in_flight) > 1:
                with in_flight[1].open() as is_open:
                    if is_open:
                        queue.fill(in_flight[1], dropped)
            elif queue.rows:
                runs_now, batch = not in_flight, Batch()
                in_flight.append(
                    batch
                )  # recorded first, so that its callers get an answer even if filling fails
                queue.fill(batch, dropped)
                if not batch.pieces:
                    in_flight.pop()
                elif (
                    runs_now
                    and self._cost(batch.rows) <= self._inline_seconds
                    and not (self._table.unwritten and self._table.is_slow)
                ):
                    self._run_here(batch)
                else:
                    if runs_now:
                        self.busy_since = time.monotonic()
                    self._hand_over(batch)
        except Exception as error:  # noqa: BLE001 - whatever failed, the callers get an answer
            self._crashed(error)
        if dropped:
            self._finished += self._delivery.dropped(dropped)

    def _hand_over(self, batch: Batch) -> None:
        """Give a batch to the thread."""
        try:
            thread = self._current_thread()
        except RuntimeError as error:
            if not is_no_thread(error):
                raise
            self._without_thread(batch)
        else:
            thread.inbox.put(batch)

    def _run_here(self, batch: Batch) -> None:
        """Run a batch on the event loop."""
        self.busy_since = time.monotonic()
        begun = time.perf_counter()
        outcomes = self._batch_run.run(batch.pieces)
        self._cut(outcomes, time.perf_counter() - begun)
        self.busy_since = None
        self._in_flight.clear()

    # -- from the graph to the callers

    def _cut(self, outcomes: list[Outcome], seconds: float) -> None:
        """Cut batches that ran into requests.

        A request that was alone in its batch is recorded in the next turn of the loop. The loop
        writes its answer to the connection at the end of this one, so the client does not wait for
        the metrics. Code of this process that the answer wakes finds the request counted. Larger
        batches are recorded before they are answered: after that, the loop should read the next
        requests.
        """
        self._finished += self._delivery.finished(outcomes, seconds)
        if self._delivery.unrecorded:
            self._loop.call_soon(self._delivery.record)

    def _reply(self) -> None:
        """Answer the finished entries together, then handle what is left in the queue."""
        if self._finished:
            finished, self._finished = self._finished, []
            self._delivery.reply(finished)
        if not self._in_flight:
            if self._queue.rows:
                if not self._is_scheduled:
                    self._schedule()
            elif self._drained:
                self._wake_drained()

    def _wake_drained(self) -> None:
        drained, self._drained = self._drained, []
        for each in drained:
            if not each.done():
                each.set_result(None)

    def _expire(self, entry: Entry) -> None:
        """Answer a request whose hard deadline has passed, wherever its rows are."""
        if not entry.done():
            entry.error = DeadlinePassed(entry.work.deadline.message(self._clock()))
            self._delivery.reply([entry])

    # -- the thread

    def _current_thread(self) -> GraphThread:
        if self._thread is None:
            self._thread = GraphThread(self.name, self._batch_run.run_wanted, self._from_thread)
            self._lacks_thread = False
        return self._thread

    def _without_thread(self, batch: Batch) -> None:
        """Run a short batch here, as the system allows no thread for the graph, or refuse all that
        wait. The next batch tries again.
        """
        reason = f"no thread can be started for the graph; {raise_limit()}"
        if not self._lacks_thread:
            self._lacks_thread = True
            logger.warning(
                "%s: %s; until one can, batches of up to %g ms run on the event loop, and requests "
                "in longer ones get an error",
                self.name,
                reason,
                1000 * _THREADLESS_SECONDS,
            )
        writes_long = self._table.unwritten and self._table.is_slow
        if self._cost(batch.rows) <= _THREADLESS_SECONDS and not writes_long:
            self._run_here(batch)
        else:
            self._fail_all(BatcherFailed(reason))

    def _abandon_thread(self) -> None:
        if self._thread is not None:
            self._thread.inbox.put(None)
            self._thread = None

    def _from_thread(
        self, thread: GraphThread, result: list[Outcome] | BaseException, seconds: float
    ) -> None:
        """Pass a result to the event loop. Called in the thread."""
        self._results.append((thread, result, seconds))
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._take_results()
        self._reply()

    def _take_results(self) -> None:
        """Take the batches that the thread has finished, after handing it the next one.

        The session therefore never waits while answers are encoded. The thread has scheduled
        `_collect`, which calls the replies.
        """
        while self._results:
            thread, result, seconds = self._results.popleft()
            if thread is not self._thread:
                continue  # its callers already got an error when the loop was restarted
            if isinstance(result, BaseException):
                self._crashed(result)
                continue
            batch = self._in_flight.popleft()
            self.busy_since = time.monotonic() if self._in_flight else None
            self._start()
            try:
                self._cut(result, seconds)
            except Exception as error:  # noqa: BLE001 - see _start
                self._in_flight.append(batch)
                self._crashed(error)

    # -- when the batching loop itself fails

    def _crashed(self, error: BaseException) -> None:
        """Answer every caller with an error, make liveness fail, and restart the batching loop."""
        self.failure = f"{type(error).__name__}: {error}"
        if isinstance(error, GraphLost):
            self.lost = f"{self.name} cannot score any request: {error}"
        logger.error(
            "the batching loop of %s failed; its queued requests get an error, and it restarts; "
            "report this with the traceback",
            self.name,
            exc_info=error,
        )
        self._abandon_thread()
        self._fail_all(
            BatcherFailed(f"the batching loop failed ({self.failure}); send the request again")
        )
        self._loop.call_soon(self._restart)

    def _restart(self) -> None:
        self._reply()
        self._loop.call_soon(self._restarted)

    def _restarted(self) -> None:
        self.failure = None

    def _fail_all(self, error: Exception) -> None:
        pieces = [piece for batch in self._in_flight for piece in batch.pieces]
        pieces += self._queue.take_all()
        self._in_flight.clear()
        self.busy_since = None
        self._finished += self._delivery.dropped([(piece, error) for piece in pieces])


class _Waiter:
    """A caller of `submit`, which leaves by cancelling its future."""

    __slots__ = ("_caller", "_future")

    request_id = None
    """None: this is not a client's request, so its answer is not kept for feedback."""

    def __init__(self, future: "asyncio.Future[Entry]", caller: Caller | None) -> None:
        self._future, self._caller = future, caller

    @property
    def connection(self) -> "_Waiter":
        """This object, which knows whether the caller still waits."""
        return self

    @property
    def disconnected(self) -> bool:
        """Whether the future is cancelled or the caller has left."""
        caller = self._caller
        return self._future.done() or (caller is not None and caller.connection.disconnected)


def _resolve(entries: list[Entry]) -> None:
    """Set the futures of `submit`: the reply of its entries."""
    for entry in entries:
        future: asyncio.Future[Entry] = entry.ask
        if future.done():
            continue
        if entry.error is None:
            future.set_result(entry)
        else:
            future.set_exception(entry.error)
