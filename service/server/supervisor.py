"""The parent of several serving processes: starts them, starts them again, tells them to end. It loads no model.

All workers accept from one bound socket that the parent holds too, so that connections which wait to be accepted outlive
a worker that dies: another takes them.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from service.observe.run_folder import RunFolder
from service.observe.stderr import refuse
from service.server.child import WorkerProcess
from service.server.connection_counts import ConnectionCounts
from service.server.link import Place
from service.settings import Settings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 40.0
"""How much longer than the drain delay a worker may take to end before it is killed."""
STEADY_SECONDS = 30.0
"""A worker that served for so long is replaced at once when it ends; else each replacement waits longer."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.1, 30.0
MAX_FAILED_STARTS = 3
_EXIT_HUNG = 70  # what the watchdog ends a worker with


class WillNotStart(RuntimeError):
    """No worker can serve with these settings; the message says why."""


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serve with settings.workers processes until SIGTERM or SIGINT. Returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="priordial-run-"))
    try:
        return asyncio.run(_Supervisor(settings, listener, folder).run())
    except WillNotStart as error:
        return refuse(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings, self._listener, self._folder = settings, listener, folder
        self._counts = ConnectionCounts(folder, settings.workers)
        self._workers: dict[int, WorkerProcess] = {}
        self._unloaded: set[str] = set()
        self._numbers = itertools.count(1)
        self._newest_order: dict[str, int] = {}
        """By model: a load may take long, and an order that comes meanwhile does not wait for it."""
        self._announced = False
        self._leaving = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Keep a worker in each slot. 0 when all ended as they were told to. Raises WillNotStart."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        slots = [loop.create_task(self._keep(slot)) for slot in range(self._settings.workers)]
        await asyncio.wait(slots, return_when=asyncio.FIRST_EXCEPTION)
        if not self._leaving.is_set():  # one will not start
            self._leave()
            await asyncio.wait(slots)
        ended = await asyncio.gather(*slots, return_exceptions=True)  # several may have refused
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return max(status for status in ended if isinstance(status, int))

    # -- a slot

    async def _keep(self, slot: int) -> int:
        """Have a worker in the slot until it is time to leave. 0 when the last one ended well."""
        replaces, delay, failed_starts = "", 0.0, 0
        while not self._leaving.is_set():
            worker = await self._start(slot, replaces)
            status = await self._attend(worker)
            if self._leaving.is_set():
                return 0 if status == 0 or worker.ready_at is None else 1
            reason = worker.refused or _words(status)
            failed_starts = 0 if worker.ready_at is not None else failed_starts + 1
            if not self._announced and (worker.refused or failed_starts == MAX_FAILED_STARTS):
                raise WillNotStart(reason)
            steady = (
                worker.ready_at is not None and time.monotonic() - worker.ready_at > STEADY_SECONDS
            )
            delay = 0.0 if steady else min(MAX_DELAY_SECONDS, max(FIRST_DELAY_SECONDS, 2 * delay))
            logger.error(
                "worker %d (process %d) has ended: %s; the next one starts in %g s",
                slot,
                worker.pid,
                reason,
                delay,
            )
            replaces = {_EXIT_HUNG: "hung"}.get(status, "killed" if status < 0 else "failed")
            await self._pause(delay)
        return 0

    async def _start(self, slot: int, replaces: str) -> WorkerProcess:
        self._counts.absent(slot)
        place = Place(
            slot=slot,
            run_folder=str(self._folder),
            listener=self._listener.fileno(),
            settings=_plain(self._settings),
            unloaded=sorted(self._unloaded),
            replaces=replaces,
        )
        worker = self._workers[slot] = await WorkerProcess.start(place)
        if self._leaving.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _attend(self, worker: WorkerProcess) -> int:
        """Listen to a worker until it ends; its exit status."""
        while (message := await worker.next_message()) is not None:
            if "ready" in message:
                worker.ready_at = time.monotonic()
                self._announce()
            elif "refused" in message:
                worker.refused = message["refused"]
            elif "done" in message:
                worker.done(message["done"], message["error"])
            else:
                self._soon(self._tell(worker, message["tell"], message["verb"], message["model"]))
        status = await worker.wait()
        del self._workers[worker.slot]
        self._counts.absent(worker.slot)
        RunFolder(self._folder, worker.slot).forget_gauges()
        return status

    def _announce(self) -> None:
        """Say once, as a single process does, that the service is there."""
        ready = [worker for worker in self._workers.values() if worker.ready_at is not None]
        if self._announced or len(ready) < self._settings.workers:
            return
        self._announced = True
        host, port = self._listener.getsockname()[:2]
        logger.info("ready on http://%s:%d with %d workers", host, port, len(ready))

    async def _pause(self, seconds: float) -> None:
        """Wait, unless it is time to leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()

    # -- what one worker wants of all

    async def _tell(self, teller: WorkerProcess, number: int, verb: str, model: str) -> None:
        """Order it of every worker and report to the teller. All hear all orders alike, so that all end up alike."""
        order = self._newest_order[model] = next(self._numbers)
        was_unloaded = model in self._unloaded
        (self._unloaded.discard if verb == "load" else self._unloaded.add)(model)
        workers = list(self._workers.values())
        answers = [
            worker.order(order, verb, model, yours=number if worker is teller else None)
            for worker in workers
        ]
        # A worker that still starts carries it out before it serves; nobody waits for that.
        errors = [
            await answer
            for worker, answer in zip(workers, answers, strict=True)
            if worker.ready_at is not None
        ]
        found = [error for error in errors if error is not None]
        if self._newest_order.get(model) == order:
            del self._newest_order[model]
            if verb == "unload" and found and not was_unloaded:
                self._unloaded.discard(model)
        teller.send({"told": number, "errors": found})

    # -- signals

    def _leave(self) -> None:
        """Asked once: end gently. Asked again: the workers hear it again, and hurry."""
        if not self._leaving.is_set():
            self._leaving.set()
            self._soon(self._kill_what_stays())
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    async def _kill_what_stays(self) -> None:
        await asyncio.sleep(self._settings.drain_seconds + GRACE_SECONDS)
        for worker in self._workers.values():
            logger.error(
                "worker %d (process %d) does not end and is killed", worker.slot, worker.pid
            )
            worker.signal(signal.SIGKILL)

    def _reload(self) -> None:
        for worker in self._workers.values():
            if (
                worker.ready_at is not None
            ):  # one that starts reads the folder anyway, and would die of the signal
                worker.signal(signal.SIGHUP)

    def _soon(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON takes it and read_settings gives it back."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
    }


def _words(status: int) -> str:
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return "it hung" if status == _EXIT_HUNG else f"exit status {status}"
