"""Loads of model versions: each in a thread that is given up when the load works for longer than it may."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, int]
"""A model's name and a version."""

AT_ONCE = (os.cpu_count() or 1) + 4
"""Loads that work at the same time; a part of each waits for the disk or for another process."""


class LoadHangs(RuntimeError):
    """A load that works for too long: nobody waits for it any more, and its thread cannot be ended."""


class _Thread(threading.Thread):
    """Runs loads. It stays when it has none: the memory of threads that end comes back less completely."""

    def __init__(self) -> None:
        super().__init__(name="load", daemon=True)
        self.inbox: SimpleQueue[Load[Any] | None] = SimpleQueue()
        self.load: Load[Any] | None = None
        self.start()

    def run(self) -> None:
        while (load := self.inbox.get()) is not None:
            self.load = load
            load.run()
            self.load = None
            del load  # an idle thread keeps no model alive


def are_running() -> bool:
    """Whether any load of this process is still at work."""
    return any(
        isinstance(each, _Thread) and each.load is not None for each in threading.enumerate()
    )


class Turn:
    """One load at a time, in a `with` statement. Those that wait lose none of their time; nobody waits for one that is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object = None

    def __enter__(self) -> None:
        thread = threading.current_thread()
        load = thread.load if isinstance(thread, _Thread) else None
        if load is not None:
            load.turn, load.working_since = self, None
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            if load is None or not load.left:
                self._holder = load or thread
            else:
                self._changed.notify_all()
        if load is not None:
            load.working_since = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        thread = threading.current_thread()
        self.pass_on((thread.load if isinstance(thread, _Thread) else None) or thread)

    def pass_on(self, holder: object) -> None:
        """Let the next one in, if it is this one's turn."""
        with self._changed:
            if self._holder is holder:
                self._holder = None
                self._changed.notify_all()


class Load(Generic[T]):
    """One load. On the event loop, but for `run`; `result` is not to be cancelled, for others may join."""

    def __init__(self, what: str, work: Callable[[], T], *, seconds: float) -> None:
        self.what, self._work, self._seconds = what, work, seconds
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.result.add_done_callback(_seen)
        self.hangs = self.left = False
        """Whether it was given up; whether nobody waits for it."""
        self.working_since: float | None = None
        """time.monotonic() when it began, or had its turn; None while it waits for either."""
        self.turn: Turn | None = None

    def begin(
        self, thread: _Thread, *, given_up: Callable[[], object], ended: Callable[[], object]
    ) -> None:
        """Run in a thread; hear when it is given up, and when the thread is free again, be it after that."""
        self._thread, self._given_up, self._has_ended = thread, given_up, ended
        self.working_since = time.monotonic()
        self._timer = self._loop.call_later(self._seconds, self._look)
        thread.inbox.put(self)

    def run(self) -> None:
        """The thread's part."""
        outcome: Callable[[], object]
        try:
            outcome = partial(self.result.set_result, self._work())
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            outcome = partial(self.result.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._ended, outcome)

    def _ended(self, outcome: Callable[[], object]) -> None:
        self._timer.cancel()
        self._has_ended()
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
            self.what, reason, self._stack(),
        )  # fmt: skip
        self.leave()
        self._given_up()
        self.result.set_exception(LoadHangs(reason))

    def leave(self) -> None:
        """Nobody waits for it any more, so that no other need wait for its turn to end."""
        self.left = True
        if self.turn is not None:
            self.turn.pass_on(self)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - the public way prints to a file
        return "".join(traceback.format_stack(frame)) if frame is not None else ""


class Loads(Generic[T]):
    """The loads of one process, some at once and the others in line. Used from the event loop."""

    def __init__(self, *, seconds: float) -> None:
        """Seconds is how long a load may work: as long for opening as, after that, for warming up."""
        self._seconds = seconds
        self._known: dict[Key, Load[T]] = {}
        self._in_line: deque[tuple[Key, Load[T]]] = deque()
        self._idle: list[_Thread] = []
        self._working = 0
        """Without those that hang."""
        self._closed = False

    def begin(self, key: Key, work: Callable[[], T]) -> asyncio.Future[T]:
        """What comes of a load, which is joined when there is one. Raises LoadHangs when it was given up and still runs."""
        load = self._known.get(key)
        if load is None:
            load = self._known[key] = Load(
                "{} version {}".format(*key), work, seconds=self._seconds
            )
            self._in_line.append((key, load))
            self._start()
        elif load.hangs:
            raise LoadHangs(
                "its load was given up and still hangs: it is not begun again before the process is started again"
            )
        load.left = False
        return load.result

    def leave(self, key: Key) -> None:
        """Whoever began the load, or joined it, does not wait any more."""
        if key in self._known:
            self._known[key].leave()

    def hanging(self) -> list[str]:
        """Those that were given up and still run."""
        return [each.what for each in self._known.values() if each.hangs]

    def close(self) -> None:
        """Begin no more, and let the threads end that have nothing to do."""
        self._closed = True
        self._in_line.clear()
        for thread in self._idle:
            thread.inbox.put(None)

    def _start(self) -> None:
        while self._in_line and self._working < AT_ONCE:
            key, load = self._in_line.popleft()
            thread = self._idle.pop() if self._idle else _Thread()
            self._working += 1
            load.begin(thread, given_up=self._make_room, ended=partial(self._ended, key, thread))

    def _make_room(self) -> None:
        self._working -= 1
        self._start()

    def _ended(self, key: Key, thread: _Thread) -> None:
        load = self._known.pop(key)
        if self._closed:
            thread.inbox.put(None)
        else:
            self._idle.append(thread)
        if not load.hangs:
            self._make_room()


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
