"""A thread that sees what the event loop cannot see of itself: that it, or a graph call, hangs."""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

EXIT_HUNG = 70
_GRACE_SECONDS = 2.0


class Watchdog:
    """Logs the stacks and ends the process when the loop, a graph call or work in the pool makes no progress for hang_seconds.

    A session that hangs inside native code cannot be stopped from Python: the supervisor must restart the process.
    """

    def __init__(
        self,
        busy: Callable[[], Iterable[tuple[str, float | None]]],
        *,
        hang_seconds: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """busy() gives what may hang: its name, and time.monotonic() when its running work began, None while it is idle."""
        self._busy, self._hang_seconds, self._end = busy, hang_seconds, end
        self._beat = time.monotonic()
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.hung: str | None = None
        """What hangs; None while nothing does. Liveness reads it."""

    def start(self) -> None:
        """Beat on the running loop and watch from a thread."""
        self._loop = asyncio.get_running_loop()
        self._tick()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._interval, self._tick)

    @property
    def _interval(self) -> float:
        return min(1.0, self._hang_seconds / 4)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self.hung = self._what_hangs(time.monotonic())
            if self.hung is not None:
                logger.critical(
                    "%s; the process ends so that its supervisor starts it again", self.hung
                )
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                if not self._stopped.wait(
                    _GRACE_SECONDS
                ):  # long enough for a probe to see liveness red
                    self._end(EXIT_HUNG)
                return

    def _what_hangs(self, now: float) -> str | None:
        if now - self._beat > self._hang_seconds + self._interval:
            return f"the event loop has made no progress for {now - self._beat:.1f} s"
        for name, since in self._busy():
            if since is not None and now - since > self._hang_seconds:
                return f"{name} has run for {now - since:.1f} s"
        return None
