"""The routes that score, answered from bytes to bytes: matched, checked, counted and logged here, whatever carries them.

A FastAPI route costs more than a small model; the routes that score go around it, and only they do.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.api.edge.access import Access
from service.api.edge.bodies import ClientLeft, Receive, inflated, read_body
from service.api.edge.errors import PROBLEM_JSON, Problem, problem_of
from service.api.edge.known_headers import KnownHeads
from service.api.edge.request import HotRequest, Match, Respond, Response, Route, ok
from service.batching.waiting import Stepped
from service.batching.work import Abandoned
from service.observe.metrics import Metrics

logger = logging.getLogger(__name__)

_MAX_PATHS = 1024
CLIENT_LEFT = 499
"""Counted and logged where the connection closed before the request was whole, or before it was scored."""


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
