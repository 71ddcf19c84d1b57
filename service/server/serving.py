"""One serving process: its event loop, its signals, and how it ends."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from service.api.edge.access import ExposedWithoutKeys, check_exposure
from service.api.edge.keys import InvalidKeys
from service.api.edge.protocol import ScoringProtocol
from service.contract.extras import missing_extra
from service.contract.resources import available_threads
from service.graph.composer import end_shared
from service.graph.providers import ProviderUnavailable
from service.observe import log
from service.observe.log import refuse
from service.observe.run_folder import RunFolder, hold, new_run
from service.observe.traces import TracesUnavailable
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl
from service.process import threads
from service.process.allowance import processor_time
from service.process.connection_counts import open_counts
from service.process.executor import Executor
from service.process.exit_codes import DONE, FAILED
from service.process.listener import listen, url_of
from service.process.machine import PortTaken, bound_heaps, return_memory
from service.server.assembly.service import NothingToServe, Service
from service.server.connections import FairServer, SlowClients
from service.server.link import Link, Place
from service.server.startup import on_signals
from service.settings import InvalidSetting, Settings
from service.stores.remote import InvalidModelsUrl

logger = logging.getLogger(__name__)

WILL_NOT_START = (
    PortTaken,
    ProviderUnavailable,
    StoreUnavailable,
    InvalidStoreUrl,
    InvalidKeys,
    InvalidModelsUrl,
    InvalidSetting,
    ExposedWithoutKeys,
    NothingToServe,
    TracesUnavailable,
)
BACKLOG = 2048
_SPARE_THREADS = 4
"""Threads of the loop's executor in addition to one per processor, as asyncio has them."""
GC_ALLOCATIONS = 20_000
SWITCH_SECONDS = 1e-4
FINISH_SECONDS = 30
"""Seconds for the last requests to finish once no more are accepted."""


def serve_alone(settings: Settings, listener: socket.socket) -> int:
    """Serve as the only process until a signal ends it.

    listener: the bound socket. Returns one of `service.process.exit_codes`.
    """
    bound_heaps()
    with new_run() as folder:
        try:
            status = _run(_alone(settings, listener, RunFolder(folder)))
        except WILL_NOT_START as error:
            status = refuse(str(error))
        except RuntimeError as error:
            if not threads.is_no_thread(error):
                raise
            status = refuse(_no_thread())
    return _left(status)


async def _alone(settings: Settings, listener: socket.socket, run_folder: RunFolder) -> int:
    return await _Serving(settings, listener, run_folder).run()


def _run(serving: Coroutine[Any, Any, int]) -> int:
    """Run an event loop until `serving` returns, and return its result.

    The loop starts a thread as it ends, to join the threads of its executor. Where the system
    allows no more threads, that error does not hide the result.
    """
    ended: list[int] = []

    async def to_the_end() -> None:
        ended.append(await serving)

    try:
        uvloop.run(to_the_end())
    except RuntimeError as error:
        if not ended or not threads.is_no_thread(error):
            raise
    return ended[0]


def serve_in_place(settings: Settings, place: Place, line: socket.socket) -> int:
    """Serve as one of several processes until a signal or the supervisor ends it.

    place: the supervisor's first message. line: the socket to the supervisor.
    Returns one of `service.process.exit_codes`.
    """
    bound_heaps()
    log.configure(settings.log_format)
    hold(Path(place.run_folder))
    listener = socket.socket(fileno=place.listener)
    run_folder = RunFolder(Path(place.run_folder), place.slot)

    async def go() -> int:
        link = await Link.open(line)
        try:
            return await _Serving(settings, listener, run_folder, place=place, link=link).run()
        except WILL_NOT_START as error:
            await link.refuse(str(error))
            return FAILED
        except RuntimeError as error:
            if not threads.is_no_thread(error):
                raise
            await link.refuse(_no_thread())
            return FAILED
        except ModuleNotFoundError as error:
            advice = missing_extra(error, first="serve")
            if advice is None:
                raise
            await link.refuse(advice)
            return FAILED
        finally:
            link.close()

    return _left(_run(go()))


def _no_thread() -> str:
    return f"the system lets this service start no more threads; {threads.raise_limit()}"


def _left(status: int) -> int:
    """Return the exit status, or end the process at once if a thread still runs native code.

    Native code in a daemon thread would crash during the interpreter's own shutdown.
    """
    if threads.any_running():
        logging.shutdown()
        os._exit(status)
    return status


