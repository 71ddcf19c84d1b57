"""The outermost ASGI application: hot routes go to their lane, the rest to FastAPI, every request counted and logged."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.api.edge.bodies import Message, Receive, limited
from service.api.edge.known_headers import Head
from service.api.edge.lane import HotLane
from service.api.edge.request import HotRequest, Match, request_id_of
from service.observe.metrics import Arrived, Metrics

logger = logging.getLogger(__name__)

Scope = Message
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Routes; gives every request an id; counts and logs those that FastAPI answers."""

    def __init__(
        self,
        app: Asgi,
        *,
        lane: HotLane,
        metrics: Metrics,
        max_body_bytes: int,
        read_seconds: float,
        log_requests: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self.lane = lane
        self.draining = False
        """Whether each answer tells its client to take another connection for the next request."""
        self._app, self._metrics = app, metrics
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self._log_requests = log_requests

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI entry."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        begun = time.perf_counter()
        match = self.lane.match(scope["path"])
        if match is not None:
            return self._hot(match, scope, receive, send, begun)
        return self._cold(scope, receive, send, begun)

    async def _hot(
        self, match: Match, scope: Scope, receive: Receive, send: Send, begun: float
    ) -> None:
        """A hot request that HotProtocol left to ASGI: its body is long, or comes slowly, or something is unusual."""
        request = HotRequest(
            scope["method"],
            scope["query_string"],
            Head(scope["headers"], 0),
            b"",
            is_abandoned=_abandoned(receive),
            begun=begun,
        )
        found = await self.lane.answer(match, request, receive)
        if found is None:
            return
        status, content_type, body, request_id, more = found
        headers = [
            *more,
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *self._closing(),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _cold(self, scope: Scope, receive: Receive, send: Send, begun: float) -> None:
        """FastAPI's answer, counted under its route template, with the request id."""
        headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        declared = headers.get(b"content-length", b"")
        within = limited(declared, receive, self._max_body_bytes, seconds=self._read_seconds)

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("latin-1")),
                    *self._closing(),
                ]
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                self._count(scope, status, begun, request_id)
            await send(message)

        try:
            await self._app(scope, within, wrapped)
        finally:
            self._log(scope, status, begun, request_id)

    def _closing(self) -> list[tuple[bytes, bytes]]:
        return [(b"connection", b"close")] if self.draining else []

    def _count(self, scope: Scope, status: int, begun: float, request_id: str) -> None:
        try:
            self._metrics.requests(_template(scope), status, [Arrived(begun, request_id)])
        except Exception:
            logger.exception("request %s could not be counted", request_id)

    def _log(self, scope: Scope, status: int, begun: float, request_id: str) -> None:
        log = {
            "request_id": request_id,
            "method": scope["method"][:20],
            "route": _template(scope),
            "status": status,
            "seconds": time.perf_counter() - begun,
        }
        if "by" in scope["state"]:
            log["key"] = scope["state"]["by"]
        try:
            self._log_requests([log])
        except Exception:
            logger.exception("request %s could not be logged", request_id)


def _template(scope: Scope) -> str:
    template: str = getattr(scope.get("route"), "path", "other")
    return template


def _abandoned(receive: Receive) -> Callable[[], bool] | None:
    """Whether the client has gone, where the server tells: uvicorn keeps it beside `receive`.

    ASGI has only `await receive()` for it, which would cost every request a task of its own.
    """
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: bool(cycle.disconnected)) if hasattr(cycle, "disconnected") else None
