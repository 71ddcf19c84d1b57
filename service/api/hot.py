"""The routes that score, answered from bytes to bytes: matched, checked, counted and logged here, whatever carries them.

A FastAPI route costs more than a small model; the routes that score go around it, and only they do.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from service.api.access import Access
from service.api.bodies import ClientLeft, Receive, inflated, read_body
from service.api.errors import PROBLEM_JSON, Problem, problem_of
from service.api.known_heads import Head, KnownHeads
from service.metrics import Metrics
from service.waiting import Stepped
from service.work import Abandoned

logger = logging.getLogger(__name__)

_MAX_REQUEST_ID = 128
_MAX_PATHS = 1024
CLIENT_LEFT = 499
"""Counted and logged where the connection closed before the request was whole, or before it was scored."""


class HotRequest:
    """A request of a hot route: its bytes, the few headers that matter, and who waits for its answer."""

    __slots__ = (
        "begun",
        "body",
        "content_type",
        "context",
        "head",
        "headers",
        "is_abandoned",
        "key",
        "lane",
        "log",
        "method",
        "query",
        "request_id",
        "respond",
        "route",
    )

    lane: "HotLane"
    route: "Route"
    respond: "Respond"

    def __init__(
        self,
        method: str,
        query: bytes,
        head: Head,
        body: bytes,
        *,
        is_abandoned: Callable[[], bool] | None,
        begun: float,
    ) -> None:
        """Begun: time.perf_counter() when it arrived. The lane that takes it sets who waits."""
        self.method, self.query, self.begun = method, query, begun
        self.head, self.headers, self.content_type = head, head.by_name, head.content_type
        self.body: bytes | bytearray = body
        self.is_abandoned = is_abandoned
        self.request_id = request_id_of(head.by_name)
        self.key: str | None = None
        """The name of the API key."""
        self.log: dict[str, Any] = {}
        """What the handler adds to the request's log line."""
        self.context: Context | None = None
        """Where its span is, when it is traced."""


class Answer(NamedTuple):
    """What a hot handler returns."""

    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Response: TypeAlias = tuple[int, bytes, bytes, bytes, tuple[tuple[bytes, bytes], ...]]
"""An answer or a problem, ready for the wire: status, content type, body, request id and further headers. Made for each request,
so it has no class of its own."""


