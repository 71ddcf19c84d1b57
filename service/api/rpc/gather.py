"""Gathers calls that arrive one at a time, so that those of concurrent clients are scored together.

gRPC for Python passes one call per turn to the event loop, and the batcher treats a turn without a
new row as the end of a burst. Calls therefore wait here until there are as many as last time, or
until no call has come for a moment.
"""

import asyncio
from collections.abc import Callable

IDLE_SECONDS = (0.003, 0.01)
"""Calls wait four times the usual gap between two calls for the next one, within these bounds."""
LONGEST_SECONDS = 0.05
"""The first call waits no longer than this, however many come after it."""
PROBE_EVERY = 16
"""Each so many groups a larger one is waited for, in case there are more clients than before."""
MAX_CALLS = 1024


class Gather:
    """Starts calls in groups. With one client at a time, no call waits but for the probes."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._expected = 1
        self._groups = 0
        self._probes = False
        self._timer: asyncio.TimerHandle | None = None
        self._until = self._newest = 0.0
        self._gap = IDLE_SECONDS[0]

    def add(self, start: Callable[[], None]) -> None:
        """Call `start` with its group, in this turn of the loop or soon. It must not raise."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._waiting:
            self._gap += 0.1 * (now - self._newest - self._gap)
        self._newest = now
        self._waiting.append(start)
        if len(self._waiting) >= self._expected:
            self._start(is_whole=True)
            return
        if self._timer is None:
            self._until = now + LONGEST_SECONDS
        else:
            self._timer.cancel()
        idle = min(max(4 * self._gap, IDLE_SECONDS[0]), IDLE_SECONDS[1])
        self._timer = loop.call_at(min(now + idle, self._until), self._start)

    def _start(self, *, is_whole: bool = False) -> None:
        """Start the group. A probe that was whole is followed by a larger one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._waiting = self._waiting, []
        self._groups += 1
        if is_whole:
            self._probes = self._probes or self._groups % PROBE_EVERY == 0
            if self._probes:
                self._expected = min(2 * self._expected, MAX_CALLS)
        else:
            least = len(group) if self._probes else self._expected * 7 // 8
            self._expected, self._probes = max(len(group), least), False
        for start in group:
            start()
