"""Connections whose client does not send: closed when a request has not begun, or its headers have not ended, for too long.

uvicorn waits for headers for ever. The body has its own limit, where it is read (api/bodies.py), and an idle connection
that has had an answer uvicorn's (`timeout_keep_alive`).
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any


class SlowClients:
    """Looks at all connections every `seconds`, and closes those that wait as they did the last time."""

    def __init__(self, connections: Callable[[], Iterable[Any]], *, seconds: float) -> None:
        """connections() gives uvicorn's protocol objects. Each makes a new list `headers` when a request begins."""
        self._connections, self._seconds = connections, seconds
        self._waiting: dict[Any, Any] = {}

    def start(self) -> None:
        """Look from now on, on the running loop."""
        asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        before, self._waiting = self._waiting, {}
        for connection in list(self._connections()):
            if connection.cycle is not None and not connection.cycle.response_complete:
                continue
            if connection in before and before[connection] is connection.headers:
                connection.transport.close()
            else:
                self._waiting[connection] = connection.headers
        self.start()
