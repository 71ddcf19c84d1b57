"""uvicorn's HTTP protocol with a short way for hot requests: no ASGI scope, no task, one write.

A request takes it when it is a POST of a hot route and came whole with the bytes that began it. Every other request, and
every one that is unusual (pipelined, chunked, HTTP/1.0, Expect, a slow reader), goes uvicorn's own way.
"""

import http
import logging
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.hot import HotLane, Match, Response, hot_request
from service.waiting import Stepped

logger = logging.getLogger(__name__)

_STATUS_LINE = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}
_FAILED = Response(500, b"text/plain", b"Internal Server Error", b"-")


class _NoEvent:
    """Nobody waits for a hot request's messages."""

    def set(self) -> None:
        """Nothing to do."""


class _HotCycle:
    """What uvicorn looks at of the request that a connection is busy with."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    message_event = _NoEvent()

    def __init__(self, *, keep_alive: bool) -> None:
        self.response_complete = self.disconnected = False
        self.keep_alive = keep_alive

    def is_abandoned(self) -> bool:
        """Whether the client has gone."""
        return self.disconnected


class HotProtocol(HttpToolsProtocol):
    """One connection. The application must be an Edge."""

    _match: Match | None = None
    """The hot route of the request that is being read; None while none is, or once it went uvicorn's way."""
    _query = b""
    _body = b""
    _expected = 0
    _keep_alive = True

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        super().data_received(data)
        if self._match is not None and not self.transport.is_closing():
            self._go_cold()  # it did not come whole; nothing of the short way waits for a client

    def on_message_begin(self) -> None:
        """Parser: a request begins. uvicorn's scope is made for those that need one."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._match = None

    def on_headers_complete(self) -> None:
        """Parser: all headers are there."""
        self._match = self._hot_match()
        if self._match is None:
            self._go_cold()
        else:
            self._body = b""

    def on_body(self, body: bytes) -> None:
        """Parser: a part of the body."""
        if self._match is None:
            super().on_body(body)
        else:
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """Parser: the request is whole."""
        match, self._match = self._match, None
        if match is None:
            super().on_message_complete()
            return
        cycle = _HotCycle(keep_alive=self.parser.should_keep_alive())
        self.cycle = cycle  # type: ignore[assignment]
        request = hot_request(
            method="POST",
            template=match[0].template,
            query=self._query,
            raw_headers=self.headers,
            body=self._body,
            is_abandoned=cycle.is_abandoned,
            begun=time.perf_counter(),
        )
        lane: HotLane = self.app.lane
        Stepped(
            lane.answer(match, request),
            lambda response, error: self._respond(cycle, response, error),
        )

    def _hot_match(self) -> Match | None:
        parser, cycle = self.parser, self.cycle
        if (
            parser.get_method() != b"POST"
            or self.expect_100_continue
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused
            or parser.should_upgrade()
            or parser.get_http_version() != "1.1"
        ):
            return None
        path, _, query = self.url.partition(b"?")
        if b"%" in path or b"#" in query or not path.startswith(b"/"):
            return None
        self._query = query
        lane: HotLane = self.app.lane
        return lane.match(path.decode("latin-1"))

    def _go_cold(self) -> None:
        """Hand the request, as far as it is there, to uvicorn."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        body, self._body = self._body, b""
        hot, self._match = self._match is not None, None
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        if hot and body:
            super().on_body(body)

    def _respond(
        self, cycle: _HotCycle, response: Response | None, error: BaseException | None
    ) -> None:
        if error is not None:
            logger.error("answering a request failed", exc_info=error)
            response = _FAILED
        cycle.response_complete = True
        cycle.keep_alive = cycle.keep_alive and not self.app.draining
        if cycle.disconnected or self.transport.is_closing():
            return
        if response is not None:
            self.transport.write(_wire(response, keep_alive=cycle.keep_alive))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()


def _wire(response: Response, *, keep_alive: bool) -> bytes:
    extra = b"".join(b"%b: %b\r\n" % pair for pair in response.headers)
    if not keep_alive:
        extra += b"connection: close\r\n"
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
        _STATUS_LINE[response.status],
        extra,
        response.content_type,
        len(response.body),
        response.request_id,
        response.body,
    )
