"""The first steps of a serving process: its signals and its standard streams.

From here on no signal ends the process without an orderly way out: SIGTERM and SIGINT end it at
once until the event loop takes them over, SIGHUP is ignored until models can be loaded, SIGUSR1
writes the stacks of all threads to stderr, SIGUSR2 is ignored.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from service.exit_codes import DONE

if TYPE_CHECKING:
    import asyncio


def prepare_process() -> None:
    """Open closed standard streams and handle signals. Call it before anything else is imported."""
    _open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _show_stacks)


def on_signals(callbacks: Mapping[signal.Signals, Callable[[], object]]) -> None:
    """Call back on the running loop for each of these signals, until the process has ended.

    A loop's own `add_signal_handler` restores the default action when the loop closes, so a second
    SIGTERM would end the process in the middle of its last steps.
    """
    import asyncio  # takes a tenth of a second, in which signals must be handled already

    loop = asyncio.get_running_loop()
    for number, callback in callbacks.items():
        signal.signal(number, partial(_forward, loop, callback))


def _forward(
    loop: "asyncio.AbstractEventLoop", callback: Callable[[], object], *_signal: Any
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: the process is about to end
        loop.call_soon_threadsafe(callback)


def _show_stacks(*_signal: Any) -> None:
    """Write all stacks. Python's own handler holds the interpreter's lock, faulthandler's does not.

    Without the lock the stacks of running threads change while they are read, which may crash.
    """
    faulthandler.dump_traceback(2, all_threads=True)


def _end(*_signal: Any) -> None:
    os._exit(DONE)  # nothing has been started; an exception could be swallowed by an import


def _open_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed: the next file would take its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
