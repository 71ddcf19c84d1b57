"""The outermost ASGI application: hot routes answered as raw ASGI, the rest by FastAPI, every request counted.

A FastAPI route costs more than a small model; the routes that score go around it, and only they do.
"""

import asyncio
import logging
import random
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from service.api.access import Access
from service.api.errors import PROBLEM_JSON, Problem, problem_of
from service.metrics import Metrics

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_REQUEST_ID = 128
CLIENT_LEFT = 499
"""Counted and logged where the connection closed before the request was whole."""


@dataclass(slots=True)
class HotRequest:
    """A request of a hot route: its bytes, and the few headers that matter."""

    query: bytes
    headers: dict[bytes, bytes]
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes | bytearray
    begun: float
    request_id: str
    is_abandoned: Callable[[], bool] | None
    log: dict[str, Any]
    """What the handler adds to the request's log line."""

    @property
    def content_type(self) -> str:
        """Without parameters, lower case; empty when there is none."""
        return _media_type(self.headers.get(b"content-type", b""))


class Answer(NamedTuple):
    """What a hot handler returns."""

    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class HotRoute(Protocol):
    """A handler and how its path is matched."""

    template: str
    oip: bool

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, or None when it is another route's."""

    async def answer(self, request: HotRequest, path: dict[str, str]) -> Answer:
        """The answer, or an error of the status table."""


