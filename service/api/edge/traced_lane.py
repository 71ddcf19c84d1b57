"""The hot routes where traces are asked for: each request in a context of its own."""

from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from service.api.edge.bodies import Receive
from service.api.edge.known_headers import Pairs
from service.api.edge.lane import HotLane
from service.api.edge.request import HotRequest, Match, Respond, Response, Route
from service.batching.waiting import Stepped

T = TypeVar("T")


class TracedLane(HotLane):
    """A lane whose requests each run in a context of their own: what steps them (service/batching/waiting.py) gives them none."""

    def __init__(
        self, routes: list[Route], *, begin: Callable[[str, Pairs], None], **common: Any
    ) -> None:
        super().__init__(routes, **common)
        self._begin = begin

    def begin(self, match: Match, request: HotRequest, respond: Respond) -> None:
        """See HotLane."""
        Stepped(self.answer(match, request), respond)

    def answer(
        self, match: Match, request: HotRequest, receive: Receive | None = None
    ) -> Coroutine[Any, Any, Response | None]:
        """See HotLane."""
        return _InContext(self._traced(match, request, receive))

    async def _traced(
        self, match: Match, request: HotRequest, receive: Receive | None
    ) -> Response | None:
        self._begin(request.method, request.head.headers)
        request.context = copy_context()
        return await super().answer(match, request, receive)

    def _count(self, requests: Sequence[HotRequest], status: int) -> None:
        for request in requests:
            assert request.context is not None
            request.context.run(super()._count, [request], status)


class _InContext(Coroutine[Any, Any, T]):
    """A coroutine that runs in a context of its own, however it is stepped."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine, self._context = coroutine, copy_context()

    def send(self, value: Any) -> Any:
        return self._context.run(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._context.run(self._coroutine.throw, *error)

    def close(self) -> None:
        self._context.run(self._coroutine.close)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()  # in a task, which has a context of its own
