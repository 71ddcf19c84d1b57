"""A scoring request, its answer, and the interface that every scoring route has."""

import http
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from service.api.edge.known_headers import Head
from service.batching.queue import Entry, Reply
from service.batching.work import Connection, Deadline
from service.wire.digits import whole_number
from service.wire.faults import Malformed

TIMEOUT_HEADER = b"x-request-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000
_MAX_REQUEST_ID = 128
_random_bits = random.Random().getrandbits  # noqa: S311 - it names a request and protects nothing

new = tuple.__new__
"""Creates a NamedTuple three times as fast as its constructor; used three times per request."""
Response: TypeAlias = tuple[int, bytes, bytes, bytes, tuple[tuple[bytes, bytes], ...]]
"""(status, content type, body, request id, further headers) of an answer or a problem."""

_STATUS_LINE = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}

_KEPT = b"connection: keep-alive\r\n"

Send: TypeAlias = Callable[[Response | None], None]
"""Sends the response to a request. It gets None if the client has left."""


class Request:
    """A scoring request: its bytes, the name of its key, and where its response goes. Immutable."""

    __slots__ = (
        "begun",
        "body",
        "connection",
        "content_type",
        "head",
        "headers",
        "key",
        "method",
        "query",
        "request_id",
        "send",
    )

    def __init__(
        self,
        method: str,
        query: bytes,
        head: Head,
        body: bytes | bytearray,
        *,
        connection: Connection,
        send: Send,
        begun: float,
        key: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """Make a request.

        method, query, head, body: as received; the body is decompressed.
        connection: knows whether the client has left.
        send: called once with the response.
        begun: time.perf_counter() when the request arrived.
        key: the name of its API key; None before the key was checked.
        request_id: its id. None: use the one that the client sent, or make one.
        """
        self.method, self.query, self.head, self.body = method, query, head, body
        self.headers, self.content_type = head.by_name, head.content_type
        self.connection, self.send, self.begun, self.key = connection, send, begun, key
        if request_id is None:
            given = b"x-request-id" in head.by_name
            request_id = request_id_of(head.by_name) if given else f"{_random_bits(128):032x}"
        self.request_id = request_id

    def with_body(
        self, body: bytes | bytearray, *, query: bytes | None = None, send: Send | None = None
    ) -> "Request":
        """Return a copy with this body and, if given, another query or `send`."""
        return Request(
            self.method,
            self.query if query is None else query,
            self.head,
            body,
            connection=self.connection,
            send=self.send if send is None else send,
            begun=self.begun,
            key=self.key,
            request_id=self.request_id,
        )

    def deadline(self, default_seconds: float, own_seconds: float | None = None) -> Deadline:
        """Return when the caller stops waiting: the earliest of three limits.

        default_seconds: the service's default. own_seconds: the limit that the body sets, if any.
        The third is the header X-Request-Timeout-Ms. Raises Malformed if that is invalid.
        """
        given = self.headers.get(TIMEOUT_HEADER)
        now = time.monotonic()
        if given is None and own_seconds is None:
            return tuple.__new__(
                Deadline, (now + default_seconds, False)
            )  # this takes a third of the time
        wanted = [] if own_seconds is None else [own_seconds]
        if given is not None:
            milliseconds = whole_number(given, below=MAX_TIMEOUT_MS + 1)
            if not milliseconds:
                shown = given[:40].decode("latin-1")
                raise Malformed(
                    f"X-Request-Timeout-Ms is '{shown}'; expected a whole number from 1 to "
                    f"{MAX_TIMEOUT_MS}"
                )
            wanted.append(milliseconds / 1000)
        else:
            wanted.append(default_seconds)
        waited = time.perf_counter() - self.begun
        return Deadline(now - waited + min(wanted), is_hard=True)


class Answer(NamedTuple):
    """A route's successful answer to a request."""

    body: bytes
    facts: dict[str, Any]
    """Facts for the log line of the request."""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Later: TypeAlias = Coroutine[Any, Any, Answer | None]
"""The remaining work of a request. It returns the answer, or None once the request is queued."""


class Route(Protocol):
    """A scoring route. It queues requests one by one, and encodes answers a batch at a time."""

    template: str
    """The path template that metrics and the log show."""
    with_error: bool
    """Whether its problems have the member `error`, as those of the Open Inference Protocol and of
    TensorFlow Serving have.
    """

    def match(self, path: str) -> dict[str, str] | None:
        """Return the path's parameters by name; None if the path belongs to another route."""

    def begin(self, request: Request, path: dict[str, str], reply: Reply) -> Answer | Later | None:
        """Queue a request, in an entry with this reply and the request as its caller.

        Returns None once it is queued, an answer if no scoring is needed, or a coroutine if the
        request must wait before it can be queued. Both this method and the coroutine raise the
        errors of the status table (`errors.kinds`).
        """

    def encode(self, entries: Sequence[Entry]) -> Sequence[Answer]:
        """Encode the answers to entries of this route that were scored together, in their order."""
        ...


class Match(NamedTuple):
    """A route, the parameters of the path, and the reply for its queue entries."""

    route: Route
    path: dict[str, str]
    reply: Reply


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """Return the client's X-Request-Id if it is printable and short, else a new id."""
    given = headers.get(b"x-request-id")
    if given is not None and 0 < len(given) <= _MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if text.isascii() and text.isprintable():
            return text
    return f"{_random_bits(128):032x}"


def response_bytes(
    response: Response, *, keep_alive: bool, with_body: bool = True, is_http_1_0: bool = False
) -> bytes:
    """The bytes of a response; without `with_body`, only its head.

    is_http_1_0: the request is HTTP/1.0, whose client must be told that the connection stays open.
    """
    status, content_type, body, request_id, headers = response
    extra = (_KEPT if is_http_1_0 else b"") if keep_alive else b"connection: close\r\n"
    if headers:
        extra += b"".join([b"%b: %b\r\n" % pair for pair in headers])
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
        _STATUS_LINE[status],
        extra,
        content_type,
        len(body),
        request_id,
        body if with_body else b"",
    )


def not_http(data: "memoryview[int]", error: Exception) -> str:
    """Say what the received bytes are, if they are a known protocol other than HTTP/1.1."""
    begin = bytes(data[:16])
    if begin[:2] == b"\x16\x03":
        return "the bytes received begin TLS, and this port has plain HTTP; use http://, or a proxy"
    if begin.startswith(b"PRI * HTTP/2"):
        return "the bytes received begin HTTP/2; expected HTTP/1.1, so set the client to that"
    if begin.startswith((b"PROXY ", b"\r\n\r\n\x00\r\nQUIT")):
        return (
            "the bytes received begin with the PROXY protocol; let the proxy send HTTP only "
            "(HAProxy: without send-proxy)"
        )
    return f"the bytes received are not an HTTP/1.1 request: {error}"
