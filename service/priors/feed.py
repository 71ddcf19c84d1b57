"""Follows the store of priors in a separate thread: new entries, and whether the store answers."""

import asyncio
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from service.priors.orders.wishes import ModelOrder
from service.priors.revisions import StoredRevision, StoreTrouble, StoreUnavailable
from service.process.waker import Waker

log = logging.getLogger(__name__)

STALLED_SECONDS = 1.5
"""Time without an answer to the poll after which a store counts as slow."""
REPORT_SECONDS = 5.0
REPORT_AGAIN_SECONDS = 1.0
RECHECK_SECONDS = 1.0


def spread(seconds: float) -> float:
    """A random pause of about this many seconds, so that replicas do not stay in step."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - nothing is guarded by it


@dataclass(frozen=True)
class Changes:
    """The entries and orders after some change, and the number of the last change.

    Damaged entries are included.
    """

    number: int
    entries: tuple[StoredRevision, ...]
    orders: tuple[ModelOrder, ...] = ()


@dataclass(frozen=True)
class WorkerReport:
    """A worker process and its state. It serves all entries up to `change` but the `damaged` ones.

    models: JSON of the versions it serves of each model; an empty object while it starts.
    scraped_at: HOST:PORT of its own metrics port; empty without one.
    """

    worker: str
    replica: str
    pid: int
    change: int
    damaged: tuple[tuple[str, str, int], ...] = ()
    models: str = "{}"
    scraped_at: str = ""


def this_worker() -> WorkerReport:
    """An empty report of this process, which identifies it to other workers."""
    return WorkerReport(
        worker=uuid.uuid4().hex[:12], replica=socket.gethostname(), pid=os.getpid(), change=-1
    )


class FeedStore(Protocol):
    """The part of a store that the feed uses; calls may block and may raise StoreUnavailable."""

    def open(self) -> None:
        """Connect and bring the schema up to date."""

    def newest(self) -> Changes:
        """The newest readable entries of every prior."""

    def since(self, change: int) -> Changes:
        """The entries after a change number."""

    def report(self, report: WorkerReport) -> None:
        """Record what a worker serves."""

    def leave(self, worker: str) -> None:
        """Remove the report of a worker that ends."""

    def wait(self, seconds: float, woken: Waker) -> None:
        """Return when something may have changed, when woken, or after `seconds`."""

    def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class StoreState:
    """State of the store. Any kind but `ok`, and any fault, makes readiness `degraded`."""

    kind: Literal["ok"] | StoreTrouble
    detail: str = ""
    faults: tuple[str, ...] = ()

    @property
    def degraded(self) -> bool:
        """Whether readiness should say `degraded`."""
        return self.kind != "ok" or bool(self.faults)


class Feed:
    """A daemon thread that polls the store's change number and hands new entries to the loop."""

    def __init__(
        self,
        store: FeedStore,
        *,
        worker: WorkerReport,
        poll_seconds: float,
        prepare: Callable[[Sequence[StoredRevision]], None],
        deliver: Callable[[Sequence[StoredRevision]], None],
        deliver_orders: Callable[[Sequence[ModelOrder]], None] = lambda _orders: None,
    ) -> None:
        """New entries go to `prepare` in the thread, then to `deliver` on the event loop.

        Orders for models go to `deliver_orders`, on the loop too.

        worker: how other workers see this process. poll_seconds: pause between two polls.
        """
        self._store = store
        self.me = worker
        self._poll_seconds = poll_seconds
        self._prepare = prepare
        self._deliver, self._deliver_orders = deliver, deliver_orders
        self._woken = Waker()
        self._stopping = False
        self._opened = False
        self._asking_since: float | None = None
        """When the poll in progress began; None between two polls."""
        self._read_trouble: StoreUnavailable | None = None
        self._write_trouble: StoreUnavailable | None = None
        self._ended = asyncio.Event()
        self._started = False
        self._damaged: dict[int, StoredRevision] = {}
        self._models = "{}"
        self._reported: WorkerReport | None = None
        self._report_seconds = REPORT_SECONDS
        self._reported_at = self._rechecked_at = 0.0
        self.change = -1
        """Number of the last change that was delivered; -1 before the first poll."""

    async def start(self, *, seconds: float) -> StoreUnavailable | None:
        """Start following. Returns the error if the first reading fails within `seconds`, else
        None.
        """
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        threading.Thread(target=self._run, name="prior-feed", daemon=True).start()
        self._started = True
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._first)
        except StoreUnavailable as error:
            return error
        except TimeoutError:
            return self._read_trouble or StoreUnavailable("slow", f"no answer within {seconds:g} s")
        return None

    async def stop(self, *, seconds: float) -> None:
        """Let the thread end. It may hang in the store, so this waits for at most `seconds`."""
        if not self._started:
            return
        self._stopping = True
        self._woken.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def wake(self) -> None:
        """Poll the store now."""
        self._woken.set()

    def show_metrics(self, scraped_at: str) -> None:
        """Tell the other workers the HOST:PORT of this one's metrics port."""
        self.me = replace(self.me, scraped_at=scraped_at)

    def report_models(self, models: str) -> None:
        """Tell the other workers at once what this one serves, as JSON."""
        self._models = models
        self._woken.set()

    def write_failed(self, error: StoreUnavailable | None) -> None:
        """Note the outcome of a write: its error, or None if it succeeded.

        The first failure and the end of the trouble are logged, unless reading fails, too.
        """
        before, self._write_trouble = self._write_trouble, error
        if self._read_trouble is not None:
            return
        if error is not None and (before is None or before.kind != error.kind):
            log.warning("%s; no prior can be changed until it works again", error)
        if error is None and before is not None:
            log.warning("the store of priors accepts changes again")

    @property
    def state(self) -> StoreState:
        """The state of the store now."""
        faults = tuple(
            f"revision {entry.revision} of prior '{entry.name}' of model '{entry.model}' is damaged"
            for entry in list(self._damaged.values())
        )
        silent = self._silent_seconds
        trouble = self._read_trouble
        if trouble is None and silent > STALLED_SECONDS:
            trouble = StoreUnavailable("slow", f"it has not answered for {silent:.1f} s")
        trouble = trouble or self._write_trouble
        if trouble is None:
            return StoreState("ok", faults=faults)
        return StoreState(trouble.kind, trouble.detail, faults)

    def check_reachable(self) -> None:
        """Raise StoreUnavailable at once if the last poll failed or is overdue."""
        silent = self._silent_seconds
        if self._read_trouble is not None:
            raise StoreUnavailable(self._read_trouble.kind, self._read_trouble.detail)
        if silent > STALLED_SECONDS:
            raise StoreUnavailable(
                "slow", f"it has not answered for {silent:.1f} s; check its server or disk"
            )

    @property
    def _silent_seconds(self) -> float:
        """Seconds that the poll in progress has waited for the store; 0 between polls."""
        since = self._asking_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            if self._opened:
                with suppress(StoreUnavailable):
                    self._store.leave(self.me.worker)
            self._store.close()
            self._woken.close()
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._ended.set)

    def _follow(self) -> None:
        while not self._stopping:
            self._woken.clear()
            self._asking_since = time.monotonic()
            try:
                self._look()
            except StoreUnavailable as error:
                self._note_trouble(error)
                self._asking_since = None
                self._woken.wait(spread(max(self._poll_seconds, 0.25)))
            except Exception:
                log.exception(
                    "following the store of priors failed; the next poll tries again; report this "
                    "with the traceback"
                )
                self._note_trouble(StoreUnavailable("away", "an unexpected failure; see the log"))
                self._asking_since = None
                self._woken.wait(1.0)
            else:
                self._note_trouble(None)
                self._asking_since = None
                self._store.wait(self._poll_seconds, self._woken)

    def _look(self) -> None:
        if not self._opened:
            self._store.open()
            self._opened = True
        changes = self._store.newest() if self.change < 0 else self._store.since(self.change)
        if changes.number < self.change:
            raise StoreUnavailable(
                "behind",
                f"it holds changes up to {changes.number}, but this worker has served change "
                f"{self.change}: an older copy has replaced it; restart every worker to accept it",
            )
        self._asking_since = None
        self._hand_over(changes)
        if self._damaged and time.monotonic() - self._rechecked_at > RECHECK_SECONDS:
            self._recheck()
        self._asking_since = time.monotonic()
        self._report()

    def _hand_over(self, changes: Changes) -> None:
        if changes.number == self.change:
            return
        for entry in changes.entries:
            if entry.damaged:
                self._damaged[entry.change] = entry
                log.error(
                    "revision %d of prior %r of model %r is damaged in the store and not served; "
                    "write the prior again, or restore the store from a backup",
                    entry.revision,
                    entry.name,
                    entry.model,
                )
        good = tuple(entry for entry in changes.entries if not entry.damaged)
        self._forget_damage(good)
        self._prepare(good)

        def arrive() -> None:
            self._deliver(good)
            self._deliver_orders(changes.orders)
            self.change = max(self.change, changes.number)
            if not self._first.done():
                self._first.set_result(None)

        self._on_loop(arrive)

    def _recheck(self) -> None:
        """Read damaged entries again: they may have been repaired in place."""
        self._rechecked_at = time.monotonic()
        good = tuple(entry for entry in self._store.newest().entries if not entry.damaged)
        self._forget_damage(good)
        self._prepare(good)
        self._on_loop(lambda: self._deliver(good))

    def _forget_damage(self, good: Sequence[StoredRevision]) -> None:
        """Drop damaged entries that were repaired or replaced by a newer revision."""
        for entry in good:
            for change, damaged in list(self._damaged.items()):
                same = (entry.model, entry.name) == (damaged.model, damaged.name)
                if same and entry.revision >= damaged.revision:
                    del self._damaged[change]

    def _report(self) -> None:
        damaged = tuple((e.model, e.name, e.revision) for e in self._damaged.values())
        me, now, last = self.me, time.monotonic(), self._reported
        report = replace(me, change=self.change, damaged=damaged, models=self._models)
        pause = self._report_seconds if report == last else REPORT_AGAIN_SECONDS
        if last is not None and last.models != report.models:
            pause = 0.0  # whoever gave the order is waiting for this report
        if now - self._reported_at < pause:
            return
        self._reported_at = now
        self._report_seconds = spread(REPORT_SECONDS)
        try:
            self._store.report(report)
        except StoreUnavailable as error:
            if error.kind != "slow":  # another process is writing
                self.write_failed(error)
            return
        self._reported = report
        self.write_failed(None)

    def _note_trouble(self, error: StoreUnavailable | None) -> None:
        before, self._read_trouble = self._read_trouble, error
        # an unreachable or slow store may recover during the start
        if error is not None and error.kind not in ("away", "slow") and not self._first.done():
            self._on_loop(lambda: self._fail_first(error))
        if error is not None and (before is None or before.kind != error.kind):
            meanwhile = "no stored prior has been read yet"
            if self._first.done():
                meanwhile = "the priors served last stay in force until it works again"
            log.warning("%s; %s", error, meanwhile)
        if error is None and before is not None:
            log.warning("the store of priors answers again")

    def _fail_first(self, error: StoreUnavailable) -> None:
        if not self._first.done():
            self._first.set_exception(error)

    def _on_loop(self, call: Callable[[], object]) -> None:
        """Run a call on the event loop and wait for it, so that readings keep their order."""
        done = threading.Event()

        def run() -> None:
            try:
                call()
            finally:
                done.set()

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:  # the loop has closed
            self._stopping = True
            return
        while not done.wait(0.5):
            if self._stopping:
                return
