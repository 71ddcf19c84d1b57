"""uvicorn's HTTP protocol with a fast path for scoring requests: no ASGI scope, no task, one write.

A request takes the fast path when it is a POST of a scoring route and arrives complete with its
first bytes. If its header block is known from an earlier request (`known_headers`), the parser is
skipped too. uvicorn answers every other request through ASGI, including unusual ones (pipelined,
chunked, `Expect`, a slow reader).
"""

import asyncio
from functools import partial

from service.api.edge.bodies import compressed, is_compressed
from service.api.edge.framing import FramedProtocol
from service.api.edge.known_headers import Head, Pairs
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Match, Response, response_bytes
from service.process.unread import LONG_BYTES

_NO_KEY = (401, 403)
_COPIED_BYTES = 2**20
"""A longer body is not copied into one buffer with its head."""


class _NoEvent:
    """Replaces uvicorn's message event, since nothing waits for parts of a scoring request."""

    def set(self) -> None:
        """Ignore that a message has arrived."""


class _ScoringCycle:
    """The attributes of uvicorn's `RequestResponseCycle` that its protocol reads.

    All scoring requests of a connection share one object.
    """

    __slots__ = ("disconnected", "is_http_1_0", "keep_alive", "response_complete")

    message_event = _NoEvent()

    def __init__(self) -> None:
        self.response_complete = self.disconnected = self.is_http_1_0 = False
        self.keep_alive = True

    @property
    def scope(self) -> dict[str, str]:
        """The part of an ASGI scope that says whether the client reads interim answers."""
        return {"http_version": "1.0" if self.is_http_1_0 else "1.1"}


class ScoringProtocol(FramedProtocol):
    """One connection. The application must be an Edge."""

    _match: Match | None = None
    """The scoring route of the current request.

    None for any other request, and once the request was handed over to uvicorn.
    """
    _query = b""
    _body = b""
    _whole: Pairs | None = None
    """The headers of the current scoring request, if the bytes being read hold all of it."""
    _scoring_cycle: _ScoringCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Receive bytes from the client."""
        lane: ScoringLane = self.app.lane
        at_rest = not (self.mid_message or self._ended or self._unread) and (
            self.cycle is None or self.cycle.response_complete
        )
        if at_rest and not self.flow.write_paused:
            known = lane.heads.find(data)
            if known is not None:
                path, query, head, body = known
                match = lane.match(path.decode())
                if match is not None:
                    self.headers = []  # shows SlowClients that another request has begun
                    self._begin(match, query, head, body, keep_alive=True)
                    return
        self._whole = None
        super().data_received(data)
        if self._whole is not None:
            if at_rest and not self.mid_message:
                lane.heads.learn(data, self._whole)
            self._whole = None
        if self._match is not None and not self.transport.is_closing():
            self.hand_over()  # The request is incomplete, and the fast path never waits.

    def on_message_begin(self) -> None:
        """Begin a request, when the parser finds one."""
        super().on_message_begin()
        self._match = None

    def begin_message(self) -> None:
        """Hook: the head of a request is complete and valid."""
        self._match = self._scoring_match()
        if self._match is None:
            self.hand_over()
        else:
            self._body = b""

    def take_body(self, body: bytes) -> None:
        """Hook: a part of the body of a request has arrived."""
        if self._match is None:
            super().take_body(body)
        else:
            self._body = self._body + body if self._body else body

    def end_message(self) -> None:
        """Hook: a request is complete."""
        match, self._match = self._match, None
        if match is None:
            super().end_message()
            return
        self._whole = self.headers
        head = Head(self.headers, len(self._body))
        is_http_1_0 = self.parser.get_http_version() == "1.0"
        self._begin(
            match,
            self._query,
            head,
            self._body,
            keep_alive=not self._ended,
            is_http_1_0=is_http_1_0,
        )

    def hand_over(self) -> None:
        """Let uvicorn answer the request, from the part that has arrived on."""
        body, self._body = self._body, b""
        is_scoring, self._match = self._match is not None, None
        super().hand_over()
        if is_scoring and body:
            super().take_body(body)

    def refuse(self, kind: str, detail: str) -> None:
        """Answer invalid input with a problem, and close the connection."""
        if self._match is not None:  # its body is invalid, and nothing has started for it
            self._match, self._dropped = None, True
        super().refuse(kind, detail)

    def _begin(
        self,
        match: Match,
        query: bytes,
        head: Head,
        body: bytes,
        *,
        keep_alive: bool,
        is_http_1_0: bool = False,
    ) -> None:
        """Answer a complete scoring request. keep_alive: whether the connection stays open."""
        cycle = self._scoring_cycle
        if cycle is None:
            cycle = self._scoring_cycle = _ScoringCycle()
        cycle.response_complete = False
        cycle.keep_alive, cycle.is_http_1_0 = keep_alive, is_http_1_0
        self.cycle = self._answering = cycle  # type: ignore[assignment]
        lane: ScoringLane = self.app.lane
        send = partial(self._respond_to, head) if head.coding else self._respond
        lane.begin(match, head, query=query, body=body, connection=cycle, send=send)

    def _scoring_match(self) -> Match | None:
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or self.expect_100_continue
            or self.is_answering()
            or self.flow.write_paused
        ):
            return None
        path, _, query = self.url.partition(b"?")
        if b"%" in path:
            return None
        self._query = query
        lane: ScoringLane = self.app.lane
        return lane.match(path.decode("latin-1"))

    def _respond_to(self, head: Head, response: Response | None) -> None:
        """Send a response. A thread first compresses a long one, if the client accepts that."""
        if response is None or not is_compressed(response, head):
            self._respond(response)
            return
        try:
            packing = self.loop.run_in_executor(None, compressed, response, head.coding)
        except RuntimeError:  # the machine has no thread left
            self._respond(response)
            return
        packing.add_done_callback(partial(self._respond_packed, response))

    def _respond_packed(self, response: Response, done: "asyncio.Future[Response]") -> None:
        """Send the compressed response, or the plain one where compressing it failed."""
        failed = done.cancelled() or done.exception() is not None
        self._respond(response if failed else done.result())

    def _respond(self, response: Response | None) -> None:
        cycle = self._scoring_cycle
        assert cycle is not None
        cycle.response_complete = True
        cycle.keep_alive = cycle.keep_alive and not self.app.draining
        if cycle.disconnected or self.transport.is_closing():
            return
        if response is not None:
            if response[0] in _NO_KEY:
                self._whole = (
                    None  # the header block of a client without a valid key is not remembered
                )
            size = len(response[2])
            together = size <= _COPIED_BYTES
            head = response_bytes(
                response,
                keep_alive=cycle.keep_alive,
                with_body=together,
                is_http_1_0=cycle.is_http_1_0,
            )
            self.transport.write(head)
            if not together:
                self.transport.write(response[2])
            if size > LONG_BYTES:
                self.app.unread.note(self.transport)
        if not cycle.keep_alive:
            self.end_connection()
        self.on_response_complete()
