"""The routes that score, answered from bytes to bytes: matched, checked, counted and logged here, whatever carries them.

A FastAPI route costs more than a small model; the routes that score go around it, and only they do.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from service.api.access import Access
from service.api.bodies import ClientLeft, Receive, inflated, read_body
from service.api.errors import PROBLEM_JSON, Problem, problem_of
from service.metrics import Metrics
from service.work import Abandoned

logger = logging.getLogger(__name__)

_MAX_REQUEST_ID = 128
_MAX_PATHS = 1024
CLIENT_LEFT = 499
"""Counted and logged where the connection closed before the request was whole, or before it was scored."""

Pairs = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class HotRequest:
    """A request of a hot route: its bytes, and the few headers that matter."""

    method: str
    query: bytes
    headers: dict[bytes, bytes]
    raw_headers: Pairs
    body: bytes | bytearray
    begun: float
    """time.perf_counter() when it arrived."""
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


class Response(NamedTuple):
    """An answer or a problem, ready for the wire."""

    status: int
    content_type: bytes
    body: bytes
    request_id: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class HotRoute(Protocol):
    """A handler and how its path is matched."""

    template: str
    oip: bool

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, or None when it is another route's."""

    async def answer(self, request: HotRequest, path: dict[str, str]) -> Answer:
        """The answer, or an error of the status table."""


Match = tuple[HotRoute, dict[str, str]]


class HotLane:
    """All hot routes and what is common to them."""

    def __init__(
        self,
        routes: list[HotRoute],
        *,
        metrics: Metrics,
        access: Access,
        max_body_bytes: int,
        read_seconds: float,
        log_request: Callable[[dict[str, Any]], None],
    ) -> None:
        self._routes, self._metrics, self._access = routes, metrics, access
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self._log_request = log_request
        self._matched: dict[str, Match] = {}

    def match(self, path: str) -> Match | None:
        """The route of a path and the path's parameters; None when it is not a hot one."""
        known = self._matched.get(path)
        if known is not None:
            return known
        for route in self._routes:
            found = route.match(path)
            if found is not None:
                if len(self._matched) >= _MAX_PATHS:
                    self._matched.clear()
                self._matched[path] = route, found
                return route, found
        return None

    async def answer(
        self, match: Match, request: HotRequest, receive: Receive | None = None
    ) -> Response | None:
        """Answer a request whose body is there, or is still to come from `receive`. None when the client left."""
        route, path = match
        log = request.log
        try:
            if request.method != "POST":
                raise Problem(
                    "method-not-allowed",
                    f"{request.method} is not allowed here; use POST",
                    headers={"Allow": "POST"},
                )
            _check_accept(request.headers)
            log["key"] = self._access.check(request.raw_headers, "predict")
            if receive is not None:
                request.body = await read_body(
                    request.headers, receive, self._max_body_bytes, seconds=self._read_seconds
                )
            if b"content-encoding" in request.headers:
                encoding = request.headers[b"content-encoding"]
                request.body = await asyncio.to_thread(
                    inflated, request.body, encoding, self._max_body_bytes
                )
            found = await route.answer(request, path)
            response = Response(
                200, found.content_type, found.body, request.request_id.encode(), found.headers
            )
        except (ClientLeft, Abandoned):
            self._count(route, CLIENT_LEFT, request)
            return None
        except Exception as error:  # noqa: BLE001 - the status table knows what it is to the caller
            response = self._problem(error, request, oip=route.oip)
        self._count(route, response.status, request)
        return response

    def _problem(self, error: Exception, request: HotRequest, *, oip: bool) -> Response:
        problem = problem_of(error)
        if problem.kind == "internal":
            logger.error("request %s failed", request.request_id, exc_info=error)
        request.log["problem"] = problem.kind  # never the detail, which may quote an input
        return Response(
            problem.status,
            b"application/json" if oip else PROBLEM_JSON.encode(),
            problem.body(oip=oip),
            request.request_id.encode(),
            tuple((k.lower().encode(), v.encode()) for k, v in problem.headers.items()),
        )

    def _count(self, route: HotRoute, status: int, request: HotRequest) -> None:
        """Record a request that has its answer; what cannot be recorded costs nobody an answer."""
        log = request.log
        try:
            seconds = self._metrics.request(
                route.template, status, request.begun, request.request_id
            )
            log["status"], log["seconds"] = status, seconds
            self._log_request(log)
        except Exception:
            logger.exception(
                "request %s was answered and could not be recorded", request.request_id
            )


def hot_request(
    *,
    method: str,
    template: str,
    query: bytes,
    raw_headers: Pairs,
    body: bytes,
    is_abandoned: Callable[[], bool] | None,
    begun: float,
) -> HotRequest:
    """A request with its id and the beginning of its log line."""
    headers = dict(raw_headers)
    request_id = request_id_of(headers)
    log = {"request_id": request_id, "method": method, "route": template}
    return HotRequest(
        method, query, headers, raw_headers, body, begun, request_id, is_abandoned, log
    )


@lru_cache(maxsize=256)
def _media_type(header: bytes) -> str:
    return header.split(b";")[0].strip().lower().decode("latin-1")


_random_bits = random.Random().getrandbits  # noqa: S311 - names a request, and guards nothing


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is printable and short, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and 0 < len(given) <= _MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if text.isascii() and text.isprintable():
            return text
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
