"""Lets Ctrl-C and SIGTERM stop training after the current step, with a checkpoint written."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, Self

from training.faults import Fault


class Interrupted(Fault):
    """A signal stopped the run; the message says how to continue it."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM.

    It is a subclass, since CPython treats a plain KeyboardInterrupt in a special way. Once one has
    passed through code that some library compiled from a string, CPython ends the process by
    SIGINT, whatever its exit status would be.
    """


_raised: list[int] = []
"""Signals for which Stopped was raised, and whose work has not ended yet."""


def stop(number: int, _frame: FrameType | None) -> None:
    """Handle a signal by raising Stopped."""
    _raised.append(number)
    raise Stopped


def raise_if_swallowed() -> None:
    """Raise Stopped again if a library has caught it and gone on, as some do while importing."""
    if _raised:
        raise Stopped


def forget_signals() -> None:
    """Forget the signals once the work that they were to stop has ended."""
    _raised.clear()


class StopSignal:
    """A context that notes the first SIGINT or SIGTERM in `requested`.

    A second SIGINT is handled as before the context.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, so Python leaves signals to the caller
                return self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(signal.Signals(number))
        if self.requested and number == signal.SIGINT and callable(before):
            before(number, frame)
        self.requested = True


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started within the `with` block, for as long as they
    live.

    The terminal sends it to all. A process that is still importing would print a traceback. This
    process gets it at the latest when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Stopped within the `with` block, as Ctrl-C does, so that work is cleaned
    up.
    """
    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, so Python leaves signals to the caller
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        forget_signals()  # the work has ended, by them or not
