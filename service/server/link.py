"""The link between a worker and its supervisor: JSON objects over a socket pair, framed by length.

    supervisor → worker   the Place, once
    worker → supervisor   {"listening": why it is not ready, or null}; {"refused": why}

A closed link means that the other side has ended. Orders for models travel through the store.
"""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 2**20
"""The longest message. The reader drops longer ones; writers shorten quotations to stay below."""
_MAX_REASON = 4000
_LENGTH = struct.Struct("!I")
_SKIP_BYTES = 2**16


@dataclass(frozen=True)
class Place:
    """The first message of a supervisor to a worker: its slot, its settings and its resources."""

    slot: int
    run_folder: str
    listener: int
    """File descriptor of the bound socket that all workers share."""
    settings: dict[str, Any]
    replaces: str = ""
    """How the previous worker in the slot ended: killed, hung or failed; empty for the first."""

    def encoded(self) -> bytes:
        """Return the message as bytes: its length, then JSON."""
        return encoded(asdict(self))

    @classmethod
    def read(cls, line: socket.socket) -> "Place":
        """Read the first message, blocking. Raises EOFError if the supervisor has ended."""
        (length,) = _LENGTH.unpack(_received(line, _LENGTH.size))
        return cls(**json.loads(_received(line, length)))


def encoded(message: dict[str, Any]) -> bytes:
    """Return a message as bytes: its length in 4 bytes, big-endian, then JSON."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def cut(reason: str) -> str:
    """Shorten a reason to fit a message, since a validation report may quote a whole file."""
    if len(reason) <= _MAX_REASON:
        return reason
    return f"{reason[:_MAX_REASON]}… (and {len(reason) - _MAX_REASON} more characters)"


async def next_message(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Read a message; None when the link is closed. An unreadable message is logged and dropped."""
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                logger.error(
                    "a message of %d bytes between supervisor and worker was dropped: it is longer "
                    "than %d; report this",
                    length,
                    MAX_FRAME_BYTES,
                )
                await _skip(reader, length)
                continue
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            message = json.loads(body)
        except ValueError:
            message = None
        if isinstance(message, dict):
            return message
        logger.error(
            "a message of %d bytes between supervisor and worker was dropped: it is not a JSON "
            "object; report this",
            length,
        )


async def _skip(reader: asyncio.StreamReader, length: int) -> None:
    while length:
        length -= len(await reader.readexactly(min(length, _SKIP_BYTES)))


def _received(line: socket.socket, length: int) -> bytes:
    got = bytearray()
    while len(got) < length:
        part = line.recv(length - len(got))
        if not part:
            raise EOFError("the supervisor has ended")
        got += part
    return bytes(got)


class Link:
    """The worker's end of the socket to its supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, line: socket.socket) -> "Link":
        """Make a link from a connected socket."""
        reader, writer = await asyncio.open_connection(sock=line)
        return cls(reader, writer)

    def listens(self, unready: str | None) -> None:
        """Report that this worker accepts connections.

        unready: why it is not ready; None if it is.
        """
        self._send({"listening": None if unready is None else cut(unready)})

    async def refuse(self, reason: str) -> None:
        """Report why this worker refuses to start, and wait until that is sent."""
        self._send({"refused": cut(reason)})
        await self._writer.drain()

    def watch(self, *, when_alone: Callable[[], None]) -> None:
        """Call `when_alone` once the supervisor has ended."""
        self._following = asyncio.get_running_loop().create_task(self._watch(when_alone))

    def close(self) -> None:
        """Stop watching and close the socket."""
        if self._following is not None:
            self._following.cancel()
        self._writer.close()

    async def _watch(self, when_alone: Callable[[], None]) -> None:
        while await next_message(self._reader) is not None:
            pass
        when_alone()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(encoded(message))