def ok(
    request: HotRequest,
    body: bytes,
    content_type: bytes = b"application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Response:
    """The response to a request that was answered."""
    return 200, content_type, body, request.request_id.encode(), headers


Respond: TypeAlias = Callable[[Response | None, BaseException | None], None]
"""Takes a response, once; None where the client left."""


class WaitingRoute(Protocol):
    """A handler that may wait for whatever it needs, and how its path is matched."""

    template: str
    oip: bool
    direct: Literal[False]

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, or None when it is another route's."""

    async def answer(self, request: HotRequest, path: dict[str, str]) -> Answer:
        """The answer, or an error of the status table."""


class DirectRoute(Protocol):
    """A handler that needs no coroutine for a request, and answers many at once."""

    template: str
    oip: bool
    direct: Literal[True]

    def match(self, path: str) -> dict[str, str] | None:
        """See WaitingRoute."""

    def begin(self, request: HotRequest, path: dict[str, str]) -> Coroutine[Any, Any, None] | None:
        """See to it that the lane's `succeed` or `fail` is called; what must wait for something first is returned.

        What it raises, or the coroutine does, is an error of the status table.
        """


Route: TypeAlias = WaitingRoute | DirectRoute
Match: TypeAlias = tuple[Route, dict[str, str]]


class HotLane:
    """All hot routes and what is common to them."""

    def __init__(
        self,
        routes: list[Route],
        *,
        metrics: Metrics,
        access: Access,
        max_body_bytes: int,
        read_seconds: float,
        log_requests: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._routes, self._metrics, self._access = routes, metrics, access
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self._log_requests = log_requests
        self._matched: dict[str, Match] = {}
        self.heads = KnownHeads()

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

    def begin(self, match: Match, request: HotRequest, respond: Respond) -> None:
        """Answer a request whose body is there: `respond` is called, now or later."""
        route, path = match
        if not route.direct or b"content-encoding" in request.headers:
            Stepped(self.answer(match, request), respond)
            return
        request.lane, request.route, request.respond = self, route, respond
        try:
            self._admit(request)
            later = route.begin(request, path)
        except Exception as error:  # noqa: BLE001 - the status table knows what it is to the caller
            self.fail(request, error)
        else:
            if later is not None:
                Stepped(later, partial(self._begun, request))

    async def answer(
        self, match: Match, request: HotRequest, receive: Receive | None = None
    ) -> Response | None:
        """The same for a request whose body may still have to come, from `receive`. None when the client left."""
        route, path = match
        answered: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        request.lane, request.route = self, route
        request.respond = partial(_give, answered)
        try:
            self._admit(request)
            if receive is not None:
                request.body = await read_body(
                    request.headers, receive, self._max_body_bytes, seconds=self._read_seconds
                )
            if b"content-encoding" in request.headers:
                encoding = request.headers[b"content-encoding"]
                request.body = await asyncio.to_thread(
                    inflated, request.body, encoding, self._max_body_bytes
                )
            if not route.direct:
                body, content_type, headers = await route.answer(request, path)
                self.succeed([request], [ok(request, body, content_type, headers)])
            elif (later := route.begin(request, path)) is not None:
                await later
        except Exception as error:  # noqa: BLE001 - see begin
            self.fail(request, error)
        return await answered

    def succeed(self, requests: Sequence[HotRequest], responses: Sequence[Response]) -> None:
        """Give requests of one route their answers, all counted before the first is sent."""
        self._count(requests, 200)
        for request, response in zip(requests, responses, strict=True):
            try:
                request.respond(response, None)
            except Exception:
                logger.exception("the answer to request %s could not be sent", request.request_id)

    def fail(self, request: HotRequest, error: Exception) -> None:
        """Answer a request with the problem that an error is to its caller."""
        if isinstance(error, (ClientLeft, Abandoned)):
            self._count([request], CLIENT_LEFT)
            request.respond(None, None)
            return
        problem, oip = problem_of(error), request.route.oip
        if problem.kind == "internal":
            logger.error("request %s failed", request.request_id, exc_info=error)
        request.log["problem"] = problem.kind  # never the detail, which may quote an input
        self._count([request], problem.status)
        response = (
            problem.status,
            b"application/json" if oip else PROBLEM_JSON.encode(),
            problem.body(oip=oip),
            request.request_id.encode(),
            tuple((k.lower().encode(), v.encode()) for k, v in problem.headers.items()),
        )
        request.respond(response, None)

    def _begun(self, request: HotRequest, _: None, error: BaseException | None) -> None:
        """What a direct route waited for is over."""
        if isinstance(error, Exception):
            self.fail(request, error)
        elif error is not None:
            request.respond(None, error)

    def _admit(self, request: HotRequest) -> None:
        if request.method != "POST":
            raise Problem(
                "method-not-allowed",
                f"{request.method} is not allowed here; use POST",
                headers={"Allow": "POST"},
            )
        head = request.head
        if not head.accepts_json:
            accept = head.by_name[b"accept"][:80].decode("latin-1")
            raise Problem(
                "not-acceptable", f"answers are application/json; the request accepts {accept}"
            )
        request.key = self._access.check(head.headers, "predict")

    def _count(self, requests: Sequence[HotRequest], status: int) -> None:
        """Record requests of one route that have their answers; what cannot be recorded costs nobody an answer."""
        route = requests[0].route.template
        try:
            seconds = self._metrics.requests(route, status, requests)
        except Exception:
            logger.exception("requests of %s were answered and could not be counted", route)
            seconds = [time.perf_counter() - request.begun for request in requests]
        lines = [
            {
                "request_id": request.request_id,
                "method": request.method,
                "route": route,
                "key": request.key,
                **request.log,
                "status": status,
                "seconds": took,
            }
            for request, took in zip(requests, seconds, strict=True)
        ]
        try:
            self._log_requests(lines)
        except Exception:
            logger.exception("requests of %s were answered and could not be logged", route)


def _give(
    answered: "asyncio.Future[Response | None]",
    response: Response | None,
    error: BaseException | None,
) -> None:
    if answered.done():  # cancelled
        return
    if error is None:
        answered.set_result(response)
    else:
        answered.set_exception(error)


_random_bits = random.Random().getrandbits  # noqa: S311 - names a request, and guards nothing


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is printable and short, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and 0 < len(given) <= _MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if text.isascii() and text.isprintable():
            return text
    return f"{_random_bits(128):032x}"
