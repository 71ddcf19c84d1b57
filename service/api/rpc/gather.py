"""Gathers calls that arrive one at a time, so that calls of concurrent clients share a batch.

gRPC for Python passes one call per turn to the event loop, and the batcher treats a turn without a
new row as the end of a burst. Calls therefore wait here until there are as many as in the last
group, or until no call has arrived for a moment.
"""

import asyncio
from collections.abc import Callable

IDLE_SECONDS = (0.003, 0.01)
"""A group waits for the next call four times the usual gap between calls, within these limits."""
LONGEST_SECONDS = 0.05
"""The longest time that the first call of a group waits, however many follow."""
PROBE_EVERY = 16
"""Every this many groups, wait for a larger one (a probe), since there may be more clients than
before.
"""
MAX_CALLS = 1024


class Gather:
    """Starts calls in groups. With a single client, only calls that probe for more have to wait."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._expected = 1
        self._groups = 0
        self._probes = False
        self._timer: asyncio.TimerHandle | None = None
        self._until = self._newest = 0.0
        self._gap = IDLE_SECONDS[0]

    def add(self, start: Callable[[], None]) -> None:
        """Call `start` together with its group, at once or within 50 ms. It must not raise."""
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
        """Start the group. If a probe reached its size, the next probe is larger still."""
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
