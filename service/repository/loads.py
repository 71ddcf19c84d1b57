"""Loads of model versions, each on a thread that is written off if the load works for too long."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from service.threads import Job, Threads, current_job

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, int]
"""A model's name and a version."""

AT_ONCE = (os.cpu_count() or 1) + 4
"""Loads that run at the same time; part of each waits for the disk or for another process."""
_LATE_SECONDS = 1.0


class LoadHangs(RuntimeError):
    """A load that exceeded its time. Its thread cannot be ended and goes on."""


class Turn:
    """A lock for the measuring part of loads, used in a `with` statement.

    Time spent waiting for it does not count towards a load's time limit. A load that is abandoned
    lets the next one in even if it never comes back.
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
        """Let the next one in, if it is this holder's turn."""
        with self._changed:
            if self._holder is holder:
                self._holder = None
                self._changed.notify_all()


_THREAD = threading.local()
"""`load`: the one that the thread is working on."""


class Load(Generic[T]):
    """One load. Several callers may wait for `result`, so none may cancel it."""

    def __init__(self, what: str, work: Callable[[], T]) -> None:
        self.what, self._work = what, work
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result.add_done_callback(_mark_retrieved)
        self.hangs = False
        """It exceeded its time, and its thread still runs."""
        self.left = False
        """Nobody waits for it any more."""
        self.turn: Turn | None = None
        self.job: Job[T] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def run(self) -> T:
        """The thread's part."""
        _THREAD.load = self
        try:
            return self._work()
        finally:
            del _THREAD.load

    def leave(self) -> None:
        """Nobody waits for it any more: if it has a turn, the next load gets it."""
        self.left = True
        if self.turn is not None:
            self.turn.pass_on(self)


class Loads(Generic[T]):
    """The loads of one process, at most AT_ONCE at a time. Used from the event loop."""

    def __init__(self, *, seconds: float) -> None:
        """A load may work for `seconds`; time in the queue or for a `Turn` does not count."""
        self._seconds = seconds
        self._known: dict[Key, Load[T]] = {}
        self._threads = Threads("load", count=AT_ONCE)

    def begin(self, key: Key, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of a load, which is joined if it runs already.

        Raises LoadHangs if an earlier load of the version hangs.
        """
        load = self._known.get(key)
        if load is None:
            load = self._known[key] = Load("{} version {}".format(*key), work)
            load.job = self._threads.submit(load.run, ended=partial(self._ended, key, load))
            self._watch(load, load.job, self._seconds)
        elif load.hangs:
            raise LoadHangs(
                "an earlier load of this version hangs: it can be loaded again once that load ends "
                "or the process is restarted"
            )
        load.left = False
        return load.result

    def leave(self, key: Key) -> None:
        """Whoever began or joined the load no longer waits for it."""
        if key in self._known:
            self._known[key].leave()

    def hanging(self) -> list[str]:
        """The loads that exceeded their time and still run."""
        return [each.what for each in self._known.values() if each.hangs]

    def close(self) -> None:
        """Begin no more loads, and let idle threads end."""
        self._threads.close(drop=True)

    def _watch(self, load: Load[T], job: Job[T], seconds: float, due: float | None = None) -> None:
        """Look after the load until it ends: has it worked for `seconds`?

        `due`: the loop's time for which this call was planned. When it comes late, the whole
        process was stopped (SIGSTOP, a paused container), and the load gets its time anew.
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
            "its thread goes on and ends only with the process. It is at:\n%s",
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
                "the load of %s, which had timed out, has ended: load it again", load.what
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
    """Keep asyncio from logging the error of a load that nobody waits for."""
    if not result.cancelled():
        result.exception()
