"""Follows the store of priors, in a thread of its own: new entries, and whether it answers."""

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
"""Time without an answer to the poll after which a store counts as slow."""
REPORT_SECONDS = 5.0
REPORT_AGAIN_SECONDS = 1.0
RECHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Changes:
    """The entries after some change, damaged ones included, and the number of the last change."""

    number: int
    entries: tuple[StoredRevision, ...]


@dataclass(frozen=True)
class WorkerReport:
    """A worker process: it serves all entries up to `change`, except the `damaged` ones."""

    worker: str
    replica: str
    pid: int
    change: int
    damaged: tuple[tuple[str, str, int], ...] = ()
    seen_at: datetime | None = None


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

    def wait(self, seconds: float, woken: threading.Event) -> None:
        """Return when something may have changed, when woken, or after `seconds`."""

    def close(self) -> None:
        """Let connections go."""


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
    ) -> None:
        """New entries go to `prepare` in the thread, then to `deliver` on the event loop.

        worker: who this process is to others. poll_seconds: pause between two polls.
        """
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
        """Number of the last change that was delivered; -1 before the first reading."""

    async def start(self, *, seconds: float) -> StoreUnavailable | None:
        """Begin to follow. Returns the trouble if the first reading fails within `seconds`."""
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
        """Let the thread end. It may hang in the store, so this waits for at most `seconds`."""
        self._stopping = True
        self._woken.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def wake(self) -> None:
        """Poll the store now."""
        self._woken.set()

    def write_failed(self, error: StoreUnavailable | None) -> None:
        """Note the outcome of a write: its trouble, None if it succeeded."""
        self._write_trouble = error

    @property
    def state(self) -> StoreState:
        """The state of the store now."""
        faults = tuple(
            f"revision {entry.revision} of prior '{entry.name}' of model '{entry.model}' is damaged"
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
                log.exception("following the store of priors failed; trying again")
                self._note_trouble(StoreUnavailable("away", "an unexpected failure; see the log"))
                self._woken.wait(1.0)
            else:
                self._note_trouble(None)
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
