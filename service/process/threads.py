"""A bounded set of daemon threads for blocking calls, whose callers can stop waiting.

Python cannot end a thread. A call that hangs keeps its thread, so `Threads.write_off` starts
another one in its place, and daemon threads let the process exit while a call still hangs.
"""

import asyncio
import contextlib
import errno
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from service.process.allowance import memory_limit, memory_limits

T = TypeVar("T")

_RAISE_LIMIT = (
    "raise its limit of processes and threads (docker run --pids-limit, podPidsLimit of the "
    "kubelet, ulimit -u)"
)
_LARGE_BYTES = 64 * 2**20
"""A limit on memory is named as the reason of a MemoryError where it leaves less than this."""
_NO_THREAD = "can't start new thread"
"""The message of Python's RuntimeError where the system allows no more threads."""


def is_no_thread(error: BaseException) -> bool:
    """Whether an error says that the system allows no more threads."""
    return isinstance(error, RuntimeError) and str(error) == _NO_THREAD


def is_no_process(error: BaseException) -> bool:
    """Whether an error of starting a process says that the system allows no more."""
    return isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM)


def raise_limit() -> str:
    """Return what to do if the system lets this service start no more threads or processes.

    A thread also takes memory for its stack, and its error is the same where that is refused.
    """
    full = memory_limit()
    if full is not None:
        return full
    limits = memory_limits()  # by now, memory may have been freed
    return f"{_RAISE_LIMIT}, or of memory ({limits})" if limits else _RAISE_LIMIT


def failure_text(error: BaseException) -> str:
    """Describe an error of work that this process did; for a lack of threads or memory, also what
    to do.
    """
    if is_no_thread(error) or is_no_process(error):
        return f"{error}; {raise_limit()}"
    if isinstance(error, MemoryError):
        advice = memory_limit(_LARGE_BYTES) or "give the service more memory, or smaller models"
        return f"no memory is left for it; {advice}"
    return str(error) or type(error).__name__


class TooManyWait(RuntimeError):
    """The queue of calls is full."""


