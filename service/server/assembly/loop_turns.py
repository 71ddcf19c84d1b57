"""Measures how long one turn blocks the event loop: a debugging aid (`--measure-loop-turns`)."""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from service.observe.run_folder import Gauge

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.002
LONG_SECONDS = 0.05
"""Turns that take longer than this many seconds are logged."""
LOOK_SECONDS = 0.02
"""The sampling thread looks this often whether a turn has begun to be long."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_TASKS = Path("/proc/self/task")
BUSY_SECONDS = 0.005
"""Another thread is reported if it used more processor time than this around a long turn."""


class LoopTurns:
    """Records the longest turn of the running event loop, during which no other request is served.

    A long turn makes a periodic tick late; the delay is the turn's length. Time during which the
    loop's thread could run but the machine ran something else is subtracted. A turn never counts
    for more than the processor time that this process used during it.

    The processor time of the loop's own thread is kept beside it. Where that is much less than the
    turn, the loop waited for the interpreter lock, which another thread held. A thread takes the
    stacks during a long turn. If one call holds the lock throughout, they are taken right after it.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self.longest_work_seconds = 0.0
        """The most processor time that the loop's thread used in one turn."""
        self._due = self._used = self._worked = self._waited = 0.0
        self._schedstat: int | None = None
        """File descriptor of the loop thread's schedstat file; None if the system has none."""
        self._stacks = ""
        """What the threads did during the present turn; empty until it is long."""
        self._before: dict[int, float] = {}
        """Seconds of processor time by thread, shortly before the present turn."""
        self._collecting_since = self._collected = 0.0
        """Seconds of processor time for which garbage was collected since the turn began."""
        self._stopped = threading.Event()

    def start(self, *, delay_seconds: float = 0.5) -> None:
        """Start measuring the running loop after `delay_seconds`."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        if _SCHEDSTAT.exists():
            self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY)
            weakref.finalize(self, os.close, self._schedstat)
        self._loop.call_later(delay_seconds, self._begin)

    def stop(self) -> None:
        """End the measuring and the sampling thread."""
        self._stopped.set()
        if self._note_collection in gc.callbacks:
            gc.callbacks.remove(self._note_collection)

    def gauges(self) -> Iterator[Gauge]:
        """Yield the longest turn since the start, and the longest work in one, in seconds."""
        yield "priordial_loop_turn_seconds", {}, self.longest_seconds
        yield "priordial_loop_work_seconds", {}, self.longest_work_seconds

    def _begin(self) -> None:
        if self._stopped.is_set():
            return
        self._plan()
        gc.callbacks.append(self._note_collection)
        threading.Thread(target=self._sample, name="loop turns", daemon=True).start()

    def _plan(self) -> None:
        self._stacks, self._collected = "", 0.0
        self._due = time.monotonic() + TICK_SECONDS
        self._used, self._waited = time.process_time(), self._waited_for_processor()
        self._worked = time.thread_time()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        if self._stopped.is_set():
            return
        worked = time.thread_time() - self._worked
        late = time.monotonic() - self._due
        late -= self._waited_for_processor() - self._waited
        turn = min(late, time.process_time() - self._used)
        worked = max(0.0, min(worked, turn))
        self.longest_seconds = max(self.longest_seconds, turn)
        self.longest_work_seconds = max(self.longest_work_seconds, worked)
        if turn > LONG_SECONDS:
            stacks = self._stacks or self._stacks_now()
            logger.warning(
                "the event loop was held for %.0f ms, and its own thread worked for %.0f ms of "
                "them (garbage was collected for %.0f ms), while requests waited; if this recurs, "
                "report what was requested then%s",
                1e3 * turn,
                1e3 * worked,
                1e3 * self._collected,
                stacks and f"; seen: {stacks}",
            )
        self._plan()

    def _note_collection(self, phase: str, _info: dict[str, int]) -> None:
        """Add the time of a collection, which no other thread can interrupt."""
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting_since

    def _sample(self) -> None:
        """Take the stacks of each turn that is long, once, until `stop`."""
        while not self._stopped.wait(LOOK_SECONDS):
            due = self._due
            if time.monotonic() - due <= LONG_SECONDS:
                self._before = _processor_times()
            elif not self._stacks:
                stacks = self._stacks_now()
                if self._due == due:  # still the same turn
                    self._stacks = stacks

    def _stacks_now(self) -> str:
        """The innermost functions of the loop's thread, and of each other thread that has worked
        since shortly before the turn, with its milliseconds.

        The thread that calls this is left out.
        """
        now, before = _processor_times(), self._before
        frames = sys._current_frames()  # noqa: SLF001 - documented
        frames.pop(threading.get_ident())  # a cycle with it would keep what all others hold
        seen = []
        for thread in threading.enumerate():
            frame, native = frames.get(thread.ident or 0), thread.native_id or 0
            if frame is None:
                continue
            is_loop = thread.ident == self._loop_thread
            worked = now.get(native, 0.0) - before.get(native, 0.0)
            if is_loop or worked > BUSY_SECONDS:
                name = "the loop" if is_loop else thread.name
                seen.append(f"{name} worked for {1e3 * worked:.0f} ms, in {_places(frame)}")
        return ", ".join(seen)

    def _waited_for_processor(self) -> float:
        """Seconds for which the loop's thread could run but did not; 0 if that is unknown.

        The file is read in one call: after each call the loop's thread may have to wait for the
        interpreter, and that wait would count as part of the turn.
        """
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9


def _processor_times() -> dict[int, float]:
    """Seconds of processor time of each Python thread, by its native id; {} off Linux."""
    found = {}
    for thread in threading.enumerate():
        try:
            text = (_TASKS / str(thread.native_id) / "schedstat").read_bytes()
        except OSError:  # it has just ended, or the system has no such file
            continue
        found[thread.native_id or 0] = int(text.split()[0]) / 1e9
    return found


def _places(frame: FrameType, *, count: int = 4) -> str:
    """The innermost functions of a stack, as `file:line name`, the innermost first."""
    places: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(places) < count:
        file = "/".join(Path(at.f_code.co_filename).parts[-2:])
        places.append(f"{file}:{at.f_lineno} {at.f_code.co_name}")
        at = at.f_back
    return " < ".join(places)
