"""The service as an ASGI application, for servers other than `serve`."""

import contextlib
import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from service.api.edge.access import check_exposure, is_loopback
from service.api.edge.errors import PROBLEM_JSON, Problem
from service.observe.run_folder import RunFolder, new_run
from service.server.assembly.service import Service
from service.settings import InvalidSetting, Settings, read_settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


CHANGEABLE = ("max_queue_ms",)
"""Settings that `Application.reconfigure` changes."""


class Application:
    """The whole service behind the ASGI interface: uvicorn, granian, hypercorn or Ray can serve it.

    The server's lifespan starts and stops it. If there is no lifespan (a mounted application),
    await `start` and `stop` yourself. The application handles no signals and binds only
    `--metrics-port` and `--grpc-port`. It leaves process-wide settings alone: the garbage
    collector, the interpreter's switch interval, the allocator and the logging. A hang makes
    liveness fail but does not end the process.

    `port`, `workers` and `drain_seconds` belong to the server and are ignored; `host` is used for
    those two ports only. Without keys, only requests that arrive on a loopback address or a Unix
    socket are answered, unless `allow_anonymous` is set. With several processes, each has models
    of its own.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Read the settings; None reads the PRIORDIAL_* environment variables.

        Raises InvalidSetting for a wrong environment variable. Other errors come from `start`.
        """
        self.settings = read_settings({}, os.environ) if settings is None else settings
        self._service: Service | None = None
        self._started = False
        self._resources = contextlib.ExitStack()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI defines it."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            problem = self._refusal(scope)
            if problem is not None:
                await _answer(problem, send)
            else:
                assert self._service is not None
                if not scope.get("http_version", "1.1").startswith("1"):
                    send = _without_connection(send)
                await self._service.asgi(scope, receive, send)
        else:  # a WebSocket, which the service does not offer
            await send({"type": "websocket.close", "code": 1003})

    async def start(self) -> None:
        """Load models and priors.

        Raises the errors with which `serve` would refuse to start (`serving.WILL_NOT_START`). All
        that was opened is then closed again. Raises RuntimeError until `stop` has ended the last
        start: the threads of two services would otherwise run, and one of them for ever.
        """
        if self._started:
            raise RuntimeError(
                "the application has been started already, as by the server's lifespan; await "
                "stop() first, or leave one of the two starts out"
            )
        self._started = True
        try:
            root = self._resources.enter_context(new_run())
            service = Service(self.settings, RunFolder(root), owns_process=False)
            self._check_own_ports(service)
            try:
                await service.start()
            except BaseException:
                await service.stop()
                raise
        except BaseException:
            self._resources.close()
            self._started = False
            raise
        self._service = service

    def drain(self) -> None:
        """Make readiness fail, and close each connection after its next answer.

        Requests are still answered. Call it before `stop` if a load balancer needs time to send
        clients elsewhere.
        """
        if self._service is not None:
            self._service.drain()

    async def stop(self) -> None:
        """Finish the admitted requests and release everything. `start` may be called again."""
        service, self._service = self._service, None
        if service is not None:
            service.drain()
            try:
                await service.stop()
            finally:
                self._resources.close()
                self._started = False

    @property
    def fault(self) -> str | None:
        """Why the process must be replaced (a hang or a failed batcher); None while it is live."""
        return None if self._service is None else self._service.health.why_not_live()

    @property
    def queued_rows(self) -> int:
        """The number of rows that wait in the queues of all models."""
        return 0 if self._service is None else self._service.queued_rows

    def reconfigure(self, changes: Mapping[str, Any]) -> None:
        """Change `max_queue_ms` while requests run; every other setting needs a restart.

        changes: new values by setting name. Raises InvalidSetting for another setting or a wrong
        value.
        """
        fixed = sorted(set(changes) - set(CHANGEABLE))
        if fixed:
            raise InvalidSetting(
                f"'{fixed[0]}' cannot be changed while the service runs, only "
                f"{', '.join(CHANGEABLE)}: restart the service to change it"
            )
        self.settings = dataclasses.replace(self.settings, **changes)
        if self._service is not None:
            self._service.reconfigure(self.settings)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:  # noqa: BLE001 - the server shows the error and ends
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _check_own_ports(self, service: Service) -> None:
        """Raise ExposedWithoutKeys if a port that the application binds needs keys to be safe."""
        settings = self.settings
        if settings.metrics_port or settings.grpc_port:
            check_exposure(
                settings.host,
                has_keys=not service.access.open_to_all,
                allow_anonymous=settings.allow_anonymous,
            )

    def _refusal(self, scope: Message) -> Problem | None:
        if self._service is None:
            return Problem(
                "unavailable",
                "the service has not been started: the server must run the application's lifespan",
                headers={"Retry-After": "1"},
            )
        if self.settings.allow_anonymous or not self._service.access.open_to_all:
            return None
        host, port = scope.get("server") or ("an unknown address", 0)
        if port is None or is_loopback(host):  # a Unix socket has no port
            return None
        return Problem(
            "forbidden",
            f"the service has no API keys and was reached on {host}, which is not loopback; set "
            "PRIORDIAL_KEYS (`python -m service key` makes keys) or PRIORDIAL_ALLOW_ANONYMOUS=1",
        )


def _without_connection(send: Send) -> Send:
    """Leave out the header `Connection`, which HTTP/2 and HTTP/3 forbid."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if each[0].lower() != b"connection"]
            message = {**message, "headers": kept}
        await send(message)

    return sending


async def _answer(problem: Problem, send: Send) -> None:
    body = problem.body()
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", b"%d" % len(body)),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
