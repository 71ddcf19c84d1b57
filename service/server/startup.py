"""The first steps of a serving process: signal handlers and standard streams.

From here on, every signal has a defined effect. SIGTERM and SIGINT end the process at once until
the event loop handles them. SIGHUP is ignored until models can be loaded. SIGUSR1 writes the stacks
of all threads to stderr. Signals that mean nothing to the service, and whose default is to end it,
are ignored; the first of each kind is reported on stderr. SIGXCPU, at the end of the processor
time that the system allows, ends the process with a line that says so.
"""

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from service.contract.resources import open_standard_streams
from service.process import stderr
from service.process.allowance import heed_processor_time, processor_time
from service.process.exit_codes import DONE, FAILED

if TYPE_CHECKING:
    import asyncio

STARTING_GC_ALLOCATIONS = 500_000
"""The garbage collector's threshold until `tune_interpreter`: imports make little garbage,
and looking for it takes a tenth of the start."""


def prepare_process() -> None:
    """Open the standard streams that are closed, handle signals, and let the collector rest.

    Call it before importing anything else, so that a signal during the imports has its effect.
    NumPy's BLAS gets one thread. It ends its threads at each fork and starts them again in the
    next long product. Where the system allows no more threads, it waits for them for ever.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(STARTING_GC_ALLOCATIONS)
    open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _show_stacks)
    for each in meaningless():
        signal.signal(each, _ignore)
    heed_processor_time(_spent)


def meaningless() -> list[int]:
    """The signals that end a process by default without a fault in it, and that nothing here
    uses.
    """
    names = ("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT")
    named = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    real_time = range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if hasattr(signal, "SIGRTMIN") else ()
    return [*named, *real_time]


def on_signals(callbacks: Mapping[signal.Signals, Callable[[], object]]) -> None:
    """Call a function on the running loop whenever its signal arrives, until the process ends.

    The loop's own `add_signal_handler` is not used: it restores the default action when the loop
    closes, and a second SIGTERM would then kill the process during its last steps.
    """
    import asyncio  # imported late: it takes 0.1 s, during which signals must already be handled

    loop = asyncio.get_running_loop()
    _let_signals_wake(loop)
    for number, callback in callbacks.items():
        signal.signal(number, partial(_forward, loop, callback))


def ignore_signals() -> None:
    """Ignore every signal of a process that is about to end with a status of its own.

    While the interpreter ends, it gives the handled signals their default action back. A second
    SIGTERM would then make a kill of an orderly end. Ignored signals stay ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, *meaningless()):
        signal.signal(number, signal.SIG_IGN)


def _let_signals_wake(loop: "asyncio.AbstractEventLoop") -> None:
    """Have each signal end the loop's wait, as uvloop does by itself.

    The system may give a signal to another thread. It then interrupts nothing in this one, where
    Python would call the handler, and an idle loop would not notice it.
    """
    before = signal.set_wakeup_fd(-1)
    if before != -1:
        signal.set_wakeup_fd(before)
        return
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    _WAKING.extend((reading, writing))
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    loop.add_reader(reading, reading.recv, 4096)


_WAKING: list[socket.socket] = []
"""Open as long as the process lives: a signal may come after the loop has closed."""


def _forward(
    loop: "asyncio.AbstractEventLoop", callback: Callable[[], object], *_signal: Any
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: the process is about to end
        loop.call_soon_threadsafe(callback)


_told: set[int] = set()


def _ignore(number: int, *_frame: Any) -> None:
    """Say once that a signal is ignored. Not by the log, which may be in the middle of a line."""
    if number in _told:
        return
    _told.add(number)
    known = number in set(signal.Signals)
    name = signal.Signals(number).name if known else f"signal {number}"
    stderr.tell(f"priordial: {name} is ignored; SIGTERM ends the service\n".encode())


def _show_stacks(*_signal: Any) -> None:
    """Write the stacks of all threads to stderr.

    A Python signal handler holds the interpreter's lock; faulthandler's own handler does not.
    Without the lock, the stacks of running threads change while they are read, which can crash the
    process.
    """
    stderr.tell(stderr.stacks())


def _end(*_signal: Any) -> None:
    os._exit(DONE)  # Nothing has been started. An exception could be swallowed by an import.


def _spent() -> None:
    stderr.tell(f"priordial: {processor_time()}\n".encode())
    stderr.flush()
    os._exit(FAILED)
