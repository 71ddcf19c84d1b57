"""Trains several runs of a comparison at the same time, each in a process of its own.

A step of a small network has little for a second thread to do. So a processor trains more steps for
a run of its own than as one of the threads of another run.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol, Self, TypeAlias

import numpy as np
import torch

from service.contract.resources import available_memory, available_threads
from training.data.dataset import Dataset
from training.data.image_files import ImageFiles
from training.faults import Fault, RunFailed, WrongUse, short
from training.loop.interrupt import Interrupted, StopSignal, held_back
from training.loop.processes import Processes

PROCESS_BYTES = 2**29
"""Memory of a process besides the data: torch, a small network and its optimiser."""
COPIES = 4
"""How often a process may hold the training rows: as read, in order, on the device, in a batch."""
POLL_SECONDS = 0.5
"""How often the signals are checked while no run ends."""


class Task(Protocol):
    """One run. It is sent to another process, so it must be possible to pickle it."""

    @property
    def name(self) -> str:
        """The run and its seed, for messages."""
        ...

    def finish(self, processes: Processes, *, quiet: bool, label: str) -> float | None:
        """Train the run and keep its outcome.

        label: what the lines of its progress begin with; empty for a run alone. Returns the
        seconds that it took; None in all processes of a run but the first.
        """
        ...


Ended: TypeAlias = float | Fault | None
"""What a process sends back: the seconds of a run, or why it failed."""


@dataclass(frozen=True)
class Shares:
    """How many runs are trained at the same time, and the threads of each; None: torch decides."""

    jobs: int = 1
    threads: int | None = None


def shares_of(
    data: Dataset,
    *,
    runs: int,
    processes: Processes,
    jobs: int | None = None,
    threads: int | None = None,
) -> Shares:
    """Divide this machine among the runs.

    runs: the number of runs of the comparison, which does not depend on how many are finished.
    jobs, threads: what the user asks for; None decides. By default each processor gets a run, with
    one thread, as far as memory allows; a single job gets torch's number of threads, within the
    limit of a control group. More threads than processors would wait for each other at every
    product: six runs then took four times as long as one after another. Runs on a GPU, under
    torchrun and on image files, which are decoded by processes of their own, are trained one after
    another. Raises WrongUse where several jobs are asked for under torchrun.
    """
    if processes.world > 1 and (jobs or 1) > 1:
        raise WrongUse(
            f"--jobs {jobs}: torchrun has started {processes.world} processes, which train each "
            "run together; leave out --jobs, or start without torchrun"
        )
    alone = (
        processes.world > 1
        or processes.device.type != "cpu"
        or isinstance(data.train.inputs, ImageFiles)
    )
    if jobs is None and alone:
        jobs = 1
    elif jobs is None:
        jobs = max(1, min(runs, available_threads() // (threads or 1), _that_fit(data)))
    if threads is None and processes.device.type == "cpu":
        most = max(1, available_threads() // jobs)
        threads = most if jobs > 1 else min(most, torch.get_num_threads())
    return Shares(jobs, threads)


def _that_fit(data: Dataset) -> int:
    """How many processes fit half of the memory that this one may use."""
    each = PROCESS_BYTES + COPIES * np.asarray(data.train.inputs).nbytes
    return available_memory() // 2 // each


def train_side_by_side(
    tasks: Sequence[Task],
    *,
    shares: Shares,
    device: torch.device,
    quiet: bool,
    done: Callable[[str, float], None],
) -> None:
    """Train all tasks in `shares.jobs` processes; `done` gets the name of each and its seconds.

    quiet: show no progress of the runs. Raises the first error of a run. Raises Interrupted when
    SIGINT or SIGTERM arrives: every run in progress then writes its checkpoint. Before either, all
    processes have ended.
    """
    number = min(shares.jobs, len(tasks))
    with (
        StopSignal() as stop,
        _Workers(number, device, shares.threads, quiet=quiet) as workers,
    ):
        failures: list[Fault] = []
        stopping = False
        left = list(reversed(tasks))
        while workers.any_busy() or (left and not stopping):
            if not stopping:
                workers.give(left)
            for task, ended in workers.ended():
                if isinstance(ended, Fault):
                    failures.append(ended)
                elif ended is not None:
                    done(task.name, ended)
            if not stopping and (stop.requested or failures):
                stopping = True
                workers.stop()
    failed = [fault for fault in failures if not isinstance(fault, Interrupted)]
    if failed:
        raise failed[0]
    if failures or stop.requested:
        raise Interrupted(_what_stopped(failures))


def _what_stopped(stopped: Sequence[Fault]) -> str:
    if not stopped:
        return "stopped between two runs; the same command resumes with the next one"
    others = len(stopped) - 1
    more = f" ({others} more run{'s' if others > 1 else ''} stopped likewise)" if others else ""
    return f"{stopped[0]}{more}"


class _Worker:
    """A process, the connection to it, and the run that it trains."""

    def __init__(self, device: torch.device, threads: int | None, *, quiet: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(other, str(device), threads, quiet), name="compare"
        )
        with held_back():
            self.process.start()
        other.close()  # so that this end gets an EOFError when the process ends
        self.task: Task | None = None

    def result(self, *, stopping: bool) -> Ended:
        """Receive how the run has ended."""
        assert self.task is not None
        try:
            ended: Ended = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.connection.close()
            if stopping:  # it was reading the data or writing the outcome
                return Interrupted(
                    f"{self.task.name}: stopped before its first or after its last step; the same "
                    "command resumes it"
                )
            return RunFailed(
                f"{self.task.name}: its process ended {_how(self.process.exitcode)}; the finished "
                "runs are kept, and the same command goes on. If memory was short, give fewer "
                "--jobs"
            )
        return ended


class _Workers:
    """The processes of one comparison."""

    def __init__(
        self, number: int, device: torch.device, threads: int | None, *, quiet: bool
    ) -> None:
        self._stopped = False
        self._all = [_Worker(device, threads, quiet=quiet) for _ in range(number)]

    def any_busy(self) -> bool:
        return any(worker.task is not None for worker in self._all)

    def give(self, left: list[Task]) -> None:
        """Give the next runs to the processes without one; `left` has the next one last."""
        for worker in self._all:
            if worker.task is None and left and not worker.connection.closed:
                worker.task = left.pop()
                with contextlib.suppress(OSError):  # `ended` reports a process that has died
                    worker.connection.send(worker.task)

    def ended(self) -> Iterator[tuple[Task, Ended]]:
        """Wait up to POLL_SECONDS, and yield the runs that have ended."""
        busy = {worker.connection: worker for worker in self._all if worker.task is not None}
        for connection in wait(list(busy), timeout=POLL_SECONDS):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            task, ended = worker.task, worker.result(stopping=self._stopped)
            worker.task = None
            assert task is not None
            yield task, ended

    def stop(self) -> None:
        """Ask every process to stop its run after the current step."""
        self._stopped = True
        for worker in self._all:
            if worker.process.is_alive():
                worker.process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes; those that are still at work are killed."""
        for worker in self._all:
            if worker.task is not None:
                worker.process.kill()
            worker.connection.close()
            worker.process.join()


def _work(connection: Connection, device: str, threads: int | None, quiet: bool) -> None:  # noqa: FBT001 - Process passes no names
    """Train the runs that arrive, until the other end closes, even because it was killed.

    The terminal sends Ctrl-C to this process, too, which was started without it: the SIGTERM of the
    first process stops a run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads is not None:
        torch.set_num_threads(threads)
    processes = Processes(torch.device(device))
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = connection.recv()
            connection.send(_ended(task, processes, quiet=quiet))


def _ended(task: Task, processes: Processes, *, quiet: bool) -> Ended:
    try:
        return task.finish(processes, quiet=quiet, label=task.name)
    except Fault as fault:
        return fault
    except (KeyboardInterrupt, SystemExit) as stopped:
        return Interrupted(f"{task.name}: stopped by {type(stopped).__name__}")
    except BaseException as error:  # noqa: BLE001 - the first process must learn of it
        return RunFailed(
            f"{task.name}: {short(error)}; the finished runs are kept, and the same command goes on"
        )


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by {signal.Signals(-status).name}"
    return f"with status {status}"
