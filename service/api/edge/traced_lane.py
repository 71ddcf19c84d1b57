"""The scoring lane of a service with traces: each request runs in a context with its span."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from service.api.edge.bodies import Receive
from service.api.edge.known_headers import Head, Pairs
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Match, Request, Response, Route, Send
from service.batching.work import Connection


class TracedLane(ScoringLane):
    """A lane that starts a span when a request arrives and ends it when the request is counted."""

    def __init__(
        self, routes: Sequence[Route], *, start_span: Callable[[str, Pairs], None], **common: Any
    ) -> None:
        """Make the lane.

        start_span: starts a span in the current context; it gets the method and the headers.
        common: the arguments of ScoringLane.
        """
        super().__init__(routes, **common)
        self._start_span = start_span

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
        """Accept a request as ScoringLane does, in a new context with its span."""
        context = copy_context()
        context.run(self._start_span, "POST", head.headers)
        # In a copy: `_count` enters the context itself, and a context cannot be entered twice.
        context.copy().run(
            partial(
                super().begin,
                match,
                head,
                query=query,
                body=body,
                connection=connection,
                send=_TracedSend(context, send),
            )
        )

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
        """Answer a request as ScoringLane does, with its span in the running task's context."""
        self._start_span(method, head.headers)
        return await super().answer(
            match,
            head,
            method=method,
            query=query,
            receive=receive,
            connection=connection,
            begun=begun,
        )

    def _send_to(self, answered: "asyncio.Future[Response | None]") -> Send:
        return _TracedSend(copy_context(), super()._send_to(answered))

    def _count(
        self,
        route: Route,
        requests: Sequence[Request],
        status: int,
        facts: Sequence[dict[str, Any]],
        now: float,
    ) -> None:
        for request, own in zip(requests, facts, strict=True):
            assert isinstance(request.send, _TracedSend)
            request.send.context.run(super()._count, route, [request], status, [own], now)


class _TracedSend:
    """Sends a traced request's response, and keeps the context that holds the request's span."""

    __slots__ = ("_send", "context")

    def __init__(self, context: Context, send: Send) -> None:
        self.context, self._send = context, send

    def __call__(self, response: Response | None) -> None:
        self._send(response)
