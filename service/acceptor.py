"""Accepts connections from a socket that several processes share, so that each has about as many as the others.

The loop's own server accepts until nothing waits: of a burst of connections one process takes nearly all, and has them for
as long as they are kept alive. Here a process accepts one a turn of its loop, and leaves it to the others for a moment
when it has more than they have. A process that hangs or dies is sent nothing that another could not take.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn

from service.connection_counts import ConnectionCounts

logger = logging.getLogger(__name__)

_LEFT_TO_OTHERS_SECONDS = 0.003
_NO_DESCRIPTORS_SECONDS = 1.0


class FairServer(uvicorn.Server):
    """A uvicorn server on a bound socket that other processes accept from too."""

    def __init__(self, config: uvicorn.Config, counts: ConnectionCounts, slot: int) -> None:
        super().__init__(config)
        self._counts, self._slot = counts, slot

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept from the sockets."""
        await self.lifespan.startup()
        config = self.config

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        self._acceptors = [
            _Acceptor(listener, protocol, self._has_more_than_others) for listener in sockets or []
        ]
        self.servers = self._acceptors  # type: ignore[assignment]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's, every tenth of a second; connections may have ended since."""
        self._count()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's; the others need not leave anything to this process any more."""
        self._counts.absent(self._slot)
        await super().shutdown(sockets)

    def _count(self) -> int:
        connections = len(self.server_state.connections)
        connections += sum(acceptor.connecting for acceptor in self._acceptors)
        self._counts.set(self._slot, connections)
        return connections

    def _has_more_than_others(self) -> bool:
        return self._count() > self._counts.fewest()


class _Acceptor:
    """Accepts from one socket until uvicorn closes it."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        should_leave_it: Callable[[], bool],
    ) -> None:
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
        if self._should_leave_it():
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_LEFT_TO_OTHERS_SECONDS, self._accept_what_was_left)
        else:
            self._accept()

    def _accept_what_was_left(self) -> None:
        if not self._closed:
            self._watch()
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has gone
        except OSError as error:
            logger.error("cannot accept a connection: %s", error.strerror)  # noqa: TRY400 - no fault of ours
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._watch)
            return
        connection.setblocking(False)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