class GivenUp(TimeoutError):
    """The caller stopped waiting. `started`: the call had begun and may still take effect."""

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class Job(Generic[T]):
    """One call. `answer` is its result; everything else may be read from any thread."""

    def __init__(
        self, call: Callable[[], T], *, size: int, ended: Callable[[], object] | None
    ) -> None:
        """`size` counts towards the queue's limit in bytes; `ended` is called on the event loop."""
        self._call: Callable[[], T] | None = call
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._worker: Worker | None = None
        self.size = size
        self.answer: asyncio.Future[T] = self._loop.create_future()
        self.answer.add_done_callback(_mark_retrieved)
        self.abandoned = False
        """Nobody waits for the answer any more; if the call has not begun, it never will."""
        self.working_since: float | None = None
        """`time.monotonic()` when the call began or resumed; None while it is not running."""

    @property
    def started(self) -> bool:
        """Whether a thread has begun the call."""
        return self._worker is not None

    def pause(self) -> None:
        """Stop the clock: the call waits for another one. From the call's own thread."""
        self.working_since = None

    def resume(self) -> None:
        """Restart the clock from zero. From the call's own thread."""
        self.working_since = time.monotonic()

    def stack(self) -> str:
        """The stack of the call's thread, for the log; empty before it begins."""
        ident = None if self._worker is None else self._worker.ident
        frame = sys._current_frames().get(ident or 0)  # noqa: SLF001 - documented; faulthandler writes only to files
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def _run(self) -> Callable[[], None]:
        """Make the call, in a thread. Returns a function that sets the answer, for the
        event loop.
        """
        call, self._call = self._call, None  # so that an idle thread keeps nothing in memory
        assert call is not None
        try:
            return partial(self._settle, call())
        except BaseException as error:  # noqa: BLE001 - the caller gets whatever was raised
            return partial(self._settle, None, error)

    def _deliver(self, settle: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has closed: no caller waits any more
            return

    def _settle(self, result: Any, error: BaseException | None = None) -> None:
        if not self.answer.done():
            if error is None:
                self.answer.set_result(result)
            else:
                self.answer.set_exception(error)
        if self._ended is not None:
            self._ended()


class Worker(threading.Thread):
    """A thread that runs jobs."""

    def __init__(self, name: str, run: Callable[["Worker"], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._run_jobs = run
        self.job: Job[Any] | None = None
        self.written_off = False
        self.start()

    def run(self) -> None:
        """Run jobs until there are none and the threads are closed."""
        self._run_jobs(self)


class Threads:
    """Runs calls in at most `count` threads, first come, first served. Used from one event loop."""

    def __init__(
        self,
        name: str,
        *,
        count: int,
        max_calls: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """`max_calls` bounds the calls that wait, `max_bytes` the sizes of all that wait or run.

        Threads start when they are needed and stay: memory that ended threads used is returned less
        completely. One call larger than `max_bytes` is accepted while nothing else waits or runs.
        """
        self._name, self._count = name, count
        self._max_calls, self._max_bytes = max_calls, max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[Job[Any]] = deque()
        self._workers: set[Worker] = set()
        self._working = 0
        self._closed = False
        self.bytes = 0
        """Sizes of the calls that wait or run, abandoned ones included."""

    @property
    def busy_since(self) -> float | None:
        """`time.monotonic()` when the longest of the running calls began; None while none runs."""
        jobs = [worker.job for worker in tuple(self._workers)]
        begun = [job.working_since for job in jobs if job is not None]
        return min((since for since in begun if since is not None), default=None)

    def submit(
        self,
        call: Callable[[], T],
        *,
        size: int = 0,
        ended: Callable[[], object] | None = None,
    ) -> Job[T]:
        """Queue a call. `ended` runs on the event loop when the call has returned, in any case.

        Raises TooManyWait.
        """
        job = Job(call, size=size, ended=ended)
        with self._changed:
            if self._max_bytes is not None and self.bytes and self.bytes + size > self._max_bytes:
                raise TooManyWait(
                    f"{self.bytes} bytes are queued or in progress of at most {self._max_bytes}; "
                    "try again later"
                )
            if self._max_calls is not None and len(self._waiting) >= self._max_calls:
                raise TooManyWait(
                    f"{len(self._waiting)} calls are waiting, the most allowed; try again later"
                )
            self.bytes += size
            self._waiting.append(job)
            try:
                self._staff()
            except RuntimeError as error:  # the machine has no thread left
                if not self._workers:
                    self._waiting.pop()
                    self.bytes -= size
                    raise TooManyWait(
                        f"no thread can be started for it: {error}; {raise_limit()}"
                    ) from None
        return job

    def prepare(self) -> None:
        """Start one thread now, so that calls are served although no more may be started later.

        Raises RuntimeError if none can be started.
        """
        with self._changed:
            if not self._workers:
                self._workers.add(Worker(self._name, self._work))

    async def run(self, call: Callable[[], T], *, seconds: float, size: int = 0) -> T:
        """The result of `call()`, or what it raises.

        Raises GivenUp after `seconds`, and TooManyWait.
        """
        job = self.submit(call, size=size)
        try:
            await asyncio.wait({job.answer}, timeout=min(seconds, threading.TIMEOUT_MAX))
        finally:
            if not job.answer.done():
                self.abandon(job)
        if not job.answer.done():
            raise GivenUp(f"no answer within {seconds:g} s", started=job.started)
        return job.answer.result()

    def abandon(self, job: Job[Any]) -> None:
        """Note that no caller waits for the job; it is dropped unless it has begun."""
        with self._changed:
            job.abandoned = True
            if not job.started and job in self._waiting:
                self._waiting.remove(job)
                self.bytes -= job.size

    def write_off(self, job: Job[Any]) -> None:
        """Count the thread of a job that hangs no more, so that another one may start."""
        with self._changed:
            worker = job._worker  # noqa: SLF001 - the two classes are one idea
            if worker is not None and worker.job is job and not worker.written_off:
                worker.written_off = True
                self._workers.discard(worker)
                self._working -= 1
                with contextlib.suppress(RuntimeError):  # the next call tries again
                    self._staff()

    def close(self, *, drop: bool = False, wait_seconds: float = 0.0) -> None:
        """Accept no more calls. Calls that wait still run, or are cancelled if `drop` is set.

        Blocks for at most `wait_seconds` until the running calls have returned.
        """
        with self._changed:
            self._closed = True
            while drop and self._waiting:
                job = self._waiting.popleft()
                self.bytes -= job.size
                job.answer.cancel()
            self._changed.notify_all()
        until = time.monotonic() + wait_seconds
        for worker in tuple(self._workers):
            worker.join(max(0.0, until - time.monotonic()))

    def _staff(self) -> None:
        """Start a thread for each waiting call, up to `count`. Call it with the lock held."""
        idle = len(self._workers) - self._working
        if len(self._waiting) <= idle:
            self._changed.notify()
        elif len(self._workers) < self._count:
            self._workers.add(Worker(self._name, self._work))

    def _work(self, worker: Worker) -> None:
        while (job := self._next(worker)) is not None:
            settle = job._run()  # noqa: SLF001
            self._finished(worker, job)
            job._deliver(settle)  # noqa: SLF001
            del job, settle

    def _next(self, worker: Worker) -> Job[Any] | None:
        with self._changed:
            while not worker.written_off:
                if self._waiting:
                    job = self._waiting.popleft()
                    job._worker, worker.job = worker, job  # noqa: SLF001
                    self._working += 1
                    job.resume()
                    return job
                if self._closed:
                    break
                self._changed.wait()
            self._workers.discard(worker)
            return None

    def _finished(self, worker: Worker, job: Job[Any]) -> None:
        with self._changed:
            worker.job = None
            job.pause()
            self.bytes -= job.size
            if not worker.written_off:
                self._working -= 1


def current_job() -> Job[Any] | None:
    """The job whose call the current thread makes; None in any other thread."""
    thread = threading.current_thread()
    return thread.job if isinstance(thread, Worker) else None


def any_running() -> bool:
    """Whether a call of any `Threads` of this process has not returned yet."""
    threads = threading.enumerate()
    return any(isinstance(each, Worker) and each.job is not None for each in threads)


def _mark_retrieved(answer: "asyncio.Future[T]") -> None:
    """Keep asyncio from logging the error of an answer that no caller reads."""
    if not answer.cancelled():
        answer.exception()
