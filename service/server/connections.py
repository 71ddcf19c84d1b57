"""Accepts connections: of a socket that several processes share, so that each has about as many as the others.

A burst of connections would go to one process nearly whole, and stay there for as long as they are kept alive. So a process
that is not alone accepts one a turn of its loop, and leaves it to the others for a moment when it has more than they have. A
process that hangs or dies is sent nothing that another could not take. One that is alone accepts all that wait: the loop's own
server takes one a turn, and a turn is long when its batches are, so that the last of a burst waited a tenth of a second.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn

from service.server.connection_counts import ConnectionCounts

logger = logging.getLogger(__name__)

_LEFT_TO_OTHERS_SECONDS = 0.003
_NO_DESCRIPTORS_SECONDS = 1.0
_AT_ONCE = 256
"""Connections that a process which is alone accepts in one turn of its loop."""


class FairServer(uvicorn.Server):
    """A uvicorn server on a bound socket. With `counts`, other processes accept from it too."""

    def __init__(
        self, config: uvicorn.Config, counts: ConnectionCounts | None = None, slot: int = 0
    ) -> None:
        super().__init__(config)
        self._counts, self._slot = counts, slot
        self._acceptors: list[_Acceptor] = []

    def appear(self) -> None:
        """Tell the others that this process is about to accept: from now on they leave its share to it."""
        self._count()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept from the sockets."""
        await self.lifespan.startup()
        config = self.config

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        shared = self._has_more_than_others if self._counts is not None else None
        self._acceptors = [_Acceptor(listener, protocol, shared) for listener in sockets or []]
        self.servers = self._acceptors  # type: ignore[assignment]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's, every tenth of a second; connections may have ended since."""
        self._count()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's; the others need not leave anything to this process any more."""
        if self._counts is not None:
            self._counts.absent(self._slot)
        await super().shutdown(sockets)

    def _count(self) -> int:
        connections = len(self.server_state.connections)
        connections += sum(acceptor.connecting for acceptor in self._acceptors)
        if self._counts is not None:
            self._counts.set(self._slot, connections)
        return connections

    def _has_more_than_others(self) -> bool:
        assert self._counts is not None
        return self._count() > self._counts.fewest()


class _Acceptor:
    """Accepts from one socket until uvicorn closes it."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        should_leave_it: Callable[[], bool] | None,
    ) -> None:
        """should_leave_it tells whether another process should rather take the next; None where there is no other."""
        self._listener, self._protocol, self._should_leave_it = listener, protocol, should_leave_it
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False
        listener.setblocking(False)
        self._watch()

    @property
    def connecting(self) -> int:
        """Connections that are accepted and not yet made."""
        return len(self._tasks)

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Return when what was accepted is connected."""
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
            self._loop.call_later(_LEFT_TO_OTHERS_SECONDS, self._accept_what_was_left)
        else:
            self._accept()

    def _accept_what_was_left(self) -> None:
        if not self._closed:
            self._watch()
            self._accept()

    def _accept(self) -> bool:
        """Accept one connection; whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # none waits, another process was faster, or the client has gone
        except OSError as error:
            logger.error("cannot accept a connection: %s", error.strerror)  # noqa: TRY400 - no fault of ours
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._watch)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True
