"""Many callers, one graph call: bounded, without a timer, and never silent when something fails.

A batch is whatever queued while the last one ran. Cheap batches run on the event loop when it has read what came; others run in
the one thread that owns the session. The batch key is the input's shape alone: tau, prior and top_k travel per row.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from service.batching.admission import Admission
from service.batching.batch import Batch
from service.batching.delivery import Delivery
from service.batching.queue import Dropped, PieceQueue
from service.batching.run import BatchRun, Outcome, RunGraph
from service.batching.thread import GraphThread
from service.batching.waiting import Waiting
from service.batching.work import (
    Awaited,
    BatcherFailed,
    BatchFacts,
    DeadlinePassed,
    Entry,
    Tracer,
    Work,
    size_of,
)
from service.graph.prior_table import PriorTable

logger = logging.getLogger(__name__)

MAX_LOOKS = 3
"""Turns of the loop that may read before a cheap batch is run."""


class Batcher:
    """The queue of one model version. Everything but the graph's thread runs on the event loop."""

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
        max_flood_rows: int | None = None,
        inline_seconds: float,
        on_batch: Callable[[BatchFacts], None],
        wants_logits: Callable[[], bool] = lambda: False,
        name: str = "model",
        tracer: Tracer | None = None,
    ) -> None:
        self._cost = cost_seconds
        self._batch_run = BatchRun(run_graph, table, wants_logits)
        self._max_batch_rows, self._inline_seconds = max_batch_rows, inline_seconds
        self._admission = Admission(
            max_queued_rows=max_queued_rows,
            max_queued_bytes=max_queued_bytes,
            max_waiting_rows=max_waiting_rows,
            max_flood_rows=max_flood_rows,
        )
        self._tracer = tracer
        self._delivery = Delivery(table, on_batch=on_batch, tracer=tracer, name=name)
        self._queue = PieceQueue(max_batch_rows)
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._looks = self._seen_rows = 0
        """How often the queue was looked at since it was scheduled, and the rows that were there the last time."""
        self._in_flight: deque[Batch] = deque()
        """The batch that runs, and in the thread's inbox at most one that follows it and until then takes what comes."""
        self._done: deque[tuple[GraphThread, list[Outcome] | BaseException, float]] = deque()
        self.busy_since: float | None = None
        """time.monotonic() when the running graph call began; a watchdog reads it."""
        self.failure: str | None = None
        """Why the loop is not alive; None while it is."""
        self.restarts = 0
        self.name = name
        self._thread: GraphThread | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, work: Work) -> Waiting[Entry]:
        """Queue a request and wait for its entry. Raises as `enqueue`."""
        entry = Awaited(work, self._loop)
        self.enqueue(entry)
        return entry.future

    def enqueue(self, entry: Entry) -> None:
        """Queue a request. Raises Overloaded, RequestTooLarge or DeadlinePassed at once, and then holds nothing."""
        if self._done:  # under a flood a turn of the loop lasts for seconds: the session must not wait for its end
            self._collect()
        work, now, queue = entry.work, time.monotonic(), self._queue
        rows, size = len(work.inputs), size_of(work.inputs)
        self._admission.check(rows, size, waiting=self.queued_rows, queued_bytes=queue.bytes)
        if work.deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        if not queue.rows:
            self._idle.clear()
        entry.admitted = now
        if self._tracer is not None:
            entry.span = self._tracer.current()
        queue.add(entry, rows, size)
        self._delivery.explorations += not work.is_traffic
        self._schedule()

    def check_room(self, rows: int = 1) -> None:
        """Raise Overloaded when so many rows would be too many: with one, before a request is even read."""
        self._admission.check_room(rows, waiting=self.queued_rows)

    @property
    def max_request_rows(self) -> int:
        """The most that one request may have."""
        return self._admission.max_rows

    @property
    def queued_rows(self) -> int:
        """Rows whose graph call has not begun."""
        ahead = self._in_flight[1].rows if len(self._in_flight) > 1 else 0
        return self._queue.rows + ahead

    def afterwards(self, answer: Callable[[], None]) -> None:
        """See Delivery."""
        self._delivery.afterwards(answer)

    async def drain(self) -> None:
        """Return when nothing is queued or running."""
        await self._idle.wait()

    def close(self) -> None:
        """End the thread and fail what is still queued."""
        self._fail_all(BatcherFailed("the model was unloaded"))
        self._abandon_thread()

    # -- from the queue to the graph

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._looks = self._seen_rows = 0
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Pump, but for a cheap batch wait while the loop still reads more: a few turns, without a timer.

        Clients that were answered together ask again together, yet not within one turn of the loop; run apart they would be
        answered apart, and remain so in batches of half the size.
        """
        rows = self._queue.rows
        grows = self._seen_rows < rows < self._max_batch_rows
        self._looks += 1
        waits = grows and self._looks < MAX_LOOKS and not self._in_flight
        if waits and self._is_cheap(rows):
            self._seen_rows = rows
            self._loop.call_soon(self._look)
        else:
            self._pump()

    def _is_cheap(self, rows: int) -> bool:
        """Whether a batch may run on the event loop."""
        return self._cost(rows) <= self._inline_seconds

    def _pump(self) -> None:
        """Start the next batch, here when it is cheap, else in the thread; or prepare the one after it."""
        self._scheduled = False
        dropped: list[Dropped] = []
        try:
            self._prepare_or_start(dropped)
        except Exception as error:  # noqa: BLE001 - whatever broke the loop, its callers must hear of it
            self._crashed(error)
        for piece, reason in dropped:  # at the end, since whoever is told may queue again at once
            self._delivery.drop(piece, reason)

    def _prepare_or_start(self, dropped: list[Dropped]) -> None:
        """The same; adds to `dropped` what nobody waits for any more."""
        if len(self._in_flight) > 1:
            ahead = self._in_flight[1]
            with ahead.open() as is_open:
                if is_open:
                    self._queue.fill(ahead, dropped)
            return
        runs_now, batch = not self._in_flight, Batch()
        self._in_flight.append(batch)  # first, so that its callers hear of it when filling breaks
        self._queue.fill(batch, dropped)
        if not batch.pieces:
            self._in_flight.pop()
            self._set_idle()
            return
        if runs_now:
            self.busy_since = time.monotonic()
        if runs_now and self._is_cheap(batch.rows):
            begun = time.perf_counter()
            outcomes = self._batch_run.run(batch.begin())
            self._answer(outcomes, time.perf_counter() - begun)
        else:
            self._current_thread().inbox.put(batch)

    # -- from the graph to the callers

    def _answer(self, outcomes: list[Outcome], seconds: float) -> None:
        """Give every piece its answer, count the batch, schedule the next one."""
        self.busy_since = None
        self._delivery.deliver(outcomes, seconds)
        self._in_flight.clear()
        if self._queue.rows:
            self._schedule()
        else:
            self._set_idle()

    def _set_idle(self) -> None:
        if not self._in_flight and not self._queue.rows:
            self._idle.set()

    # -- the thread

    def _current_thread(self) -> GraphThread:
        if self._thread is None:
            self._thread = GraphThread(self.name, self._batch_run.run_wanted, self._from_thread)
        return self._thread

    def _abandon_thread(self) -> None:
        if self._thread is not None:
            self._thread.inbox.put(None)
            self._thread = None

    def _from_thread(
        self, thread: GraphThread, result: list[Outcome] | BaseException, seconds: float
    ) -> None:
        """Called in the thread."""
        self._done.append((thread, result, seconds))
        self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        while self._done:
            self._finished(*self._done.popleft())

    def _finished(
        self, thread: GraphThread, result: list[Outcome] | BaseException, seconds: float
    ) -> None:
        """Start the next batch before the answers of this one are encoded, so that the session never waits for them."""
        if thread is not self._thread:
            return  # its callers were failed when the loop was restarted
        if isinstance(result, BaseException):
            self._crashed(result)
            return
        delivered = self._in_flight.popleft()
        self.busy_since = time.monotonic() if self._in_flight else None
        try:
            self._pump()
            self._delivery.deliver(result, seconds)
        except Exception as error:  # noqa: BLE001 - see _pump
            self._in_flight.append(delivered)
            self._crashed(error)

    # -- when the loop itself breaks

    def _crashed(self, error: BaseException) -> None:
        """Fail every caller, turn liveness red, and start again."""
        logger.error("the batching loop of %s failed and is restarted", self.name, exc_info=error)
        self.failure = f"{type(error).__name__}: {error}"
        self.restarts += 1
        self._abandon_thread()
        self._fail_all(BatcherFailed(f"the batching loop failed: {self.failure}"))
        self._loop.call_soon(self._restarted)

    def _restarted(self) -> None:
        self.failure = None
        if self._queue.rows:
            self._schedule()

    def _fail_all(self, error: Exception) -> None:
        pieces = [piece for batch in self._in_flight for piece in batch.pieces]
        pieces += self._queue.take_all()
        self._in_flight.clear()
        self.busy_since = None
        for piece in pieces:
            self._delivery.drop(piece, error)
        self._set_idle()
