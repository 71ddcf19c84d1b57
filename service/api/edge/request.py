"""A request of a route that scores, what answers it, and what its answer is made of."""

import random
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from service.api.edge.known_headers import Head

_MAX_REQUEST_ID = 128


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

    lane: "Lane"
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


class Lane(Protocol):
    """Where requests come from and answers go."""

    def succeed(self, requests: Sequence[HotRequest], responses: Sequence[Response]) -> None:
        """Give requests of one route their answers."""

    def fail(self, request: HotRequest, error: Exception) -> None:
        """Answer a request with the problem that an error is to its caller."""


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


_random_bits = random.Random().getrandbits  # noqa: S311 - names a request, and guards nothing


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is printable and short, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and 0 < len(given) <= _MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if text.isascii() and text.isprintable():
            return text
    return f"{_random_bits(128):032x}"
