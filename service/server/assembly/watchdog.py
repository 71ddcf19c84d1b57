"""A thread that detects a hanging event loop or graph call. The loop itself could not."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from service.process import stderr
from service.process.exit_codes import HUNG

logger = logging.getLogger(__name__)

GRACE_SECONDS = 2.0
"""Seconds from a detected hang to the end of the process, so that a probe sees liveness fail."""
_LATE_SECONDS = 1.0


class Watchdog:
    """Ends the process when the loop, a graph call or pool work makes no progress for too long.

    Python cannot stop native code that hangs, so the process must end and be started again by a
    supervisor. The stacks of all threads are written to stderr first. If the watchdog itself did
    not run for a while, the whole process was stopped (SIGSTOP, a paused container, a migrated
    machine). Nothing else could make progress either, so `hang_seconds` starts again for all work.
    """

    def __init__(
        self,
        busy: Callable[[], Iterable[tuple[str, float | None]]],
        *,
        hang_seconds: float,
        lost: Callable[[], str | None] = lambda: None,
        end: Callable[[int], object] | None = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch; `start` begins.

        busy: yields the name of each kind of work, and the clock's time when it began (None: idle).
        lost: returns what is lost for good and needs a new process; None: nothing.
        end: called with the exit status; None leaves the process alone and turns liveness red.
        """
        self._busy, self._hang_seconds, self._end = busy, hang_seconds, end
        self._lost, self._clock = lost, clock
        self._beat = self._awake_since = self._seen = clock()
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.hung: str | None = None
        """What hangs or is lost, in words; None while nothing is. Liveness reports it."""

    def start(self) -> None:
        """Schedule a heartbeat on the running loop, and start the watching thread."""
        self._loop = asyncio.get_running_loop()
        self._seen = self._clock()
        self._tick()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> str | None:
        """Return a description of what hangs now, or None.

        If the watchdog itself was stopped since the last call, all times start again.
        """
        now = self._clock()
        late = now - self._seen - self._interval
        if late > min(_LATE_SECONDS, self._hang_seconds / 2):
            self._awake_since = now
        self._seen = now
        return self._what_hangs(now)

    def _tick(self) -> None:
        self._beat = self._clock()
        self._timer = self._loop.call_later(self._interval, self._tick)

    @property
    def _interval(self) -> float:
        return min(1.0, self._hang_seconds / 4)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            hung = self.look()
            if hung is None:
                if self.hung is not None:
                    logger.warning("working again after a hang: %s", self.hung)
                self.hung = None
                continue
            if self.hung is None:
                self._report(hung)
            self.hung = hung
            if self._end is not None and self._still_hangs():
                self._end(HUNG)
                return

    def _report(self, hung: str) -> None:
        ends = "" if self._end is None else f"; the process ends in {GRACE_SECONDS:g} s (status 70)"
        limit = "" if self._lost() else f" (--hang-seconds {self._hang_seconds:g})"
        logger.critical("%s%s%s", hung, limit, ends)
        stderr.put(stderr.stacks())  # by a thread: this one must end the process in any case

    def _still_hangs(self) -> bool:
        """Wait for the grace period in short steps. Returns whether something still hangs then."""
        for _ in range(max(1, round(GRACE_SECONDS / self._interval))):
            if self._stopped.wait(self._interval):
                return False
            if self.look() is None:
                return False
        return True

    def _what_hangs(self, now: float) -> str | None:
        lost = self._lost()
        if lost is not None:
            return lost
        idle = now - max(self._beat, self._awake_since)
        stands = f"the event loop has made no progress for {idle:.1f} s"
        if idle > self._hang_seconds + self._interval:
            return stands
        for name, since in self._busy():
            if since is None:
                continue
            taken = now - max(since, self._awake_since)
            if taken > self._hang_seconds:
                # Work that runs on the loop blocks it too; then report the loop as what hangs.
                return stands if idle > self._hang_seconds else f"{name} has run for {taken:.1f} s"
        return None
