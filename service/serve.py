"""One serving process: the event loop, the socket, signals, and the way out."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import uvicorn
import uvloop

from service import request_log
from service.api.access import ExposedWithoutKeys, InvalidKeys
from service.app import Service
from service.graph import ProviderUnavailable
from service.prior_store import InvalidStoreUrl
from service.priors import StoreUnavailable
from service.settings import Settings

logger = logging.getLogger(__name__)

_WRONG_START = (
    ProviderUnavailable,
    StoreUnavailable,
    InvalidStoreUrl,
    InvalidKeys,
    ExposedWithoutKeys,
)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    request_log.configure(settings.log_format)
    try:
        return uvloop.run(_serve(settings))
    except _WRONG_START as error:
        return _refuse(str(error))


async def _serve(settings: Settings) -> int:
    try:
        listener = _listen(settings)
    except OSError as error:
        return _refuse(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    service = Service(settings)
    await service.start()
    if service.repository.faults and not service.repository.all():
        await service.stop()
        return _refuse("no model can be served (see above)")
    server = uvicorn.Server(
        uvicorn.Config(
            service.asgi,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=30,
            http="httptools",
        )
    )
    _handle_signals(server, service)
    host, port = listener.getsockname()[:2]
    logger.info("ready on http://%s:%d", host, port)
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve([listener])
    await service.stop()
    return 0


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    return listener


def _handle_signals(server: uvicorn.Server, service: Service) -> None:
    """SIGTERM and SIGINT: not ready at once, serve on for the drain delay, then finish. SIGHUP: look for new models."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain() -> None:
        logger.info("draining for %g s", service.settings.drain_seconds)
        await asyncio.sleep(service.settings.drain_seconds)
        server.should_exit = True

    def leave() -> None:
        if service.draining:
            server.should_exit = True  # asked twice: do not wait out the delay
            return
        service.draining = True
        keep(drain())

    def keep(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    loop.add_signal_handler(signal.SIGHUP, lambda: keep(service.repository.load_all()))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"priordial: {reason}\n")
    return 1
