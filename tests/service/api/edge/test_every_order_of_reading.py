"""No pipelined request is left unread or unanswered, in whatever order segments, turns of the loop
and answers come.

The real protocol is stepped by hand, with a pipeline and slices so small that all its pauses occur.
A search visits every state that some order of the steps leads to; where nothing more can happen,
each request must have been answered once, in its order, and the connection must be closed.
"""

import gc
import weakref
from collections import deque
from itertools import pairwise

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.api.edge import framing
from service.api.edge.framing import FramedProtocol

SHORT = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n" + b"b" * 40
CHUNKED = (
    b"POST /%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nc\r\n" * 9
    + b"0\r\n\r\n"
)
UPGRADE = b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
MAX_STATES = 30_000


class Transport:
    """Reads nothing while it is paused."""

    def __init__(self):
        self.is_paused = self.is_closed = False

    def pause_reading(self):
        self.is_paused = True

    def resume_reading(self):
        self.is_paused = False

    def is_closing(self):
        return self.is_closed

    def close(self):
        self.is_closed = True

    abort = close

    def write(self, data):
        assert data == framing._PROCESSING

    def write_eof(self):
        self.is_closed = True

    def get_extra_info(self, _name, default=None):
        return default


class Loop:
    """Callbacks run when the test says so; timers never do."""

    def __init__(self):
        self.ready = deque()

    def call_soon(self, callback, *arguments):
        self.ready.append((callback, arguments))

    def call_later(self, *_):
        return self

    def cancel(self):
        pass

    def time(self):
        return 0.0


class Stepped(FramedProtocol):
    """Its requests are answered by a step of the test."""

    def _start_asgi_task(self, cycle, app):
        self.open = [*getattr(self, "open", []), cycle]


class App:
    """The limits of an Edge."""

    max_url_bytes, max_header_bytes = 100, 1000


CONFIG = Config(App(), lifespan="off", log_config=None, http=Stepped, ws="none", interface="asgi3")


class World:
    """A connection and all that acts on it, after some steps."""

    def __init__(self, segments):
        self.loop, self.transport = Loop(), Transport()
        self.segments, self.sent, self.answered, self.has_ended = segments, 0, [], False
        self.protocol = Stepped(CONFIG, ServerState(), {}, self.loop)
        self.protocol.app, self.protocol.open = CONFIG.app, []
        self.protocol.connection_made(self.transport)

    def steps(self):
        found = ["loop"] if self.loop.ready else []
        if not (self.transport.is_paused or self.transport.is_closed or self.has_ended):
            found.append("read" if self.sent < len(self.segments) else "end")
        if self.protocol.open:
            cycle = self.protocol.open[0]
            if cycle.more_body and cycle.body:
                found.append("take")
            elif not cycle.more_body:
                found.append("answer")
        return found

    def take(self, step):
        protocol = self.protocol
        if step == "loop":
            callback, arguments = self.loop.ready.popleft()
            callback(*arguments)
        elif step == "read":
            assert not protocol._unread, "bytes that wait must not grow"
            self.sent += 1
            protocol.data_received(self.segments[self.sent - 1])
        elif step == "end":
            self.has_ended = True
            if not protocol.eof_received():
                self.transport.close()
        elif step == "take":  # as the application's receive() does
            protocol.open[0].body.clear()
            protocol.flow.resume_reading()
        else:
            cycle = protocol.open.pop(0)
            self.answered.append(cycle.scope["path"])
            cycle.response_complete = True
            protocol.on_response_complete()

    def key(self):
        protocol = self.protocol
        return (
            self.sent,
            self.has_ended,
            tuple(self.answered),
            len(self.loop.ready),
            (self.transport.is_paused, self.transport.is_closed),
            len(protocol._unread),
            tuple((c.scope["path"], bytes(c.body), c.more_body) for c in protocol.open),
            tuple((c.scope["path"], bytes(c.body), c.more_body) for c, _ in protocol.pipeline),
            (protocol.mid_message, protocol._half_closed, protocol._ended, protocol._eof_waits),
        )


def cut(stream, count):
    places = [len(stream) * at // count for at in range(count + 1)]
    return [stream[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("cuts", [1, 2, 5])
@pytest.mark.parametrize(
    "kinds",
    [[SHORT] * 8, [LONG] * 4, [CHUNKED] * 3, [SHORT, UPGRADE, LONG, SHORT, CHUNKED, SHORT, SHORT]],
    ids=["short", "long", "chunked", "mixed"],
)
def test_every_pipelined_request_is_answered_in_its_order(kinds, cuts, monkeypatch):
    monkeypatch.setattr(framing, "_MAX_PIPELINED", 2)
    monkeypatch.setattr(framing, "_SLICE_BYTES", 24)
    monkeypatch.setattr(framing, "_TURN_EVENTS", 6)
    monkeypatch.setattr(framing, "_MESSAGE_EVENTS", 2)
    monkeypatch.setattr(framing, "HIGH_WATER_LIMIT", 30)
    monkeypatch.setattr("uvicorn.protocols.http.httptools_impl.HIGH_WATER_LIMIT", 30)
    segments = cut(b"".join(kind % at for at, kind in enumerate(kinds)), cuts)
    wanted = [f"/{at}" for at in range(len(kinds))]
    seen, ends, paths = set(), 0, deque([()])
    while paths:
        path = paths.popleft()
        world = World(segments)
        for step in path:
            world.take(step)
        if (key := world.key()) in seen:
            continue
        seen.add(key)
        assert len(seen) < MAX_STATES
        steps = world.steps()
        paths.extend((*path, step) for step in steps)
        if not steps:
            ends += 1
            assert world.answered == wanted, path
            assert world.transport.is_closed, path
        assert world.answered == wanted[: len(world.answered)]
    assert ends >= 1


@pytest.mark.parametrize("segments", [[SHORT % 0], [LONG % 0], [SHORT % 0 + LONG % 1]])
@pytest.mark.parametrize("is_answered", [True, False])
def test_a_lost_connection_is_freed_without_a_garbage_collection(segments, is_answered):
    """Its requests refer to it. A way back would keep both, and their bodies, for long."""
    gc.collect()
    gc.disable()
    try:
        world = World(segments)
        world.take("read")
        while is_answered and world.protocol.open:
            world.take("answer")
        running, world.protocol.open = world.protocol.open, []
        world.protocol.connection_lost(None)
        assert all(cycle.disconnected for cycle in running)
        lost = weakref.ref(world.protocol)
        del world.protocol, running[:]
        assert lost() is None
    finally:
        gc.enable()
