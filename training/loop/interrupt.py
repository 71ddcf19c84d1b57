"""Ctrl-C and SIGTERM while training: the current step finishes and a checkpoint is written."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from training.faults import Fault


class Interrupted(Fault):
    """The run stopped on a signal; the message says how to continue it."""


class StopSignal:
    """Records the first SIGINT or SIGTERM within the `with`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except (
                ValueError
            ):  # Outside the main thread, Python allows no handlers: the caller handles signals.
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

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
