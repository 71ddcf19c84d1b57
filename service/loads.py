"""Loads of model versions: each in a thread of its own, which is given up when it works for longer than it may."""

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, int]
"""A model's name and a version."""


class LoadHangs(RuntimeError):
    """A load that works for too long: nobody waits for it any more, and its thread cannot be ended."""


class _Thread(threading.Thread):
    """The thread of a load."""


def are_running() -> bool:
    """Whether the thread of any load of this process is still at work."""
    return any(isinstance(each, _Thread) for each in threading.enumerate())


class Turn:
    """One load at a time, in a `with` statement. Those that wait lose none of their time; nobody waits for one that is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object = None

    def __enter__(self) -> None:
        load, thread = getattr(_OF_THREAD, "load", None), threading.current_thread()
        if load is not None:
            load.turn, load.working_since = self, None
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            if load is None or not load.left:
                self._holder = thread
            else:
                self._changed.notify_all()
        if load is not None:
            load.working_since = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self.pass_on(threading.current_thread())

    def pass_on(self, thread: threading.Thread) -> None:
        """Let the next one in, if it is this thread's turn."""
        with self._changed:
            if self._holder is thread:
                self._holder = None
                self._changed.notify_all()


class Load(Generic[T]):
    """One load. Made on the event loop, where `result` is awaited; not by cancelling it, for others may join."""

    def __init__(
        self, what: str, work: Callable[[], T], *, seconds: float, over: Callable[[], object]
    ) -> None:
        """over() is called when the thread has ended."""
        self.what, self._work, self._seconds, self._over = what, work, seconds, over
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.result.add_done_callback(_seen)
        self.hangs = False
        """Whether it was given up."""
        self.working_since: float | None = time.monotonic()
        """time.monotonic() when it began, or had its turn; None while it waits for that."""
        self.turn: Turn | None = None
        self.left = False
        """Whether nobody waits for it."""
        self._thread = _Thread(target=self._run, name=f"load-{what}", daemon=True)
        self._thread.start()
        self._timer = self._loop.call_later(seconds, self._look)

    def _run(self) -> None:
        _OF_THREAD.load = self
        outcome: Callable[[], object]
        try:
            outcome = partial(self.result.set_result, self._work())
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            outcome = partial(self.result.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._ended, outcome)

    def _ended(self, outcome: Callable[[], object]) -> None:
        self._timer.cancel()
        self._over()
        if self.hangs:
            logger.warning(
                "the load of %s, which was given up, has ended: load it again", self.what
            )
        else:
            outcome()

    def _look(self) -> None:
        now, since = time.monotonic(), self.working_since
        left = self._seconds if since is None else since + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self.hangs = True
        reason = (
            f"its load has made no end for {self._seconds:g} s (--load-seconds) and is given up"
        )
        logger.error(
            "model %s: %s; its thread goes on and cannot be ended but with the process:\n%s",
            self.what,
            reason,
            self._stack(),
        )
        self.leave()
        self.result.set_exception(LoadHangs(reason))

    def leave(self) -> None:
        """Nobody waits for it any more, so that no other need wait for its turn to end."""
        self.left = True
        if self.turn is not None:
            self.turn.pass_on(self._thread)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - the public way prints to a file
        return "".join(traceback.format_stack(frame)) if frame is not None else ""


class Loads(Generic[T]):
    """The loads that run. Used from the event loop."""

    def __init__(self, *, seconds: float) -> None:
        """Seconds is how long a load may work: as long for opening as, after that, for warming up."""
        self._seconds = seconds
        self._running: dict[Key, Load[T]] = {}

    def begin(self, key: Key, work: Callable[[], T]) -> asyncio.Future[T]:
        """What comes of a load, which is joined when it runs already. Raises LoadHangs when it was given up and still runs."""
        load = self._running.get(key)
        if load is None:
            load = self._running[key] = Load(
                "{} version {}".format(*key),
                work,
                seconds=self._seconds,
                over=partial(self._running.pop, key),
            )
        elif load.hangs:
            raise LoadHangs(
                "its load was given up and still hangs: it is not begun again before the process is started again"
            )
        load.left = False
        return load.result

    def leave(self, key: Key) -> None:
        """Whoever began the load, or joined it, does not wait any more."""
        if key in self._running:
            self._running[key].leave()

    def hanging(self) -> list[str]:
        """Those that were given up and still run."""
        return [each.what for each in self._running.values() if each.hangs]


async def first_of(*futures: "asyncio.Future[Any]") -> None:
    """Wait until one has a result; none is cancelled."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def tell(future: "asyncio.Future[T]", value: T) -> None:
    """Give it a result, unless it has one."""
    if not future.done():
        future.set_result(value)


def _seen(result: asyncio.Future[T]) -> None:
    """Nobody need wait for a load: asyncio complains of errors that were not looked at."""
    if not result.cancelled():
        result.exception()


_OF_THREAD = threading.local()
"""`load` is the load whose thread it is."""
