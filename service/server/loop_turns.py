"""Measures how long one turn holds the event loop: a debugging aid (`--measure-loop-turns`)."""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from service.observe.run_folder import Gauge

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.002
LONG_SECONDS = 0.05
"""A longer turn is logged."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class LoopTurns:
    """Keeps the longest turn of the running event loop, in which it served no other request.

    A turn is noticed because a periodic tick comes late. Time in which the loop's thread was ready
    but the machine ran something else is subtracted. A turn never counts for more than the
    processor time that this process used during it.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._due = self._used = self._waited = 0.0
        self._schedstat: int | None = None
        """The file descriptor of the loop's thread; None where the system does not say."""

    def start(self, *, delay_seconds: float = 0.5) -> None:
        """Measure on the running loop, from `delay_seconds` after now on."""
        self._loop = asyncio.get_running_loop()
        if _SCHEDSTAT.exists():
            self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY)
            weakref.finalize(self, os.close, self._schedstat)
        self._loop.call_later(delay_seconds, self._plan)

    def gauges(self) -> Iterator[Gauge]:
        """The longest turn since the start, as a gauge."""
        yield "priordial_loop_turn_seconds", {}, self.longest_seconds

    def _plan(self) -> None:
        self._due = time.monotonic() + TICK_SECONDS
        self._used, self._waited = time.process_time(), self._waited_for_processor()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = time.monotonic() - self._due
        late -= self._waited_for_processor() - self._waited
        turn = min(late, time.process_time() - self._used)
        self.longest_seconds = max(self.longest_seconds, turn)
        if turn > LONG_SECONDS:
            logger.warning("the event loop was held for %.0f ms", 1e3 * turn)
        self._plan()

    def _waited_for_processor(self) -> float:
        """Seconds in which the loop's thread was ready but did not run, as far as is known.

        In one call: after each, the loop may have to wait for the interpreter, and that would count
        as part of the turn.
        """
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9
