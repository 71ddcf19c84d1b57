"""Runs loads of model versions on threads, and abandons a thread whose load exceeds its
time limit.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from service.process.threads import Job, Threads, current_job

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, int]
"""A model's name and its version."""

AT_ONCE = (os.cpu_count() or 1) + 4
"""The most loads that run at once. A load spends part of its time waiting for disk or a process."""
_LATE_SECONDS = 1.0


class LoadHangs(RuntimeError):
    """A load exceeded its time limit. Its thread cannot be stopped and keeps running."""


class Turn:
    """A lock for the measuring part of loads, used in a `with` statement.

    Time spent waiting for it does not count towards a load's time limit. An abandoned load releases
    the lock, even if its thread never returns.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object = None

    def __enter__(self) -> None:
        job, load = current_job(), getattr(_THREAD, "load", None)
        if job is not None:
            job.pause()
        if load is not None:
            load.turn = self
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            if load is None or not load.left:
                self._holder = load or threading.current_thread()
            else:
                self._changed.notify_all()
        if job is not None:
            job.resume()

    def __exit__(self, *_error: object) -> None:
        self.pass_on(getattr(_THREAD, "load", None) or threading.current_thread())

    def pass_on(self, holder: object) -> None:
        """Release the lock if `holder` holds it."""
        with self._changed:
            if self._holder is holder:
                self._holder = None
                self._changed.notify_all()


_THREAD = threading.local()
"""`load`: the load that this thread is running."""


class Load(Generic[T]):
    """One load. Several callers may wait for its `result`, so none of them may cancel it."""

    def __init__(self, what: str, work: Callable[[], T]) -> None:
        self.what, self._work = what, work
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result.add_done_callback(_mark_retrieved)
        self.hangs = False
        """The load exceeded its time limit, and its thread still runs."""
        self.left = False
        """No caller waits for the load any more."""
        self.turn: Turn | None = None
        self.job: Job[T] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def run(self) -> T:
        """Do the work. Called in the load's thread."""
        _THREAD.load = self
        try:
            return self._work()
        finally:
            del _THREAD.load

    def leave(self) -> None:
        """Note that no caller waits any more, and release the lock for measuring if the load holds
        it.
        """
        self.left = True
        if self.turn is not None:
            self.turn.pass_on(self)


class Loads(Generic[T]):
    """The loads of one process, at most AT_ONCE at a time. Used from the event loop."""

    def __init__(self, *, seconds: float) -> None:
        """Limit each load to `seconds` of work; waiting for a thread or a `Turn` does not count."""
        self._seconds = seconds
        self._known: dict[Key, Load[T]] = {}
        self._threads = Threads("load", count=AT_ONCE)

    def begin(self, key: Key, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a load, or join the one that runs already, and return the future of its result.

        Raises LoadHangs if an earlier load of the version hangs, and TooManyWait where no thread
        can be started for it.
        """
        load = self._known.get(key)
        if load is None:
            load = Load("{} version {}".format(*key), work)
            load.job = self._threads.submit(load.run, ended=partial(self._ended, key, load))
            self._known[key] = load
            self._watch(load, load.job, self._seconds)
        elif load.hangs:
            raise LoadHangs(
                "an earlier load of this version hangs: load it again once that load has ended, "
                "or restart the process"
            )
        load.left = False
        return load.result

    def leave(self, key: Key) -> None:
        """Note that the caller of `begin` no longer waits for the load."""
        if key in self._known:
            self._known[key].leave()

    def hanging(self) -> list[str]:
        """The loads that exceeded their time limit and still run, as 'NAME version N'.

        For any thread.
        """
        known = list(self._known.values())  # in one step: loads begin and end meanwhile
        return [each.what for each in known if each.hangs]

    def close(self) -> None:
        """Start no further loads, and let idle threads end."""
        self._threads.close(drop=True)

    def _watch(self, load: Load[T], job: Job[T], seconds: float, due: float | None = None) -> None:
        """Abandon the load once it has worked for `seconds`; before that, plan the next check.

        due: the loop's time for which this call was planned. If the call comes late, the whole
        process was stopped (SIGSTOP, a paused container), and the load's time starts again.
        """
        loop = asyncio.get_running_loop()
        if due is not None and loop.time() - due > _LATE_SECONDS and job.working_since is not None:
            job.resume()
        since = job.working_since
        left = seconds if since is None else since + seconds - time.monotonic()
        if left <= 0:
            self._give_up(load, job, seconds)
            return
        due = loop.time() + left
        load.timer = loop.call_at(due, self._watch, load, job, seconds, due)

    def _give_up(self, load: Load[T], job: Job[T], seconds: float) -> None:
        load.hangs = True
        reason = f"its load timed out after {seconds:g} s (--load-seconds)"
        logger.error(
            "%s is not served: %s; "
            "its thread keeps running and may end only with the process. Its stack:\n%s",
            load.what, reason, job.stack(),
        )  # fmt: skip
        load.leave()
        self._threads.write_off(job)
        load.result.set_exception(LoadHangs(reason))

    def _ended(self, key: Key, load: Load[T]) -> None:
        del self._known[key]
        if load.timer is not None:
            load.timer.cancel()
        if load.hangs:
            logger.warning(
                "the load of %s, which had timed out, has ended: it can be loaded again now",
                load.what,
            )
            return
        assert load.job is not None
        error = load.job.answer.exception()
        if error is None:
            load.result.set_result(load.job.answer.result())
        else:
            load.result.set_exception(error)


async def first_of(*futures: "asyncio.Future[Any]") -> None:
    """Wait until one of the futures is done; none is cancelled."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def tell(future: "asyncio.Future[T]", value: T) -> None:
    """Set the future's result unless it has one."""
    if not future.done():
        future.set_result(value)


def _mark_retrieved(result: "asyncio.Future[T]") -> None:
    """Keep asyncio from logging the error of a load whose result no caller reads."""
    if not result.cancelled():
        result.exception()
