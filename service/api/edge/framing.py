"""One HTTP/1.1 connection: uvicorn's protocol with stricter checks (RFC 9110, 9112) and limits.

The parser (llhttp) refuses bad chunk sizes, folded headers, bare CR and LF, and contradictory
lengths. This module refuses other faults that the parser accepts. It ignores trailers, answers
upgrade requests over HTTP/1.1, and limits the request target and the headers while they arrive. It
also answers a client that has closed only its sending side.
"""

import asyncio
import re
import socket
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.edge.errors import PROBLEM_JSON, Problem
from service.api.edge.known_headers import Pairs
from service.api.edge.request import not_http, response_bytes
from service.process.unread import LONG_BYTES
from service.wire.digits import whole_number

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_UPGRADE_FIELDS = frozenset({b"upgrade", b"http2-settings"})
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
_MAX_PIPELINED = 8
"""Reading pauses while this many requests wait behind the one that is being answered."""
_SLICE_BYTES = 4096
"""The most bytes passed to the parser at once, unless a longer part of a body is known to follow.
"""
_TURN_EVENTS = 500
"""The most message parts that a connection reads in one turn of the loop: about 1 ms of work."""
_MESSAGE_EVENTS = 25
"""A whole request counts as this many message parts."""
_LINGER_SECONDS = 2.0
"""Seconds that a refused client may keep sending: closing at once could destroy the answer."""
_MAX_DISCARDED_BYTES = 64 * 2**20
_HALF_CLOSED_SECONDS = 0.1
"""Seconds after which the service tests whether a half-closed client still reads."""
_PROBE_SECONDS = 0.05
_TCP_CLOSE = 7
_ANY = {"http_version": "1.1"}


