"""Follows the store of priors from a thread of its own: new entries, whether it can be reached, who serves what."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from service.priors.revisions import StoredRevision, StoreTrouble, StoreUnavailable

log = logging.getLogger(__name__)

STALLED_SECONDS = 1.5
"""A store that has not answered the poll for so long counts as slow."""
REPORT_SECONDS = 5.0
REPORT_AGAIN_SECONDS = 1.0
RECHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Changes:
    """The entries of the store after some change number, damaged ones included, and the number they reach to."""

    number: int
    entries: tuple[StoredRevision, ...]


@dataclass(frozen=True)
class WorkerReport:
    """What one worker process says of itself: it serves all entries up to `change`, but for `damaged`."""

    worker: str
    replica: str
    pid: int
    change: int
    damaged: tuple[tuple[str, str, int], ...] = ()
    seen_at: datetime | None = None


class FeedStore(Protocol):
    """What the feed needs of a store; every call may block and may raise StoreUnavailable."""

    def open(self) -> None:
        """Connect and bring the schema up to date."""

    def heads(self) -> Changes:
        """The newest readable entries of every prior."""

    def since(self, change: int) -> Changes:
        """The entries after a change number."""

    def report(self, report: WorkerReport) -> None:
        """Record what a worker serves."""

    def wait(self, seconds: float, woken: threading.Event) -> None:
        """Return when something may have changed, when woken, or after `seconds`."""

    def close(self) -> None:
        """Let connections go."""


@dataclass(frozen=True)
class StoreState:
    """How the store does. Anything but `ok`, and any fault, is for readiness to call degraded."""

    kind: Literal["ok"] | StoreTrouble
    detail: str = ""
    faults: tuple[str, ...] = ()

    @property
    def degraded(self) -> bool:
        """Whether something is to be told."""
        return self.kind != "ok" or bool(self.faults)


class Feed:
    """One daemon thread that polls the change number of the store and hands new entries to the event loop."""

    def __init__(
        self,
        store: FeedStore,
        *,
        worker: WorkerReport,
        poll_seconds: float,
        prepare: Callable[[Sequence[StoredRevision]], None],
        deliver: Callable[[Sequence[StoredRevision]], None],
    ) -> None:
        """New entries go to `prepare` in the thread, then to `deliver` on the loop."""
        self._store = store
        self._me = worker
        self._poll_seconds = poll_seconds
        self._prepare = prepare
        self._deliver = deliver
        self._woken = threading.Event()
        self._stopping = False
        self._opened = False
        self._answered_at = time.monotonic()
        self._read_trouble: StoreUnavailable | None = None
        self._write_trouble: StoreUnavailable | None = None
        self._damaged: dict[int, StoredRevision] = {}
        self._reported: tuple[int, tuple[tuple[str, str, int], ...]] | None = None
        self._reported_at = self._rechecked_at = 0.0
        self.change = -1
        """Number of the last change that was handed over; -1 before the first reading."""

    async def start(self, *, seconds: float) -> StoreUnavailable | None:
        """Begin to follow; what is wrong when the first reading has not succeeded within `seconds`."""
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="prior-feed", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._first)
        except StoreUnavailable as error:
            return error
        except TimeoutError:
            return self._read_trouble or StoreUnavailable("slow", f"no answer within {seconds:g} s")
        return None

    async def stop(self, *, seconds: float) -> None:
        """Let the thread end; it may be hanging in the store, so nobody waits longer than `seconds`."""
        self._stopping = True
        self._woken.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def wake(self) -> None:
        """Look at the store now."""
        self._woken.set()

    def write_failed(self, error: StoreUnavailable | None) -> None:
        """Told after each write: its trouble, or None when it worked."""
        self._write_trouble = error

    @property
    def state(self) -> StoreState:
        """How the store does now."""
        faults = tuple(
            f"revision {entry.revision} of prior '{entry.name}' of model '{entry.model}' is damaged in the store"
            for entry in list(self._damaged.values())
        )
        silent = time.monotonic() - self._answered_at
        trouble = self._read_trouble
        if trouble is None and silent > STALLED_SECONDS:
            trouble = StoreUnavailable("slow", f"it has not answered for {silent:.1f} s")
        trouble = trouble or self._write_trouble
        if trouble is None:
            return StoreState("ok", faults=faults)
        return StoreState(trouble.kind, trouble.detail, faults)

    def check_reachable(self) -> None:
        """Raises StoreUnavailable at once when the last poll failed or has not come back."""
        silent = time.monotonic() - self._answered_at
        if self._read_trouble is not None:
            raise StoreUnavailable(self._read_trouble.kind, self._read_trouble.detail)
        if silent > STALLED_SECONDS:
            raise StoreUnavailable("slow", f"it has not answered for {silent:.1f} s")

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            self._store.close()
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._ended.set)

    def _follow(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                self._look()
            except StoreUnavailable as error:
                self._note_trouble(error)
                self._woken.wait(max(self._poll_seconds, 0.25))
            except Exception:
                log.exception("the feed of priors failed and goes on")
                self._note_trouble(StoreUnavailable("away", "an unexpected failure; see the log"))
                self._woken.wait(1.0)
            else:
                self._note_trouble(None)
                self._store.wait(self._poll_seconds, self._woken)

    def _look(self) -> None:
        if not self._opened:
            self._store.open()
            self._opened = True
        changes = self._store.heads() if self.change < 0 else self._store.since(self.change)
        if changes.number < self.change:
            raise StoreUnavailable(
                "behind",
                f"it holds changes up to {changes.number}, and this worker has served change {self.change}: an older "
                "copy was put in its place; restart every worker to accept it",
            )
        self._answered_at = time.monotonic()
        self._hand_over(changes)
        if self._damaged and time.monotonic() - self._rechecked_at > RECHECK_SECONDS:
            self._recheck()
        self._report()

    def _hand_over(self, changes: Changes) -> None:
        if changes.number == self.change:
            return
        for entry in changes.entries:
            if entry.damaged:
                self._damaged[entry.change] = entry
                log.error(
                    "revision %d of prior %r of model %r is damaged in the store and is not served",
                    entry.revision,
                    entry.name,
                    entry.model,
                )
        good = tuple(entry for entry in changes.entries if not entry.damaged)
        self._forget_damage(good)
        self._prepare(good)

        def arrive() -> None:
            self._deliver(good)
            self.change = max(self.change, changes.number)
            if not self._first.done():
                self._first.set_result(None)

        self._on_loop(arrive)

    def _recheck(self) -> None:
        """Damaged entries may have been repaired in place."""
        self._rechecked_at = time.monotonic()
        good = tuple(entry for entry in self._store.heads().entries if not entry.damaged)
        self._forget_damage(good)
        self._prepare(good)
        self._on_loop(lambda: self._deliver(good))

    def _forget_damage(self, good: Sequence[StoredRevision]) -> None:
        """What was repaired or has been replaced by a newer revision needs no more mention."""
        for entry in good:
            for change, damaged in list(self._damaged.items()):
                same = (entry.model, entry.name) == (damaged.model, damaged.name)
                if same and entry.revision >= damaged.revision:
                    del self._damaged[change]

    def _report(self) -> None:
        damaged = tuple((e.model, e.name, e.revision) for e in self._damaged.values())
        now = time.monotonic()
        changed = self._reported != (self.change, damaged)
        if now - self._reported_at < (REPORT_AGAIN_SECONDS if changed else REPORT_SECONDS):
            return
        self._reported_at = now
        report = WorkerReport(self._me.worker, self._me.replica, self._me.pid, self.change, damaged)
        try:
            self._store.report(report)
        except StoreUnavailable as error:
            if error.kind != "slow":  # somebody else writes just now
                self._write_trouble = error
            return
        self._reported = (self.change, damaged)
        self._write_trouble = None

    def _note_trouble(self, error: StoreUnavailable | None) -> None:
        before, self._read_trouble = self._read_trouble, error
        # what is away or slow may come by itself while we start
        if error is not None and error.kind not in ("away", "slow") and not self._first.done():
            self._on_loop(lambda: self._fail_first(error))
        if error is not None and (before is None or before.kind != error.kind):
            log.warning("%s; the priors served last stay in force", error)
        if error is None and before is not None:
            log.warning("the store of priors answers again")

    def _fail_first(self, error: StoreUnavailable) -> None:
        if not self._first.done():
            self._first.set_exception(error)

    def _on_loop(self, call: Callable[[], object]) -> None:
        """Run on the event loop and wait for it, so that a reading never overtakes the one before."""
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
