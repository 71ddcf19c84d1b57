"""uvicorn's HTTP protocol with a short way for hot requests: no ASGI scope, no task, one write.

A request takes it when it is a POST of a hot route and came whole with the bytes that began it; where its header block is
known from an earlier request (known_heads.py) the parser is left out too. Every other request, and every one that is unusual
(pipelined, chunked, HTTP/1.0, Expect, a slow reader), goes uvicorn's own way.
"""

import http
import logging
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.edge.known_headers import Head, Pairs
from service.api.edge.lane import HotLane
from service.api.edge.request import HotRequest, Match, Response

logger = logging.getLogger(__name__)

_STATUS_LINE = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}
_FAILED: Response = (500, b"text/plain", b"Internal Server Error", b"-", ())


class _NoEvent:
    """Nobody waits for a hot request's messages."""

    def set(self) -> None:
        """Nothing to do."""


class _HotCycle:
    """What uvicorn looks at of the request that a connection is busy with; one for all hot requests of a connection."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    message_event = _NoEvent()

    def __init__(self) -> None:
        self.response_complete = self.disconnected = False
        self.keep_alive = True

    def is_abandoned(self) -> bool:
        """Whether the client has gone."""
        return self.disconnected


class HotProtocol(HttpToolsProtocol):
    """One connection. The application must be an Edge."""

    _match: Match | None = None
    """The hot route of the request that is being read; None while none is, or once it went uvicorn's way."""
    _query = b""
    _body = b""
    _mid_message = False
    """Whether the parser has read a part of a request."""
    _whole: Pairs | None = None
    """The headers of a hot request that came whole with the bytes that are being read."""
    _hot_cycle: _HotCycle | None = None
    _resting_since = 0.0
    """loop.time() when the last answer was given."""

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        lane: HotLane = self.app.lane
        at_rest = not self._mid_message and (self.cycle is None or self.cycle.response_complete)
        if at_rest and not self.flow.write_paused:
            known = lane.heads.find(data)
            if known is not None:
                path, query, head, body = known
                match = lane.match(path.decode())
                if match is not None:
                    self.headers = []  # another request than the last, to those who compare (slow_clients.py)
                    self._begin(match, query, head, body, keep_alive=True)
                    return
        self._whole = None
        super().data_received(data)
        if self._whole is not None:
            if at_rest and not self._mid_message:
                lane.heads.learn(data, self._whole)
            self._whole = None
        if self._match is not None and not self.transport.is_closing():
            self._go_cold()  # it did not come whole; nothing of the short way waits for a client

    def on_message_begin(self) -> None:
        """Parser: a request begins. uvicorn's scope is made for those that need one."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._match = None
        self._mid_message = True

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
        self._mid_message = False
        match, self._match = self._match, None
        if match is None:
            super().on_message_complete()
            return
        self._whole = self.headers
        head = Head(self.headers, len(self._body))
        self._begin(
            match, self._query, head, self._body, keep_alive=self.parser.should_keep_alive()
        )

    def _begin(
        self, match: Match, query: bytes, head: Head, body: bytes, *, keep_alive: bool
    ) -> None:
        """Answer a whole hot request."""
        cycle = self._hot_cycle
        if cycle is None:
            cycle = self._hot_cycle = _HotCycle()
        cycle.response_complete, cycle.keep_alive = False, keep_alive
        self.cycle = cycle  # type: ignore[assignment]
        request = HotRequest(
            "POST", query, head, body, is_abandoned=cycle.is_abandoned, begun=time.perf_counter()
        )
        lane: HotLane = self.app.lane
        lane.begin(match, request, self._respond)

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

    def _respond(self, response: Response | None, error: BaseException | None) -> None:
        cycle = self._hot_cycle
        assert cycle is not None
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

    # -- a connection that nobody uses: one timer that looks when the last answer was, in place of one for each request

    def on_response_complete(self) -> None:
        """An answer is whole: begin what was pipelined behind its request, or rest."""
        self._resting_since = self.loop.time()
        if self.pipeline or self.flow.read_paused:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._look_again_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection when it has rested for long enough; else look again."""
        self.timeout_keep_alive_task = None
        if self._mid_message or (self.cycle is not None and not self.cycle.response_complete):
            return  # its answer begins a new rest
        left = self._resting_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_again_in(left)
        else:
            super().timeout_keep_alive_handler()

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )


def _wire(response: Response, *, keep_alive: bool) -> bytes:
    status, content_type, body, request_id, headers = response
    extra = b"" if keep_alive else b"connection: close\r\n"
    if headers:
        extra += b"".join([b"%b: %b\r\n" % pair for pair in headers])
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
        _STATUS_LINE[status],
        extra,
        content_type,
        len(body),
        request_id,
        body,
    )
