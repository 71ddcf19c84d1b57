"""Measures how long the event loop is held: a debugging aid (`--measure-loop-turns`)."""

import asyncio
import time
from collections.abc import Iterator

from service.observe.run_folder import Gauge

TICK_SECONDS = 0.002


class LoopTurns:
    """Keeps the longest turn of the running loop: the time in which it served nobody else.

    A tick that comes late shows a held loop. Time in which the machine ran other processes is left
    out: a turn counts no more than the processor time that this process has used meanwhile.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._due = self._used = 0.0

    def start(self) -> None:
        """Measure from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._plan()

    def gauges(self) -> Iterator[Gauge]:
        """The longest turn since the start."""
        yield "priordial_loop_turn_seconds", {}, self.longest_seconds

    def _plan(self) -> None:
        self._due = time.monotonic() + TICK_SECONDS
        self._used = time.process_time()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = time.monotonic() - self._due
        used = time.process_time() - self._used
        self.longest_seconds = max(self.longest_seconds, min(late, used))
        self._plan()