class Edge:
    """Routes, reads bodies, turns errors into problems, counts and logs."""

    def __init__(
        self,
        app: Asgi,
        *,
        routes: list[HotRoute],
        metrics: Metrics,
        access: Access,
        max_body_bytes: int,
        log_request: Callable[[dict[str, Any]], None],
    ) -> None:
        self._app, self._routes, self._metrics, self._access = app, routes, metrics, access
        self._max_body_bytes, self._log_request = max_body_bytes, log_request

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI entry."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        begun = time.perf_counter()
        path: str = scope["path"]
        for route in self._routes:
            found = route.match(path)
            if found is not None:
                return self._hot(route, found, scope, receive, send, begun)
        return self._cold(scope, receive, send, begun)

    async def _hot(  # noqa: PLR0917 - what ASGI hands on, and the match
        self,
        route: HotRoute,
        path: dict[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
        begun: float,
    ) -> None:
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        log: dict[str, Any] = {
            "request_id": request_id,
            "method": scope["method"],
            "route": route.template,
        }
        try:
            if scope["method"] != "POST":
                raise Problem(
                    "method-not-allowed",
                    f"{scope['method']} is not allowed here; use POST",
                    headers={"Allow": "POST"},
                )
            _check_accept(headers)
            log["key"] = self._access.check(scope["headers"], "predict")
            body = await self._read(headers, receive)
            if b"content-encoding" in headers:
                body = await asyncio.to_thread(
                    inflated, body, headers[b"content-encoding"], self._max_body_bytes
                )
            request = HotRequest(
                scope["query_string"],
                headers,
                scope["headers"],
                body,
                begun,
                request_id,
                _abandoned(receive),
                log,
            )
            answer = await route.answer(request, path)
            status, content, content_type = 200, answer.body, answer.content_type
            extra = list(answer.headers)
        except ClientLeft:
            self._metrics.request(route.template, CLIENT_LEFT, begun, request_id)
            self._log(log, CLIENT_LEFT, begun)
            return
        except Exception as error:
            problem = problem_of(error)
            if problem.kind == "internal":
                logger.exception("request %s failed", request_id)
            status, content = problem.status, problem.body(oip=route.oip)
            content_type = b"application/json" if route.oip else PROBLEM_JSON.encode()
            extra = [(k.lower().encode(), v.encode()) for k, v in problem.headers.items()]
            log["problem"] = problem.kind  # never the detail, which may quote an input
        self._metrics.request(route.template, status, begun, request_id)
        extra += [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(content)),
            (b"x-request-id", request_id.encode("latin-1")),
        ]
        await send({"type": "http.response.start", "status": status, "headers": extra})
        await send({"type": "http.response.body", "body": content})
        self._log(log, status, begun)

    def _log(self, log: dict[str, Any], status: int, begun: float) -> None:
        log["status"], log["seconds"] = status, time.perf_counter() - begun
        self._log_request(log)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | bytearray:
        """The whole body. Raises Problem when it is larger than the limit, before it is read where that is known."""
        limit = self._max_body_bytes
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise Problem(
                "too-large", f"the body has {int(declared)} bytes; at most {limit} are taken"
            )
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False) and len(first) <= limit:
            return first
        body = bytearray(first)
        while message.get("more_body", False):
            if len(body) > limit:
                break
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            body += message.get("body", b"")
        if len(body) > limit:
            raise Problem(
                "too-large",
                f"the body has more than {limit} bytes, which are the most that are taken",
            )
        return body

    async def _cold(self, scope: Scope, receive: Receive, send: Send, begun: float) -> None:
        """FastAPI's answer, counted under its route template, with the request id."""
        request_id = _request_id(dict(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        limited = self._limited(scope, receive)

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(route, status, begun, request_id)
            await send(message)

        try:
            await self._app(scope, limited, wrapped)
        finally:
            log = {
                "request_id": request_id,
                "method": scope["method"][:20],
                "route": getattr(scope.get("route"), "path", "other"),
            }
            if "by" in scope["state"]:
                log["key"] = scope["state"]["by"]
            self._log(log, status, begun)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that raises Problem when more than the limit comes."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        taken = int(declared) if declared.isdigit() else 0
        limit, seen = self._max_body_bytes, 0

        async def limited() -> Message:
            nonlocal seen
            if taken > limit:
                raise Problem("too-large", f"the body has {taken} bytes; at most {limit} are taken")
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise Problem(
                    "too-large",
                    f"the body has more than {limit} bytes, which are the most that are taken",
                )
            return message

        return limited


class ClientLeft(Exception):
    """The connection closed before the request was whole."""


@lru_cache(maxsize=256)
def _media_type(header: bytes) -> str:
    return header.split(b";")[0].strip().lower().decode("latin-1")


_random_bits = random.Random().getrandbits  # noqa: S311 - names a request, and guards nothing


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is printable and short, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.isprintable():
        return given
    return f"{_random_bits(128):032x}"


def _check_accept(headers: dict[bytes, bytes]) -> None:
    accept = headers.get(b"accept", b"*/*")
    if not (
        b"*/*" in accept
        or b"json" in accept
        or b"application/*" in accept
        or b"octet-stream" in accept
    ):
        raise Problem(
            "not-acceptable",
            f"answers are application/json; the request accepts {accept[:80].decode('latin-1')}",
        )


def inflated(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes:
    """A gzip or deflate body as it was, never more of it than the limit. Raises Problem."""
    name = encoding.strip().lower()
    if name in {b"", b"identity"}:
        return bytes(body)
    if name not in _WINDOW:
        shown = name[:40].decode("latin-1")
        raise Problem(
            "unsupported-media-type",
            f"content encoding '{shown}' is not taken; expected gzip or deflate",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    reader = zlib.decompressobj(_WINDOW[name])
    try:
        whole = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise Problem("malformed", f"the body is not {name.decode()}: {error}") from None
    if len(whole) > limit:
        raise Problem(
            "too-large", f"the body has more than {limit} bytes, which are the most that are taken"
        )
    if not reader.eof or reader.unused_data:
        raise Problem("malformed", f"the body is not one whole {name.decode()} stream")
    return whole


_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def _abandoned(receive: Receive) -> Callable[[], bool] | None:
    """Whether the client has gone, where the server tells: uvicorn keeps it beside `receive`.

    ASGI has only `await receive()` for it, which would cost every request a task of its own.
    """
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: bool(cycle.disconnected)) if hasattr(cycle, "disconnected") else None