class FramedProtocol(HttpToolsProtocol):
    """One connection. The application must be an Edge.

    Subclasses override the hooks, `begin_message` and those after it.
    """

    mid_message = False
    """Whether the parser has read a part of a request."""
    _in_head = False
    """Whether that part ends inside the request line or the headers."""
    _handed_over = False
    """Whether uvicorn answers the current request or, between requests, the last one."""
    _dropped = False
    """Whether the rest of the current message is ignored."""
    _ended = False
    """Whether all further bytes of this connection are ignored."""
    _head_bytes = 0
    """Bytes of this message's headers so far."""
    _idle_bytes = 0
    """Bytes received since the parser last completed a head, a part of a body or a message."""
    _progressed = False
    """Whether the last bytes completed a part of a body or a message."""
    _closes = False
    """Whether an HTTP/1.0 request has the connection option `close`."""
    _body_left = 0
    """Bytes of this message's body that are still to come, if a length was declared."""
    _events = 0
    """Number of message parts read in this turn of the loop."""
    _unread = b""
    """Received bytes that are parsed in a later turn, or once the pipeline has room."""
    _reads_on = False
    """Whether a later turn of the loop will read `_unread`."""
    _eof_waits = False
    """Whether the client has closed its sending side, and `_unread` is still to be read."""
    _discarded_bytes = 0
    _refusal: bytes | None = None
    """An error answer that is sent after all other answers, and then closes the connection."""
    _lingering: asyncio.TimerHandle | None = None
    """The timer that closes the connection after its sending side has been closed."""
    _half_closed = False
    _answering: Any = None
    """uvicorn's `RequestResponseCycle` of the request that is being answered."""
    _resting_since = 0.0
    """loop.time() when the last answer was sent."""

    # -- from the socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, and read no more from it while `_unread` holds something."""
        super().connection_made(transport)
        self.flow = _Flow(self, transport)

    def data_received(self, data: bytes) -> None:
        """Receive bytes from the client.

        One turn of the loop reads a bounded number of requests, headers and chunks. The rest waits
        in `_unread`, and reading from the socket pauses.
        """
        if self._unread:
            self._unread += data
            self.flow.pause_reading()
            return
        at, end, self._events = 0, len(data), 0
        rest = memoryview(data)
        while at < end:
            if self._ended:
                self._discard(end - at)
                return
            if self._events > _TURN_EVENTS or len(self.pipeline) >= _MAX_PIPELINED:
                self._unread = bytes(rest[at:])
                self.flow.pause_reading()
                self._read_soon()
                return
            size = max(_SLICE_BYTES, self._body_left)
            self._feed(rest[at : at + size])
            at += size

    def _feed(self, data: "memoryview[int]") -> None:
        """Pass some bytes to the parser."""
        was_in_head = self._in_head or not self.mid_message
        self._progressed = False
        rest = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if self._ended:
                    return
                after = rest[upgrade.args[0] :]
                rest = memoryview(b"".join((self._head_without_upgrade(), after)))
                continue
            except httptools.HttpParserCallbackError:
                raise  # a fault of this service: the loop logs it and closes the connection
            except httptools.HttpParserError as error:
                self.refuse("malformed", not_http(rest, error))
            break
        if not self.mid_message or self._ended or self._progressed:
            self._idle_bytes = 0
        else:
            if was_in_head and not self._in_head:
                self._idle_bytes = -self._head_bytes - len(self.url)
            self._idle_bytes += len(data)
            self._check_idle_bytes()

    def _read_soon(self) -> None:
        """Read `_unread` in the next turn of the loop."""
        if not self._reads_on:
            self._reads_on = True
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Read `_unread`, unless the pipeline is full; then the next answer resumes reading."""
        self._reads_on = False
        if self.transport.is_closing():
            self._unread = b""
        if not self._unread or len(self.pipeline) >= _MAX_PIPELINED:
            return
        data, self._unread = self._unread, b""
        self.data_received(data)
        if self._unread:
            return
        self.flow.resume_reading()
        if self._eof_waits and not self.eof_received():
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Note that the client sends nothing more, though it may still read.

        Returns whether the connection stays open.
        """
        if self._unread:
            self._eof_waits = True
            return True
        if self._ended and not self.is_answering():
            return False
        if self.mid_message and self._handed_over and not self._leave_unfinished():
            return False
        if not self.is_answering():
            return False
        self._half_closed = self._ended = True
        self.loop.call_later(_HALF_CLOSED_SECONDS, self._probe)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark every request of the connection, pipelined ones included, as left by its client."""
        self.forget_open_requests()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._lingering is not None:
            self._lingering.cancel()
        # The last request refers to this object. Without a reference back to it, both are freed
        # now. Otherwise they would wait for a garbage collection, one for about 800 connections.
        self.cycle = None  # type: ignore[assignment]
        if isinstance(self.flow, _Flow):
            self.flow.protocol = None

    def forget_open_requests(self) -> None:
        """Mark the requests that have no answer yet as abandoned."""
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in [*waiting, self._answering]:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._answering = None

    def is_answering(self) -> bool:
        """Whether the client waits for an answer."""
        cycle, answering = self.cycle, self._answering
        return (
            bool(self.pipeline)
            or (cycle is not None and not cycle.response_complete)
            or (answering is not None and not answering.response_complete)
        )

    # -- from the parser

    def on_message_begin(self) -> None:
        """Begin a request, when the parser finds one; only those for uvicorn get an ASGI scope."""
        self.mid_message = self._in_head = True
        self._dropped = self._ended or self.transport.is_closing()
        self._head_bytes, self._body_left, self._handed_over = 0, 0, False
        self._closes = False
        self.url = b""
        self.headers = []  # a new list for each request; `slow_clients` compares by identity
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Take a part of the request target from the parser."""
        limit: int = self.app.max_url_bytes
        if self._dropped:
            return
        if len(self.url) + len(url) > limit:
            self.refuse(
                "url-too-long",
                f"the URL is longer than {limit} bytes, the most that is accepted; send parameters "
                "in the body",
            )
            return
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field from the parser; a trailer field is ignored."""
        self._events += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._dropped:
            return
        limit: int = self.app.max_header_bytes
        if self._head_bytes > limit:
            self.refuse(
                "headers-too-large",
                f"the headers are longer than {limit} bytes, the most that is accepted",
            )
        elif self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Check and route a request, when the parser has read its headers."""
        self._in_head = False
        if self._dropped:
            return
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self.refuse(
                    "malformed",
                    "the method is CONNECT, but this is not a proxy; send the request to it",
                )
            else:
                self._dropped = True  # `data_received` reads it again
            return
        fault = self._fault()
        if fault is not None:
            self.refuse("malformed", fault)
        else:
            self.begin_message()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body from the parser."""
        self._progressed = True
        self._events += 1
        self._body_left -= len(body)
        if not self._dropped:
            self.take_body(body)

    def on_message_complete(self) -> None:
        """End a request, when the parser has read all of it."""
        self.mid_message, self._progressed = False, True
        self._events += _MESSAGE_EVENTS
        if self._dropped:
            return
        if self._closes or not self.parser.should_keep_alive():
            self._ended = True  # bytes after the last request of a connection are ignored
        self.end_message()

    # -- what subclasses override

    def begin_message(self) -> None:
        """Hook: the head of a request is complete and valid."""
        self.hand_over()

    def take_body(self, body: bytes) -> None:
        """Hook: a part of the body of a request has arrived.

        `100 Continue` is then left out (RFC 9110, 10.1.1): HAProxy 2.6 waits for ever when it
        reads that together with an answer longer than its buffer.
        """
        self.cycle.waiting_for_100_continue = False
        super().on_body(body)

    def end_message(self) -> None:
        """Hook: a request is complete. Reading continues, to notice when the client leaves."""
        super().on_message_complete()
        waiting = sum(len(cycle.body) for cycle, _ in self.pipeline)
        if len(self.pipeline) < _MAX_PIPELINED and waiting <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def hand_over(self) -> None:
        """Let uvicorn answer the request whose head was read."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        if self.cycle.scope["http_version"] == "1.0":  # uvicorn would always close
            self.cycle.keep_alive = self.parser.should_keep_alive() and not self._closes
        self.cycle.transport = _AnswerTransport(self)  # type: ignore[assignment]
        self._handed_over = True
        if not self.pipeline or self.pipeline[0][0] is not self.cycle:
            self._answering = self.cycle

    # -- to the client

    def refuse(self, kind: str, detail: str) -> None:
        """Answer invalid input with a problem, after all earlier answers, and close the connection.

        kind: a key of `errors.TITLES`. detail: the message for the client.
        """
        if self._ended:
            return
        problem = Problem(kind, detail)
        unfinished = self.mid_message and self._handed_over
        self._ended = self._dropped = True
        self.mid_message = False
        if unfinished and not self._leave_unfinished():
            if self.cycle.response_complete:
                self._end_writing()
                return
            self.forget_open_requests()
            self.cycle.response_complete = True
        request_id: bytes = self.app.refused(problem)
        response = (
            problem.status,
            PROBLEM_JSON.encode(),
            problem.body(),
            request_id,
            _header_pairs(problem),
        )
        self._refusal = response_bytes(response, keep_alive=False)
        if not self.is_answering():
            self._send_refusal()

    def on_response_complete(self) -> None:
        """Begin the request that was pipelined behind the answered one, or wait for the next."""
        self._resting_since = self.loop.time()
        if self._unread:
            self._read_soon()
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
            super().on_response_complete()
            return
        self._answering = None
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._refusal is not None:
            self._send_refusal()
        elif self._half_closed:
            self.transport.close()
        elif not (self.timeout_keep_alive_task or self._ended or self.transport.is_closing()):
            self._check_rest_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough, else wait the remaining time.

        One timer per connection checks the time of the last answer, so requests need no timers.
        """
        self.timeout_keep_alive_task = None
        if self.mid_message or self.is_answering():
            return  # the answer starts a new idle period
        left = self._resting_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._check_rest_in(left)
        else:
            super().timeout_keep_alive_handler()

    def _check_rest_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _send_refusal(self) -> None:
        refusal, self._refusal = self._refusal, b""
        if refusal and not self.transport.is_closing():
            self.transport.write(refusal)
            self._end_writing()

    def end_connection(self) -> None:
        """Close the connection after its last answer, so that the client can still read it.

        Closing at once while the client sends would make its system drop unread data (RFC 9112,
        section 9.6). Requests that wait behind the answer get no answer, as when the service
        stops.
        """
        if self.pipeline or self._half_closed or self.app.draining:
            self.transport.close()
            return
        self._ended, self._refusal = True, None
        self._end_writing()

    def _end_writing(self) -> None:
        """Close the sending side now, and the connection once the client could read the answer."""
        if self._lingering is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._lingering = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    # -- details

    def _should_upgrade(self) -> bool:
        """Never upgrade to another protocol, whichever libraries are installed."""
        return False

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > _MAX_DISCARDED_BYTES:
            self.transport.close()

    def _check_idle_bytes(self) -> None:
        """Refuse a head or trailers that never end, before the parser stores more than allowed."""
        limit: int = self.app.max_header_bytes + (self.app.max_url_bytes if self._in_head else 0)
        if self._idle_bytes <= limit:
            return
        if self._in_head:
            self.refuse(
                "headers-too-large",
                f"the request line and headers are longer than {limit} bytes, "
                "the most that is accepted",
            )
        else:
            self.refuse(
                "malformed",
                f"chunk extensions or trailers are longer than {limit} bytes, "
                "the most that is accepted",
            )

    def _fault(self) -> str | None:
        """Return what is wrong with a head, or None.

        Also reduces the request target to a path and a query.
        """
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return f"the request is HTTP/{version}; expected HTTP/1.1"
        fault = self._field_fault(version)
        if fault is not None:
            return fault
        if version == "1.0":
            self.expect_100_continue = False
            # The parser keeps such a connection if any option is keep-alive. Close has priority
            # (RFC 9112, 9.3).
            self._closes = any(
                b"close" in map(bytes.strip, value.lower().split(b","))
                for name, value in self.headers
                if name == b"connection"
            )
        return self._target_fault()

    def _field_fault(self, version: str) -> str | None:
        """Return what is wrong with the framing headers, or None. Records the declared length."""
        hosts = []
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                self._body_left = whole_number(value, below=2**63) or 0
            elif name == b"transfer-encoding":
                if version == "1.0":
                    return "an HTTP/1.0 request has Transfer-Encoding; expected Content-Length"
                if value.lower() != b"chunked":
                    shown = value[:40].decode("latin-1")
                    return f"Transfer-Encoding is '{shown}'; expected chunked alone"
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return f"the request has {len(hosts)} Host headers; expected one"
        if hosts and not _HOST.fullmatch(hosts[0]):
            return f"Host is {hosts[0][:60]!r}; expected a host name and optionally a port"
        return None

    def _target_fault(self) -> str | None:
        url = self.url
        if not url.startswith(b"/"):
            absolute = _ABSOLUTE.match(url)
            if absolute is not None:
                url = url[absolute.end() :]
                url = url if url.startswith(b"/") else b"/" + url
            elif url == b"*":
                url = b"/*"
            else:
                return f"the request target is {url[:60]!r}; expected a path"
        if b"#" in url:
            return "the request target has a fragment ('#'); expected a path and a query"
        self.url = url
        return None

    def _head_without_upgrade(self) -> bytes:
        """A head without its request for an upgrade (RFC 9110 section 7.8), for a new parser.

        Otherwise llhttp would treat the body as bytes of the other protocol.
        """
        lines = [
            b"%b %b HTTP/%b"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        for name, value in _without_upgrade(self.headers):
            lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    def _leave_unfinished(self) -> bool:
        """Remove the request with an incomplete body from the pipeline.

        Returns False if the pipeline does not contain it.
        """
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
            self.cycle.response_complete = True
            return True
        return False

    def _probe(self) -> None:
        """Send to a half-closed client, to find out whether it still reads."""
        if self.transport.is_closing() or not self.is_answering():
            return
        answering = self._answering
        started = getattr(answering, "response_started", False)
        if started or getattr(answering, "scope", _ANY)["http_version"] != "1.1":
            return
        self.transport.write(_PROCESSING)
        self.loop.call_later(_PROBE_SECONDS, self._close_if_refused)

    def _close_if_refused(self) -> None:
        connection = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or connection is None:
            return
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()


class _Flow(FlowControl):
    """Keeps reading paused while received bytes are still to be parsed.

    uvicorn resumes reading with each answer; without this, the waiting bytes could grow without
    bound.
    """

    def __init__(self, protocol: FramedProtocol, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.protocol: FramedProtocol | None = protocol
        """None once the connection is lost: else the two would keep each other in memory."""

    def resume_reading(self) -> None:
        """Resume reading, unless bytes that were read before are still to be parsed."""
        if self.read_paused and self.protocol is not None and not self.protocol._unread:  # noqa: SLF001
            super().resume_reading()


class _AnswerTransport:
    """The transport for uvicorn's answers, which ends the connection without a reset."""

    __slots__ = ("_app", "_transport", "close", "is_closing")

    def __init__(self, protocol: FramedProtocol) -> None:
        self._transport, self._app = protocol.transport, protocol.app
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.end_connection

    def write(self, data: bytes) -> None:
        """Send a part of an answer; a long one is watched until its client has read it."""
        self._transport.write(data)
        if len(data) > LONG_BYTES:
            self._app.unread.note(self._transport)


def _header_pairs(problem: Problem) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((k.lower().encode(), v.encode()) for k, v in problem.headers.items())


def _without_upgrade(headers: Pairs) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        if name in _UPGRADE_FIELDS:
            continue
        if name != b"connection":
            yield name, value
            continue
        tokens = [token.strip() for token in value.split(b",")]
        left = [token for token in tokens if token.lower() not in _UPGRADE_FIELDS]
        if left:
            yield name, b", ".join(left)
