"""The parent of several worker processes: starts, replaces and ends them.

It loads no model. The parent and all workers hold the same bound socket. If a worker dies, the
connections that wait to be accepted are kept, and another worker accepts them.
"""

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.observe.log import refuse
from service.observe.run_folder import RunFolder, new_run
from service.process.allowance import processor_time
from service.process.connection_counts import open_counts
from service.process.exit_codes import DONE, FAILED, HUNG
from service.process.listener import url_of
from service.process.threads import failure_text
from service.server.child import MemoryKills, WorkerProcess
from service.server.link import Place
from service.server.startup import on_signals
from service.settings import Settings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 40
"""A worker that still runs this many seconds after the drain delay is killed."""
STEADY_SECONDS = 30.0
"""A worker that served for longer than this is replaced at once, others after growing pauses."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.1, 30.0
MAX_FAILED_STARTS = 3


class WillNotStart(RuntimeError):
    """No worker can serve with these settings; the message says why."""


@dataclass(frozen=True)
class _Ending:
    """How a worker ended, or why it could not be started."""

    reason: str
    status: int = FAILED
    refused: bool = False
    served_seconds: float | None = None
    """Seconds that the worker served; None when it never did."""
    pid: int | None = None
    """The process id; None when no process could be started."""

    @property
    def replaces(self) -> str:
        """How the worker ended, as the label of `priordial_worker_restarts_total`."""
        return {HUNG: "hung"}.get(self.status, "killed" if self.status < 0 else "failed")


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    listener: the bound socket. Returns one of `service.process.exit_codes`.
    """
    with new_run() as folder:
        try:
            return asyncio.run(_Supervisor(settings, listener, folder).run())
        except WillNotStart as error:
            return refuse(str(error))


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings, self._listener, self._folder = settings, listener, folder
        self._counts = open_counts(folder, settings.workers)
        self._workers: dict[int, WorkerProcess] = {}
        self._announced = False
        self._leaving = asyncio.Event()
        self._memory_kills = MemoryKills()
        self._status = DONE
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Keep a worker running in each slot until the service ends.

        Returns DONE if all workers ended well, else FAILED. Raises WillNotStart.
        """
        on_signals(
            {
                signal.SIGTERM: self._leave,
                signal.SIGINT: self._leave,
                signal.SIGHUP: self._reload,
                signal.SIGXCPU: self._leave_spent,
            }
        )
        loop = asyncio.get_running_loop()
        slots = [loop.create_task(self._keep(slot)) for slot in range(self._settings.workers)]
        await asyncio.wait(slots, return_when=asyncio.FIRST_EXCEPTION)
        if not self._leaving.is_set():  # a worker refused to start
            self._leave()
            await asyncio.wait(slots)
        ended = await asyncio.gather(*slots, return_exceptions=True)  # several may have refused
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return max([self._status, *(status for status in ended if isinstance(status, int))])

    # -- a slot

    async def _keep(self, slot: int) -> int:
        """Keep a worker running in the slot until the service ends.

        Returns DONE if the last worker ended well, else FAILED.
        """
        replaces, delay, failed_starts = "", 0.0, 0
        while not self._leaving.is_set():
            ending = await self._serve(slot, replaces)
            served = ending.served_seconds
            if self._leaving.is_set():
                return DONE if ending.status == DONE or served is None else FAILED
            failed_starts = 0 if served is not None else failed_starts + 1
            hopeless = failed_starts >= MAX_FAILED_STARTS and not self._is_served()
            if not self._announced and (ending.refused or hopeless):
                raise WillNotStart(
                    ending.reason if ending.pid else f"worker {slot} {ending.reason}"
                )
            steady = served is not None and served > STEADY_SECONDS
            delay = 0.0 if steady else min(MAX_DELAY_SECONDS, max(FIRST_DELAY_SECONDS, 2 * delay))
            if ending.pid is None:
                logger.error("worker %d %s; next attempt in %g s", slot, ending.reason, delay)
            else:
                replaces = ending.replaces
                logger.error(
                    "worker %d (process %d) has ended: %s; the next one starts in %g s",
                    slot,
                    ending.pid,
                    ending.reason,
                    delay,
                )
            await self._pause(delay)
        return DONE

    async def _serve(self, slot: int, replaces: str) -> _Ending:
        """Run one worker until it ends. No error here affects another slot."""
        try:
            worker = await self._start(slot, replaces)
        except (OSError, RuntimeError) as error:  # no descriptor, process, thread or interpreter
            return _Ending(f"could not be started: {failure_text(error)}")
        try:
            status = await self._attend(worker)
        except Exception as error:
            logger.exception(
                "the supervisor lost track of worker %d (process %d), kills it and starts another; "
                "report this with the traceback",
                slot,
                worker.pid,
            )
            worker.signal(signal.SIGKILL)
            await worker.wait()
            status = FAILED
            worker.refused = None
            reason = f"the supervisor failed: {error}"
        else:
            reason = worker.refused or self._memory_kills.reason(status) or _words(status)
        finally:
            self._workers.pop(slot, None)
            self._set_absent(slot)
        RunFolder(self._folder, slot).forget_gauges()
        listens_at = worker.listens_at
        return _Ending(
            reason,
            status=status,
            refused=worker.refused is not None,
            served_seconds=None if listens_at is None else time.monotonic() - listens_at,
            pid=worker.pid,
        )

    async def _start(self, slot: int, replaces: str) -> WorkerProcess:
        self._set_absent(slot)
        place = Place(
            slot=slot,
            run_folder=str(self._folder),
            listener=self._listener.fileno(),
            settings=_plain(self._settings),
            replaces=replaces,
        )
        worker = self._workers[slot] = await WorkerProcess.start(place)
        if self._leaving.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _attend(self, worker: WorkerProcess) -> int:
        """Listen to a worker until it ends, and return its exit status."""
        while (message := await worker.next_message()) is not None:
            if "listening" in message:
                worker.listens_at = time.monotonic()
                worker.unready = message["listening"]
                self._announce(worker)
            elif "refused" in message:
                worker.refused = message["refused"]
        return await worker.wait()

    def _is_served(self) -> bool:
        """Whether a worker serves: then another one's failure to start does not end the service."""
        return any(worker.listens_at is not None for worker in self._workers.values())

    def _set_absent(self, slot: int) -> None:
        if self._counts is not None:
            self._counts.absent(slot)

    def _announce(self, newest: WorkerProcess) -> None:
        """Log once that all workers listen. After that, log only a new worker that is not ready."""
        if self._announced:
            if newest.unready is not None:
                logger.warning("worker %d is not ready: %s", newest.slot, newest.unready)
            return
        workers = self._workers.values()
        if sum(worker.listens_at is not None for worker in workers) < self._settings.workers:
            return
        self._announced = True
        url = url_of(self._listener)
        unready = {each.unready for each in workers if each.unready is not None}
        if unready:
            logger.warning(
                "listening on %s with %d workers but not ready: %s",
                url,
                len(workers),
                "; ".join(sorted(unready)),
            )
        else:
            logger.info("ready on %s with %d workers", url, len(workers))

    async def _pause(self, seconds: float) -> None:
        """Wait for this many seconds, or until the service ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()

    # -- signals

    def _leave(self) -> None:
        """Pass a signal on to the workers, which end faster with each one."""
        if not self._leaving.is_set():
            self._leaving.set()
            self._soon(self._kill_those_that_stay())
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _leave_spent(self) -> None:
        """End the service: the processor time of this process is used up."""
        if self._status == DONE:
            self._status = FAILED
            logger.critical("%s", processor_time())
            self._leave()

    async def _kill_those_that_stay(self) -> None:
        # Short sleeps: time in which the whole machine was stopped does not count.
        for _ in range(round(self._settings.drain_seconds) + GRACE_SECONDS):
            await asyncio.sleep(1)
        for worker in self._workers.values():
            logger.error(
                "worker %d (process %d) is killed: it is still running %d s after the drain delay; "
                "its requests are lost: lower --timeout-ms below that",
                worker.slot,
                worker.pid,
                GRACE_SECONDS,
            )
            worker.signal(signal.SIGKILL)

    def _reload(self) -> None:
        for worker in self._workers.values():
            worker.signal(signal.SIGHUP)

    def _soon(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _plain(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, for JSON and `read_settings`."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
        if value != getattr(Settings, name)
    }


def _words(status: int) -> str:
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return "it hung" if status == HUNG else f"exit status {status}"
