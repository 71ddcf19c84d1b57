"""The lane matches, checks, counts, logs and answers scoring requests, instead of FastAPI.

FastAPI's routing would cost more than a small model. The connection (`protocol`, or ASGI) hands in
each request with a `send` function. The route queues the request with the lane's reply function.
When its batch has been scored, `_reply` gets all requests of the batch at once.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from service.api.edge.access import Access
from service.api.edge.bodies import ClientLeft, Held, Receive, Room, inflated, read_body
from service.api.edge.errors import PROBLEM_JSON, Problem, problem_of
from service.api.edge.known_headers import Head, KnownHeads
from service.api.edge.request import Answer, Later, Match, Request, Response, Route, Send
from service.batching.queue import Entry
from service.batching.work import LARGE_ANSWER_VALUES, Abandoned, Connection
from service.observe.metrics import Metrics
from service.process.executor import Executor
from service.process.machine import trim_heaps
from service.repository.on_demand import ModelRests

logger = logging.getLogger(__name__)

_MAX_PATHS = 1024
_MAX_KEPT_PATH = 256
_LARGE_BYTES = 2**20
_TRIM_SECONDS = 1.0
_facts_of = attrgetter("facts")
CLIENT_LEFT = 499
"""The status that is counted and logged when the client left before its answer."""


class ScoringLane:
    """All scoring routes, and the steps that they have in common."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        metrics: Metrics,
        access: Access,
        max_body_bytes: int,
        room: Room,
        read_seconds: float,
        log_requests: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """Make the lane of these routes.

        metrics: counts requests by route and status.
        access: checks the API key of each request.
        max_body_bytes: the largest body, before and after decompression.
        room: the memory for all bodies.
        read_seconds: the most seconds that a client may take to send a body.
        log_requests: gets the log lines of answered requests.
        """
        self._routes = [(route, partial(self._reply, route)) for route in routes]
        self._metrics, self._access, self._log_requests = metrics, access, log_requests
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self.room = room
        self._matched: dict[str, Match] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._uncounted: list[tuple[Route, Sequence[Request], list[dict[str, Any]], float]] = []
        """Answers for `_count`: the routes, the requests, the facts, and when they were sent."""
        self._trim: asyncio.TimerHandle | None = None
        self._encoder = Executor(1, "encoder")  # one answer is encoded at a time
        self.heads = KnownHeads()

    def match(self, path: str) -> Match | None:
        """Find the route of a path. None if it is not the path of a scoring route."""
        known = self._matched.get(path)
        if known is not None:
            return known
        for route, reply in self._routes:
            found = route.match(path)
            if found is not None:
                match = Match(route, found, reply)
                if len(path) <= _MAX_KEPT_PATH:
                    if len(self._matched) >= _MAX_PATHS:
                        self._matched.clear()
                    self._matched[path] = match
                return match
        return None

    def begin(
        self,
        match: Match,
        head: Head,
        *,
        query: bytes,
        body: bytes,
        connection: Connection,
        send: Send,
    ) -> None:
        """Accept a POST with its complete body.

        query: the raw query string. connection: knows whether the client has left. send: called
        once with the response, now or later; with None if the client has left.
        """
        begun, key = time.perf_counter(), None
        try:
            if not head.accepts_json:
                raise _not_acceptable(head)
            key = self._access.check(head.headers, "predict")
        except Exception as error:  # noqa: BLE001 - the status table maps it to an answer
            request = Request(
                "POST", query, head, body, connection=connection, send=send, begun=begun
            )
            self._fail(match.route, request, error)
            return
        request = Request(
            "POST", query, head, body, connection=connection, send=send, begun=begun, key=key
        )
        route = match.route
        if b"content-encoding" in head.by_name:
            self._run(route, request, self._inflated(match, request))
            return
        try:
            found = route.begin(request, match.path, match.reply)
        except ModelRests as rests:
            found = self._once_loaded(match, request, rests)
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(route, request, error)
            return
        if found is not None:
            self._go_on(match, request, found)

    async def answer(
        self,
        match: Match,
        head: Head,
        *,
        method: str,
        query: bytes,
        receive: Receive,
        connection: Connection,
        begun: float,
    ) -> Response | None:
        """Read the body of a request from `receive`, and wait for the response.

        begun: time.perf_counter() when the request arrived. Returns None if the client has left.
        """
        answered: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        send = self._send_to(answered)
        request = Request(method, query, head, b"", connection=connection, send=send, begun=begun)
        with self.room.held() as held:
            try:
                if method != "POST":
                    raise Problem(
                        "method-not-allowed",
                        f"the method {method[:20]} is not allowed here; use POST",
                        headers={"Allow": "POST"},
                    )
                if not head.accepts_json:
                    raise _not_acceptable(head)
                key = self._access.check(head.headers, "predict")
                body = await read_body(
                    head.by_name,
                    receive,
                    self._max_body_bytes,
                    seconds=self._read_seconds,
                    held=held,
                )
                request = Request(
                    method,
                    query,
                    head,
                    body,
                    connection=connection,
                    send=send,
                    begun=begun,
                    key=key,
                    request_id=request.request_id,
                )
                if b"content-encoding" in head.by_name:
                    await self._inflated(match, request)
                else:
                    self._begin(match, request)
            except Exception as error:  # noqa: BLE001 - see begin
                self._fail(match.route, request, error)
            return await answered

    def _send_to(self, answered: "asyncio.Future[Response | None]") -> Send:
        """Make a `send` function that sets the result of a future."""
        return partial(_give, answered)

    # -- from a request to the queue

    def _begin(self, match: Match, request: Request) -> None:
        """Let the route queue a request, answer it at once, or start the work that comes first."""
        try:
            found = match.route.begin(request, match.path, match.reply)
        except ModelRests as rests:
            found = self._once_loaded(match, request, rests)
        except Exception as error:  # noqa: BLE001 - see begin
            self._fail(match.route, request, error)
            return
        if found is not None:
            self._go_on(match, request, found)

    def _go_on(self, match: Match, request: Request, found: Answer | Later) -> None:
        """Send the answer if the route gave one at once, or run the rest of its work."""
        if isinstance(found, Answer):
            self._finish(match.route, [request], [found])
        else:
            self._run(match.route, request, self._unless_it_rests(match, request, found))

    async def _unless_it_rests(self, match: Match, request: Request, later: Later) -> Answer | None:
        """Run the rest of a request. If its model must be loaded first, begin again after that."""
        try:
            return await later
        except ModelRests as rests:
            await self._once_loaded(match, request, rests)
            return None

    async def _inflated(self, match: Match, request: Request) -> None:
        """Decompress the body in a thread, until the caller's deadline or `read_seconds` from now,
        and begin. The room counts the decompressed body until the response is sent.
        """
        held = self.room.held()
        try:
            body = await asyncio.to_thread(
                inflated,
                request.body,
                request.headers[b"content-encoding"],
                self._max_body_bytes,
                deadline=request.deadline(self._read_seconds),
                held=held,
            )
        except BaseException:
            held.release()
            raise
        if len(body) > _LARGE_BYTES:
            self._trim_soon()
        self._begin(match, request.with_body(body, send=partial(_sent, held, request.send)))

    async def _once_loaded(self, match: Match, request: Request, rests: ModelRests) -> None:
        """Begin a request again once its model is loaded.

        The wait has no limit unless the caller has set a deadline.
        """
        deadline = request.deadline(math.inf)
        left = deadline.at - time.monotonic()
        try:
            await asyncio.wait_for(rests.load(), None if left == math.inf else left)
        except TimeoutError:
            deadline.check(time.monotonic())
            raise
        self._begin(match, request)

    def _run(self, route: Route, request: Request, later: Later) -> None:
        """Run the rest of a request in a task."""
        task = asyncio.get_running_loop().create_task(self._waited(route, request, later))
        self._tasks.add(task)  # the loop itself does not keep tasks alive
        task.add_done_callback(self._tasks.discard)

    async def _waited(self, route: Route, request: Request, later: Later) -> None:
        try:
            answer = await later
        except Exception as error:  # noqa: BLE001 - see begin
            self._fail(route, request, error)
        else:
            if answer is not None:
                self._finish(route, [request], [answer])
                if len(answer.body) > _LARGE_BYTES:
                    self._trim_soon()
        if len(request.body) > _LARGE_BYTES:
            self._trim_soon()

    def _trim_soon(self) -> None:
        """Return the memory of large bodies to the system soon; the allocator would keep it."""
        if self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._trim_heaps)

    def _trim_heaps(self) -> None:
        self._trim = None
        asyncio.get_running_loop().run_in_executor(None, trim_heaps)

    # -- from the queue to the client

    def _reply(self, route: Route, entries: list[Entry]) -> None:
        """Encode and send the answers to queue entries of one route that finished together."""
        requests: list[Request] = []
        scored: list[Entry] = []
        values = 0
        for entry in entries:
            if entry.error is None:
                requests.append(entry.ask.request)
                scored.append(entry)
                values += entry.work.answer_values
            else:
                self._fail(route, entry.ask.request, entry.error)
        if not scored:
            return
        if values > LARGE_ANSWER_VALUES:
            for entry in scored:
                self._run(route, entry.ask.request, self._encoded_apart(route, entry))
            return
        try:
            answers = route.encode(scored)
        except Exception as error:  # noqa: BLE001 - one request may break encoding; the others get their answers
            if len(scored) == 1:
                self._fail(route, requests[0], error)
                return
            for entry in scored:
                self._reply(route, [entry])
        else:
            self._finish(route, requests, answers)

    async def _encoded_apart(self, route: Route, entry: Entry) -> Answer:
        """Encode the answer to one request in a thread: on the loop it would delay the others."""

        def encoded() -> Answer:
            entry.join()
            return route.encode([entry])[0]

        return await asyncio.get_running_loop().run_in_executor(self._encoder, encoded)

    def _finish(self, route: Route, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Count, log and send the answers to requests of one route.

        A single answer is counted in the next turn of the loop, after the loop has written it to
        its connection at the end of this one (`Batcher` records it likewise).
        """
        facts, now = list(map(_facts_of, answers)), time.perf_counter()
        if len(requests) == 1:
            self._uncounted.append((route, requests, facts, now))
            asyncio.get_running_loop().call_soon(self._count_sent)
        else:
            self._count_sent()
            self._count(route, requests, 200, facts, now)
        for request, (body, _, content_type, headers) in zip(requests, answers, strict=True):
            try:
                request.send((200, content_type, body, request.request_id.encode(), headers))
            except Exception:
                logger.exception(
                    "the answer to request %s could not be sent; report this with the traceback",
                    request.request_id,
                )

    def _fail(self, route: Route, request: Request, error: Exception) -> None:
        """Answer a request with the problem for an error."""
        self._count_sent()
        if isinstance(error, (ClientLeft, Abandoned)):
            self._count(route, [request], CLIENT_LEFT, [{}], time.perf_counter())
            request.send(None)
            return
        problem, with_error = problem_of(error), route.with_error
        if problem.kind == "internal":
            logger.error(
                "request %s got status 500; report this with the traceback",
                request.request_id,
                exc_info=error,
            )
        # The traceback's frames refer to the request, and to a future that refers to the error:
        # without this, a large body would stay in memory until the next garbage collection.
        error.__traceback__ = error.__context__ = None
        # Only the kind: the detail may quote an input, which no log line may contain.
        facts = [{"problem": problem.kind}]
        self._count(route, [request], problem.status, facts, time.perf_counter())
        response = (
            problem.status,
            b"application/json" if with_error else PROBLEM_JSON.encode(),
            problem.body(with_error=with_error),
            request.request_id.encode(),
            tuple((k.lower().encode(), v.encode()) for k, v in problem.headers.items()),
        )
        request.send(response)

    def _count_sent(self) -> None:
        """Count the answers that wait for it, before a later one is counted."""
        if self._uncounted:
            uncounted, self._uncounted = self._uncounted, []
            for route, requests, facts, now in uncounted:
                self._count(route, requests, 200, facts, now)

    def _count(
        self,
        route: Route,
        requests: Sequence[Request],
        status: int,
        facts: Sequence[dict[str, Any]],
        now: float,
    ) -> None:
        """Count and log requests answered at `now`. A failure here does not affect the answers."""
        template = route.template
        try:
            seconds = self._metrics.requests(template, status, requests, now)
        except Exception:
            logger.exception(
                "answered requests of %s are missing in the metrics; report this with the "
                "traceback",
                template,
            )
            seconds = [now - request.begun for request in requests]
        lines = []
        for request, own, took in zip(requests, facts, seconds, strict=True):
            lines.append(
                {
                    "request_id": request.request_id,
                    "method": request.method,
                    "route": template,
                    "key": request.key,
                    **own,
                    "status": status,
                    "seconds": took,
                }
            )
        try:
            self._log_requests(lines)
        except Exception:
            logger.exception(
                "answered requests of %s are missing in the log; report this with the traceback",
                template,
            )


def _not_acceptable(head: Head) -> Problem:
    accept = head.by_name[b"accept"][:80].decode("latin-1")
    return Problem(
        "not-acceptable",
        f"answers are application/json, and the request accepts {accept}; add application/json",
    )


def _sent(held: Held, send: Send, response: Response | None) -> None:
    held.release()
    send(response)


def _give(answered: "asyncio.Future[Response | None]", response: Response | None) -> None:
    if not answered.done():  # otherwise the request's task was cancelled
        answered.set_result(response)