class _Serving:
    """The service and its HTTP server, until a signal or the supervisor ends them."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        run_folder: RunFolder,
        *,
        place: Place | None = None,
        link: Link | None = None,
    ) -> None:
        """Build the service and its server. Raises one of WILL_NOT_START.

        settings: of this process. listener: the bound socket. run_folder: where its metrics lie.
        place, link: the supervisor's message and the socket to it; None without a supervisor.
        """
        self._listener, self._link = listener, link
        self._drain_seconds = settings.drain_seconds
        self._service = Service(
            settings,
            run_folder,
            replaces=place.replaces if place else "",
        )
        check_exposure(
            settings.host,
            has_keys=not self._service.access.open_to_all,
            allow_anonymous=settings.allow_anonymous,
        )
        config = uvicorn.Config(
            self._service.asgi,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=FINISH_SECONDS,
            http=ScoringProtocol,
            ws="none",
            interface="asgi3",
            proxy_headers=False,  # nothing here uses the client's address
        )
        if place is None:
            self._server = FairServer(config)
        else:
            counts = open_counts(run_folder.root, settings.workers)
            self._server = FairServer(config, counts, place.slot)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._slow_clients = SlowClients(
            lambda: self._server.server_state.connections,
            seconds=settings.read_seconds,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._signals_to_end = 0
        self._status = DONE

    async def run(self) -> int:
        """Serve until a signal or the supervisor ends the process.

        Returns one of `service.process.exit_codes`. Raises one of WILL_NOT_START.
        """
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Executor(available_threads() + _SPARE_THREADS, "asyncio"))
        on_signals(
            {
                signal.SIGTERM: self._leave,
                signal.SIGINT: self._leave,
                signal.SIGHUP: self._reload,
                signal.SIGXCPU: self._leave_spent,
            }
        )
        starting = loop.create_task(self._service.start())
        self._stop_starting = starting.cancel
        if self._link is not None:
            self._link.watch(when_alone=self._leave_now)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await starting
                if self._signals_to_end:  # the start may finish although it was cancelled
                    return self._status
                self._server.config.load()
                end_shared()
                tune_interpreter()
                listen(self._listener, BACKLOG)  # before "ready" is logged: clients wait for it
                self._server.appear()
                self._say_ready()
                self._slow_clients.start()
                await self._server.serve([self._listener])
        finally:
            end_shared()
            await self._service.stop()
        return self._status

    def _say_ready(self) -> None:
        """Log the address, and why the service is not ready if it is not."""
        unready = self._service.health.why_not_ready()
        if self._link is not None:
            self._link.listens(unready)  # the supervisor logs it once for all workers
        elif unready is not None:
            logger.warning("listening on %s but not ready: %s", url_of(self._listener), unready)
        else:
            logger.info("ready on %s", url_of(self._listener))

    # -- the end

    def _leave(self) -> None:
        """End the process, faster with each signal.

        First signal: readiness fails; the process keeps serving for the drain delay, then finishes
        admitted requests and ends. Second signal: the rest of the drain delay is skipped. Third
        signal: the process ends without finishing requests.
        """
        self._signals_to_end += 1
        if not self._service.start_done.is_set():
            self._stop_starting()
        elif self._signals_to_end == 1:
            self._service.drain()
            self._soon(self._drain())
        else:
            self._server.should_exit = True
            self._server.force_exit = self._signals_to_end > 2

    def _leave_now(self) -> None:
        logger.error(
            "the supervisor has ended: this worker finishes its requests and ends; start the "
            "service again"
        )
        self._service.drain()
        self._signals_to_end = max(self._signals_to_end, 1)
        self._leave()

    def _leave_spent(self) -> None:
        """End the process, whose processor time is used up; the system repeats the signal."""
        if self._status == DONE:
            self._status = FAILED
            logger.critical("%s", processor_time())
            self._signals_to_end = max(self._signals_to_end, 1)  # without the drain delay
            self._service.drain()
            self._leave()

    async def _drain(self) -> None:
        logger.info("draining for %g s", self._drain_seconds)
        await asyncio.sleep(self._drain_seconds)
        self._server.should_exit = True

    # -- models

    def _reload(self) -> None:
        self._soon(self._load_all())

    async def _load_all(self) -> None:
        await self._service.start_done.wait()  # the start may have scanned the folder already
        await self._service.repository.load_all()

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def tune_interpreter() -> None:
    """Tune the garbage collector and the interpreter's lock, in processes that `serve` started.

    The collector runs less often and ignores the objects that exist now. A thread that returns from
    the graph gets the interpreter sooner: by default the event loop may keep it for 5 ms, in which
    the session could run its next batch. NumPy's overflow warning is silenced, since
    `service.wire.arrays` provokes it to find numbers that are too large.
    """
    warnings.filterwarnings("ignore", "overflow encountered in dot", RuntimeWarning)
    sys.setswitchinterval(SWITCH_SECONDS)
    return_memory()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
