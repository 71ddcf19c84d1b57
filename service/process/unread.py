"""Answers that clients have not read yet: how much memory they may hold, and for how long.

An answer stays in memory until its client has taken all of it. A client that asks for large answers
and reads a byte a second would hold them for ever.
"""

import asyncio
import contextlib
import fcntl
import logging
import struct
import sys
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

LONG_BYTES = 64 * 1024
"""Answers of more bytes are watched. The system's own buffers take most shorter ones at once."""
LEAST_BYTES = 64 * 1024
"""A client must take this many bytes between two checks, or all that is left."""
_SIOCOUTQ = 0x5411
"""Linux: how many bytes in the socket's buffer the other side has not acknowledged."""


@dataclass
class _Watched:
    """How much a connection had left to send at the last check, and since when it is watched."""

    left: int
    since: float


class UnreadAnswers:
    """Closes the connections whose clients read too slowly. Used from one event loop."""

    def __init__(self, *, max_bytes: int, seconds: float) -> None:
        """max_bytes: the most memory of all answers that are not sent yet. seconds: between checks.

        One answer may hold more than max_bytes, if no other is there.
        """
        self._max_bytes, self._seconds = max_bytes, seconds
        self._watched: dict[asyncio.Transport, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.closed = 0
        """How many connections have been closed."""

    def note(self, transport: asyncio.Transport) -> None:
        """Watch a connection to which a long answer was just written."""
        if not transport.get_write_buffer_size():
            return
        loop = asyncio.get_running_loop()
        self._watched[transport] = _Watched(_left(transport), loop.time())
        self._make_room(transport)
        if self._timer is None and self._watched:
            self._timer = loop.call_later(self._seconds, self._check)

    def _check(self) -> None:
        """Close each connection whose client has taken too little since the last check."""
        loop = asyncio.get_running_loop()
        self._timer = None
        self._forget_sent()
        for transport, watched in list(self._watched.items()):
            if loop.time() - watched.since < self._seconds / 2:
                continue  # its answer has just been written
            left = _left(transport)
            if left > watched.left - LEAST_BYTES:
                self._close(transport, f"took under {LEAST_BYTES} bytes in {self._seconds:g} s")
            else:
                watched.left, watched.since = left, loop.time()
        if self._watched:
            self._timer = loop.call_later(self._seconds, self._check)

    def _make_room(self, newest: asyncio.Transport) -> None:
        """Close the slowest of the other connections while all hold too much together."""
        if self._held() <= self._max_bytes:
            return
        self._forget_sent()
        now = asyncio.get_running_loop().time()

        def rate(transport: asyncio.Transport) -> float:
            watched = self._watched[transport]
            return (watched.left - _left(transport)) / max(now - watched.since, 1e-3)

        for transport in sorted((each for each in self._watched if each is not newest), key=rate):
            if self._held() <= self._max_bytes:
                return
            self._close(
                transport,
                f"read slowest while unread answers held more than {self._max_bytes} bytes",
            )

    def _held(self) -> int:
        return sum(transport.get_write_buffer_size() for transport in self._watched)

    def _forget_sent(self) -> None:
        """Stop watching connections whose answers have been sent."""
        for transport in [each for each in self._watched if not each.get_write_buffer_size()]:
            del self._watched[transport]

    def _close(self, transport: asyncio.Transport, reason: str) -> None:
        del self._watched[transport]
        self.closed += 1
        logger.warning(
            "the connection of %s was closed, with %d bytes of its answer unread: its client %s",
            transport.get_extra_info("peername"),
            transport.get_write_buffer_size(),
            reason,
        )
        transport.abort()


def _left(transport: asyncio.Transport) -> int:
    """How many bytes the client has not acknowledged.

    Where the system does not say, only those that the system has not taken yet are counted.
    """
    left = transport.get_write_buffer_size()
    connection: Any = transport.get_extra_info("socket")
    if sys.platform == "linux" and connection is not None:
        with contextlib.suppress(OSError, ValueError):
            found = fcntl.ioctl(connection.fileno(), _SIOCOUTQ, bytes(4))
            left += struct.unpack("i", found)[0]
    return left
