"""Measures how long one turn blocks the event loop: a debugging aid (`--measure-loop-turns`)."""

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
"""Turns that take longer than this many seconds are logged."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class LoopTurns:
    """Records the longest turn of the running event loop, during which no other request is served.

    A long turn makes a periodic tick late; the delay is the turn's length. Time during which the
    loop's thread could run but the machine ran something else is subtracted. A turn never counts
    for more than the processor time that this process used during it.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._due = self._used = self._waited = 0.0
        self._schedstat: int | None = None
        """File descriptor of the loop thread's schedstat file; None if the system has none."""

    def start(self, *, delay_seconds: float = 0.5) -> None:
        """Start measuring the running loop after `delay_seconds`."""
        self._loop = asyncio.get_running_loop()
        if _SCHEDSTAT.exists():
            self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY)
            weakref.finalize(self, os.close, self._schedstat)
        self._loop.call_later(delay_seconds, self._plan)

    def gauges(self) -> Iterator[Gauge]:
        """Yield the longest turn since the start, in seconds."""
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
            logger.warning(
                "the event loop was held for %.0f ms, and requests waited; if this recurs, report "
                "what was requested then",
                1e3 * turn,
            )
        self._plan()

    def _waited_for_processor(self) -> float:
        """Seconds for which the loop's thread could run but did not; 0 if that is unknown.

        The file is read in one call: after each call the loop's thread may have to wait for the
        interpreter, and that wait would count as part of the turn.
        """
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9
