"""Runs the shares of a scoring run in processes of this machine.

No process outlives the command, however the command ends. A process that is killed, such as for
lack of memory, ends the run with a message.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Protocol

from training.faults import Fault, RunFailed, short
from training.loop.interrupt import held_back

Report = Callable[[int, int], None]
"""A function that is called with the numbers of blocks and rows done so far."""


class Share(Protocol):
    """A picklable share of the blocks."""

    def run(self, *, report: Report | None = None) -> None:
        """Score the blocks of this share that have no part file yet."""


def run_in_processes(shares: Sequence[Share], report: Report | None = None) -> None:
    """Run each share in a process of its own. report: gets the sums over all processes.

    Raises the Fault or OSError of the first share that fails, and RunFailed if a process is killed.
    All processes are over when this function returns or raises.
    """
    context = get_context("spawn")
    processes = {}
    done: dict[connection.Connection, tuple[int, int]] = {}
    try:
        for share in shares:
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(share, sending), daemon=True)
            with held_back():  # Ctrl-C ends this process, which ends the others
                process.start()
            processes[receiving] = process
            sending.close()
        waiting = dict(processes)
        while waiting:
            for each in connection.wait(list(waiting)):
                assert isinstance(each, connection.Connection)
                try:
                    message = each.recv()
                except EOFError:
                    process = waiting.pop(each)
                    process.join()
                    _check_end(process.exitcode or 0)
                    continue
                if isinstance(message, BaseException):
                    raise message
                done[each] = message
                if report is not None:
                    report(sum(b for b, _ in done.values()), sum(r for _, r in done.values()))
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _check_end(status: int) -> None:
    """Raise RunFailed unless a process has ended by itself, with its share done."""
    if status == 0:
        return
    how = f"status {status}"
    if status < 0:
        how = f"signal {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            how += ", which Linux also sends when memory runs out"
    raise RunFailed(
        f"a scoring process was ended by {how}; the finished blocks are kept, and the same command "
        "goes on with the others (fewer --workers need less memory)"
    )


def _run(share: Share, sending: connection.Connection) -> None:
    """Run a share in this process; send its progress, and the error that ends it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        share.run(report=lambda blocks, rows: sending.send((blocks, rows)))
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
    except (Fault, OSError) as error:
        sending.send(error)
    except Exception as error:  # noqa: BLE001 - the parent tells the user
        sending.send(RunFailed(f"a scoring process failed: {short(error)}"))
    sending.close()


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, even by kill -9."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
