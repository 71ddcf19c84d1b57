"""The outermost ASGI application: it sends scoring requests to their lane and others to FastAPI.

Every request is counted and logged.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.api.edge.bodies import Message, Receive, compressed, is_compressed, limited
from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Match, request_id_of
from service.batching.work import Connection
from service.observe.metrics import Arrived, Metrics
from service.process.unread import UnreadAnswers

logger = logging.getLogger(__name__)

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+){1,16}")
_MAX_PREFIX = 200

Scope = Message
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Routes requests and gives each an id. Counts and logs the requests that FastAPI answers."""

    def __init__(
        self,
        app: Asgi,
        *,
        lane: ScoringLane,
        metrics: Metrics,
        max_body_bytes: int,
        read_seconds: float,
        log_requests: Callable[[list[dict[str, Any]]], None],
        max_header_bytes: int = 65536,
        max_url_bytes: int = 32768,
        max_unread_bytes: int = 2**28,
        root_path: str = "",
    ) -> None:
        """Wrap the FastAPI application.

        app: the routes that do not score.
        lane: the routes that score.
        metrics, log_requests: count the requests, and take their log lines.
        max_body_bytes, max_header_bytes, max_url_bytes: limits of one request; `ScoringProtocol`
        applies the last two.
        read_seconds: the most seconds that a body may take to arrive, and for which a client may
        read nothing of its answer.
        max_unread_bytes: the most memory of answers that their clients have not read.
        root_path: the path prefix that a proxy removes, such as "/priordial".
        """
        self.lane = lane
        self.draining = False
        """Whether each answer asks its client to open a new connection for the next request."""
        self.max_header_bytes, self.max_url_bytes = max_header_bytes, max_url_bytes
        self._root_path = "/" + root_path.strip("/") if root_path.strip("/") else ""
        self._app, self._metrics = app, metrics
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self._log_requests = log_requests
        self.unread = UnreadAnswers(max_bytes=max_unread_bytes, seconds=read_seconds)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, or handle a lifespan message, as ASGI defines it."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        begun = time.perf_counter()
        root = self._root_path
        if root and scope["path"].startswith(
            root + "/"
        ):  # for a proxy that does not remove the prefix
            scope["path"] = scope["path"][len(root) :]
            scope["raw_path"] = scope["raw_path"][len(root) :]
        match = self.lane.match(scope["path"])
        if match is not None:
            return self._scoring(match, scope, receive, send, begun)
        return self._cold(scope, receive, send, begun)

    async def _scoring(
        self, match: Match, scope: Scope, receive: Receive, send: Send, begun: float
    ) -> None:
        """Answer a scoring request that ScoringProtocol left to ASGI.

        Its body is long or slow, or the request is unusual.
        """
        head = Head(scope["headers"], 0)
        found = await self.lane.answer(
            match,
            head,
            method=scope["method"],
            query=scope["query_string"],
            receive=receive,
            connection=_connection_of(receive),
            begun=begun,
        )
        if found is None:
            return
        if is_compressed(found, head):
            found = await asyncio.to_thread(compressed, found, head.coding)
        status, content_type, body, request_id, more = found
        headers = [
            *more,
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *self._persistence(scope, receive),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _cold(self, scope: Scope, receive: Receive, send: Send, begun: float) -> None:
        """Let FastAPI answer, count the request under its route template, and send its request id.

        HEAD is answered like GET; uvicorn leaves out the body.
        """
        headers = dict(scope["headers"])
        scope = {**scope, "root_path": self._prefix(headers)}
        scope["path"] = scope["root_path"] + scope["path"]
        method = scope["method"]
        if method == "HEAD":
            scope["method"] = "GET"
        request_id = request_id_of(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        declared = headers.get(b"content-length", b"")
        held = self.lane.room.held()
        within = limited(
            declared, receive, self._max_body_bytes, seconds=self._read_seconds, held=held
        )

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("latin-1")),
                    *self._persistence(scope, receive),
                ]
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                self._count(scope, status, begun, request_id)
            await send(message)

        try:
            await self._app(scope, within, wrapped)
        finally:
            held.release()
            self._log(scope, method, status, begun, request_id)

    def refused(self, problem: Problem) -> bytes:
        """Count and log a request that is not valid HTTP. Returns its new request id."""
        begun, request_id = time.perf_counter(), request_id_of({})
        scope = {"method": "-", "state": {}}
        self._count(scope, problem.status, begun, request_id)
        self._log(scope, "-", problem.status, begun, request_id, problem=problem.kind)
        return request_id.encode()

    def _prefix(self, headers: dict[bytes, bytes]) -> str:
        """The path prefix that clients of a proxy use: a well-formed X-Forwarded-Prefix, else the
        setting.
        """
        given = (
            headers.get(b"x-forwarded-prefix", b"")[: _MAX_PREFIX + 1].decode("latin-1").rstrip("/")
        )
        if given and len(given) <= _MAX_PREFIX and _PREFIX.fullmatch(given):
            return given
        return self._root_path

    def _persistence(self, scope: Scope, receive: Receive) -> list[tuple[bytes, bytes]]:
        """The header that says whether the connection stays open, where its client needs it."""
        if self.draining:
            return [(b"connection", b"close")]
        cycle = getattr(receive, "__self__", None)
        if scope.get("http_version") == "1.0" and getattr(cycle, "keep_alive", False):
            return [(b"connection", b"keep-alive")]
        return []

    def _count(self, scope: Scope, status: int, begun: float, request_id: str) -> None:
        try:
            self._metrics.requests(_template(scope), status, [Arrived(begun, request_id)])
        except Exception:
            logger.exception(
                "request %s is missing in the metrics; report this with the traceback", request_id
            )

    def _log(
        self,
        scope: Scope,
        method: str,
        status: int,
        begun: float,
        request_id: str,
        **more: str,
    ) -> None:
        log = {
            "request_id": request_id,
            "method": method[:20],
            "route": _template(scope),
            "status": status,
            "seconds": time.perf_counter() - begun,
            **more,
        }
        if "by" in scope["state"]:
            log["key"] = scope["state"]["by"]
        try:
            self._log_requests([log])
        except Exception:
            logger.exception(
                "request %s is missing in the log; report this with the traceback", request_id
            )


def _template(scope: Scope) -> str:
    template: str = getattr(scope.get("route"), "path", "other")
    return template


class _Unknown:
    """The connection of an ASGI server that does not show whether the client has left."""

    disconnected = False


def _connection_of(receive: Receive) -> Connection:
    """Return the object that knows whether the client has left.

    For uvicorn it is the object that `receive` belongs to. ASGI itself offers only `await
    receive()`, which would need a separate task for every request.
    """
    cycle: Any = getattr(receive, "__self__", None)
    return cycle if hasattr(cycle, "disconnected") else _Unknown()
