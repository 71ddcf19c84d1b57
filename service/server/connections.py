"""Accepts connections evenly from a socket that workers share, and closes those of slow clients.

Without this, one process would accept nearly all connections of a burst and keep them until they
end. With several workers, each one accepts one connection per turn of its event loop. A worker
that has more connections than another leaves the next one to it, for at most 30 ms. Workers that
have hung for half a second, or died, do not count, so no connection waits for them.

A single process accepts all waiting connections at once. asyncio's own server would accept one per
turn, and a turn may take as long as a batch, so the last connection of a burst would wait for about
0.1 s.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

import uvicorn

from service.process.connection_counts import ConnectionCounts

logger = logging.getLogger(__name__)

_LEFT_TO_OTHERS_SECONDS = 0.003
_MAX_PAUSES = 10
"""How often this worker leaves a connection to others before it accepts one itself. On busy cores,
another worker may have to wait for its turn.
"""
_NO_DESCRIPTORS_SECONDS = 1.0
_AT_ONCE = 256
"""The most connections that a single process accepts in one turn of its event loop."""


class FairServer(uvicorn.Server):
    """A uvicorn server on a bound socket, which other processes may share.

    counts: the number of connections of each process; None: this process is the only one.
    slot: this process's index in `counts`.
    """

    def __init__(
        self, config: uvicorn.Config, counts: ConnectionCounts | None = None, slot: int = 0
    ) -> None:
        super().__init__(config)
        self._counts, self._slot = counts, slot
        self._acceptors: list[_Acceptor] = []
        self._pauses = 0
        self._connecting = 0
        """The number of accepted connections that uvicorn's set does not hold yet."""
        self.server_state.connections = _Connections(began=self._has_connected, ended=self._count)

    def appear(self) -> None:
        """Announce to the other workers that this one is about to accept its share."""
        self._count()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections from the sockets; overrides uvicorn's own acceptors."""
        await self.lifespan.startup()
        config = self.config

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        shared = self._leaves_it if self._counts is not None else None
        self._acceptors = [
            _Acceptor(
                listener, protocol, shared, accepted=self._has_accepted, failed=self._has_connected
            )
            for listener in sockets or []
        ]
        self.servers = self._acceptors  # type: ignore[assignment]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Publish the number of connections every 0.1 s, since some may have ended.

        Returns whether the server should exit.
        """
        self._count()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Publish that this worker accepts no more connections, then shut down."""
        counts, self._counts = self._counts, None
        if counts is not None:
            counts.absent(self._slot)
        await super().shutdown(sockets)

    def _has_accepted(self) -> None:
        self._connecting += 1
        self._count()

    def _has_connected(self) -> None:
        """Note that an accepted connection is in uvicorn's set now, or has failed."""
        self._connecting -= 1
        self._count()

    def _count(self) -> int:
        connections = len(self.server_state.connections) + self._connecting
        if self._counts is not None:
            self._counts.set(self._slot, connections)
        return connections

    def _leaves_it(self) -> bool:
        """Whether another worker, which has fewer connections, should accept the next one."""
        assert self._counts is not None
        if self._count() <= self._counts.fewest() or self._pauses == _MAX_PAUSES:
            self._pauses = 0
            return False
        self._pauses += 1
        return True


class _Connections(set[Any]):
    """uvicorn's set of open connections, which calls `began` and `ended` for each.

    A connection that is counted late, or twice, sends the next one to the wrong worker.
    """

    def __init__(self, *, began: Callable[[], object], ended: Callable[[], object]) -> None:
        super().__init__()
        self._began, self._ended = began, ended

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._began()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._ended()


class _Acceptor:
    """Accepts from one socket until uvicorn closes it."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        should_leave_it: Callable[[], bool] | None,
        *,
        accepted: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        """Start accepting from `listener`, a bound and listening socket.

        protocol: makes the protocol object of a new connection.
        should_leave_it: tells whether another worker should accept the next connection; None if
        there is no other worker. accepted: called for each connection. failed: called if it ends
        before it has a protocol.
        """
        self._listener, self._protocol, self._should_leave_it = listener, protocol, should_leave_it
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._accepted, self._failed = accepted, failed
        self._closed = False
        listener.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Stop accepting."""
        self._closed = True
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Wait until every accepted connection has its protocol."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._on_waiting)

    def _on_waiting(self) -> None:
        if self._should_leave_it is None:
            for _ in range(_AT_ONCE):
                if not self._accept():
                    break
        elif self._should_leave_it():
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_LEFT_TO_OTHERS_SECONDS, self._watch)
        else:
            self._accept()

    def _accept(self) -> bool:
        """Accept one connection. Returns whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # no connection waits, another worker took it, or the client has hung up
        except OSError as error:
            logger.error(  # noqa: TRY400 - not an error of the service
                "cannot accept a connection: %s; trying again every %g s (if this persists, raise "
                "the limit of open files)",
                error.strerror,
                _NO_DESCRIPTORS_SECONDS,
            )
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._watch)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection)
        )
        self._tasks.add(task)
        task.add_done_callback(self._connected)
        self._accepted()
        return True

    def _connected(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            self._failed()


class SlowClients:
    """Closes connections whose client does not start a request or does not finish its headers.

    uvicorn would wait for headers without a limit. Other limits cover bodies
    (`api/edge/bodies.py`) and idle connections (uvicorn's `timeout_keep_alive`). Every `seconds`,
    all connections that wait for a request or its headers are checked. A connection is closed if
    it waited at the last check too and no new request has begun since.
    """

    def __init__(self, connections: Callable[[], Iterable[Any]], *, seconds: float) -> None:
        """Prepare to check connections every `seconds`; `start` begins.

        connections: returns uvicorn's protocol objects. Each must have a new list `headers` for
        each request.
        """
        self._connections, self._seconds = connections, seconds
        self._waiting: dict[Any, Any] = {}

    def start(self) -> None:
        """Schedule the next check on the running loop."""
        asyncio.get_running_loop().call_later(self._seconds, self._check)

    def _check(self) -> None:
        before, self._waiting = self._waiting, {}
        for connection in list(self._connections()):
            if connection.cycle is not None and not connection.cycle.response_complete:
                continue
            if connection in before and before[connection] is connection.headers:
                connection.transport.close()
            else:
                self._waiting[connection] = connection.headers
        self.start()
