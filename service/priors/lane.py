"""A thread of its own for blocking calls, one after the other, whose callers do not wait longer than agreed."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class LaneStuck(TimeoutError):
    """The call was given up. `started` tells whether it may still take effect."""

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class _Job:
    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.answer: asyncio.Future[Any] = loop.create_future()
        self._lock = threading.Lock()
        self._started = False
        self._given_up = False

    def start(self) -> bool:
        """Whether somebody still waits; from now on the call may take effect."""
        with self._lock:
            self._started = not (self._given_up or self.answer.cancelled())
            return self._started

    def give_up(self) -> bool:
        """Whether the call had started; if it had not, it never will."""
        with self._lock:
            self._given_up = True
            return self._started


class Lane:
    """Runs calls in one daemon thread; a process can exit while a call hangs in it."""

    def __init__(self, name: str, *, max_waiting: int = 1000) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T], *, seconds: float) -> T:
        """The result of call(). Raises LaneStuck after `seconds`, and at once while an earlier call hangs."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > seconds:
            raise LaneStuck(f"an earlier call has not come back for {seconds:g} s", started=False)
        job = _Job(call, asyncio.get_running_loop())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise LaneStuck(f"{self._jobs.maxsize} calls are waiting", started=False) from None
        try:
            async with asyncio.timeout(seconds):
                await job.answer
        except TimeoutError:
            if job.answer.cancelled() or not job.answer.done():
                stuck = LaneStuck(f"no answer within {seconds:g} s", started=job.give_up())
                raise stuck from None
        result: T = job.answer.result()  # or what the call raised, a TimeoutError of its own too
        return result

    def close(self) -> None:
        """Let the thread end after the calls that it has."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.start():
                continue
            self._busy_since = time.monotonic()
            result, error = None, None
            try:
                result = job.call()
            except BaseException as raised:  # noqa: BLE001 - handed to the caller, whatever it is
                error = raised
            self._busy_since = None
            _deliver(job, result, error)


def _deliver(job: _Job, result: Any, error: BaseException | None) -> None:
    def settle() -> None:
        if job.answer.done():
            return
        if error is None:
            job.answer.set_result(result)
        else:
            job.answer.set_exception(error)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has closed; nobody waits any more
        return
