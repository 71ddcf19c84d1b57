"""One serving process: the event loop, signals, and the way out."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from service import threads
from service.api.edge.access import ExposedWithoutKeys
from service.api.edge.protocol import HotProtocol
from service.graph.providers import ProviderUnavailable
from service.keys import InvalidKeys
from service.machine import bound_heaps
from service.observe import log as request_log
from service.observe.port import PortTaken
from service.observe.run_folder import RunFolder
from service.observe.stderr import refuse
from service.observe.traces import TracesUnavailable
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl
from service.server.app import NothingToServe, Service
from service.server.connection_counts import ConnectionCounts
from service.server.connections import FairServer
from service.server.link import Link, Place
from service.server.slow_clients import SlowClients
from service.settings import Settings

logger = logging.getLogger(__name__)

WILL_NOT_START = (
    PortTaken,
    ProviderUnavailable,
    StoreUnavailable,
    InvalidStoreUrl,
    InvalidKeys,
    ExposedWithoutKeys,
    NothingToServe,
    TracesUnavailable,
)
BACKLOG = 2048
GC_ALLOCATIONS = 20_000
SWITCH_SECONDS = 1e-4
FINISH_SECONDS = 30
"""How long the last requests may take once no more are accepted."""


def serve_alone(settings: Settings, listener: socket.socket) -> int:
    """Serve as the only process until it is told to end. Returns the exit status."""
    bound_heaps()
    with tempfile.TemporaryDirectory(prefix="priordial-run-") as folder:
        try:
            uvloop.run(_alone(settings, listener, RunFolder(Path(folder))))
        except WILL_NOT_START as error:
            status = refuse(str(error))
        else:
            status = 0
    return _left(status)


async def _alone(settings: Settings, listener: socket.socket, run_folder: RunFolder) -> None:
    await _Serving(settings, listener, run_folder).run()


def serve_in_place(settings: Settings, place: Place, line: socket.socket) -> int:
    """Serve as one of several processes until it is told to end. Returns the exit status."""
    bound_heaps()
    request_log.configure(settings.log_format)
    listener = socket.socket(fileno=place.listener)
    run_folder = RunFolder(Path(place.run_folder), place.slot)

    async def go() -> int:
        link = await Link.open(line)
        try:
            await _Serving(settings, listener, run_folder, place=place, link=link).run()
        except WILL_NOT_START as error:
            await link.refuse(str(error))
            return 1
        finally:
            link.close()
        return 0

    return _left(uvloop.run(go()))


def _left(status: int) -> int:
    """The exit status; ends the process at once while a thread still runs native code.

    Native code in a daemon thread does not survive the interpreter's own shutdown.
    """
    if threads.any_running():
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    return status


class _Serving:
    """The service, the HTTP server before it, and what ends them."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        run_folder: RunFolder,
        *,
        place: Place | None = None,
        link: Link | None = None,
    ) -> None:
        self._listener, self._link = listener, link
        self._drain_seconds = settings.drain_seconds
        self._service = Service(
            settings,
            run_folder,
            unloaded=place.unloaded if place else (),
            replaces=place.replaces if place else "",
            everywhere=link.everywhere if link else None,
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
            http=HotProtocol,
            interface="asgi3",
            proxy_headers=False,  # the address of the client is of no use here
        )
        if place is None:
            self._server = FairServer(config)
        else:
            counts = ConnectionCounts(run_folder.root, settings.workers)
            self._server = FairServer(config, counts, place.slot)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._slow_clients = SlowClients(
            lambda: self._server.server_state.connections,
            seconds=settings.read_seconds,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._times_told = 0

    async def run(self) -> None:
        """Serve until told to end. Raises one of WILL_NOT_START."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        starting = loop.create_task(self._service.start())
        self._stop_starting = starting.cancel
        if self._link is not None:
            self._link.follow(self._carry_out, when_alone=self._leave_now)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await starting
                if self._times_told:  # whatever was awaited as it was cancelled may have finished, and with it the start
                    return
                self._server.config.load()
                tune_interpreter()
                self._listener.listen(BACKLOG)  # whoever reads that it is ready may connect at once
                self._server.appear()
                self._say_ready()
                self._slow_clients.start()
                await self._server.serve([self._listener])
        finally:
            await self._service.stop()

    def _say_ready(self) -> None:
        if self._link is not None:
            self._link.ready()
            return
        host, port = self._listener.getsockname()[:2]
        logger.info("ready on http://%s:%d", host, port)

    # -- the way out

    def _leave(self) -> None:
        """Not ready at once; serve on for the drain delay; then finish. Told again: without the delay. A third time: at once."""
        self._times_told += 1
        if not self._service.started:
            self._stop_starting()
        elif self._times_told == 1:
            self._service.drain()
            self._soon(self._drain())
        else:
            self._server.should_exit = True
            self._server.force_exit = self._times_told > 2

    def _leave_now(self) -> None:
        logger.error("the supervisor is gone")
        self._service.drain()
        self._times_told = max(self._times_told, 1)
        self._leave()

    async def _drain(self) -> None:
        logger.info("draining for %g s", self._drain_seconds)
        await asyncio.sleep(self._drain_seconds)
        self._server.should_exit = True

    # -- models

    async def _carry_out(self, verb: str, model: str) -> None:
        """An order of the supervisor, once the service has started."""
        await self._service.start_done.wait()
        repository = self._service.repository
        await (repository.load_here(model) if verb == "load" else repository.unload_here(model))

    def _reload(self) -> None:
        self._soon(self._load_all())

    async def _load_all(self) -> None:
        await (
            self._service.start_done.wait()
        )  # what the start has passed over by now is looked for again
        await self._service.repository.load_all()

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def tune_interpreter() -> None:
    """Keep requests from waiting for the garbage collector, and a graph's thread from waiting for the event loop.

    What the start made is left alone by the collector, which looks less often. A thread that comes back from the graph asks
    for the interpreter; by default the loop may keep it for 5 ms, in which a session could have run its next batch.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
