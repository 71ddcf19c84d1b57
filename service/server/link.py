"""The line between a worker and its supervisor: JSON objects over a socket pair, framed by length.

    supervisor → worker   the Place, once; {"order": n, "verb": …, "model": …};
                          {"told": n, "errors": […]}
    worker → supervisor   {"ready": true}; {"refused": why}; {"tell": n, "verb": …, "model": …};
                          {"done": n, "error": why | null}

A worker asks its supervisor to load or unload a model ("tell"). The supervisor sends this as an
order to every worker, including the one that asked, and reports the result to it ("told"). All
workers get all orders in the same sequence. A load may take long, so orders are carried out in
parallel. A closed line means that the other side has ended.
"""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from service.repository.repository import OtherWorkerFailed

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 2**20
"""The reader drops a longer message. Writers shorten what they quote, so this does not happen."""
_MAX_REASON = 4000
_MAX_REASONS = 8
_LENGTH = struct.Struct("!I")
_SKIP_BYTES = 2**16


@dataclass(frozen=True)
class Place:
    """The first message of a supervisor to a worker: its slot and everything that it
    starts from.
    """

    slot: int
    run_folder: str
    listener: int
    """File descriptor of the bound socket that all workers share."""
    settings: dict[str, Any]
    unloaded: list[str]
    """Models that an operator has unloaded, which the worker must not load."""
    replaces: str = ""
    """How the worker before this one ended: killed, hung or failed; empty for the first."""

    def encoded(self) -> bytes:
        """Return the message as bytes, framed by its length."""
        return encoded(asdict(self))

    @classmethod
    def read(cls, line: socket.socket) -> "Place":
        """Read the first message, blocking. Raises EOFError when the supervisor has ended."""
        (length,) = _LENGTH.unpack(_received(line, _LENGTH.size))
        return cls(**json.loads(_received(line, length)))


def encoded(message: dict[str, Any]) -> bytes:
    """Return the frame of a message."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def cut(reason: str) -> str:
    """Shorten a reason for the line, since a validation report may quote a whole file."""
    if len(reason) <= _MAX_REASON:
        return reason
    return f"{reason[:_MAX_REASON]}… (and {len(reason) - _MAX_REASON} more characters)"


def cut_all(reasons: list[str]) -> list[str]:
    """Shorten a list of reasons for the line."""
    kept = [cut(reason) for reason in reasons[:_MAX_REASONS]]
    rest = len(reasons) - len(kept)
    return [*kept, f"and {rest} more"] if rest else kept


async def next_message(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Read a message; None at the end of the line. An unreadable message is logged and dropped."""
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                logger.error("a message of %d bytes was dropped: it is too long", length)
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
        logger.error("a message of %d bytes was dropped: it is not a JSON object", length)


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


Do = Callable[[str, str], Awaitable[None]]
"""Carries out a verb ("load" or "unload") on a model in this process."""


class Link:
    """The worker's end of the line to its supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._told: dict[int, asyncio.Future[list[str]]] = {}
        self._own_errors: dict[int, Exception] = {}
        self._tells = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, line: socket.socket) -> "Link":
        """Make a link over a connected socket."""
        reader, writer = await asyncio.open_connection(sock=line)
        return cls(reader, writer)

    def ready(self) -> None:
        """Report that this worker serves."""
        self._send({"ready": True})

    async def refuse(self, reason: str) -> None:
        """Report why this worker will not start."""
        self._send({"refused": cut(reason)})
        await self._writer.drain()

    async def everywhere(self, verb: str, model: str) -> None:
        """Load or unload a model in all workers. Raises this worker's own error, or
        OtherWorkerFailed.
        """
        self._tells += 1
        number = self._tells
        answer = self._told[number] = asyncio.get_running_loop().create_future()
        self._send({"tell": number, "verb": verb, "model": model})
        errors = await answer
        own = self._own_errors.pop(number, None)
        if own is not None:
            raise own
        if errors:
            raise OtherWorkerFailed(
                f"this worker could {verb} '{model[:80]}' and another could not; "
                f"try again, or restart the service: {'; '.join(errors)}"
            )

    def follow(self, do: Do, *, when_alone: Callable[[], None]) -> None:
        """Carry out orders from now on. `when_alone` is called once the supervisor has ended."""
        self._keep(self._follow(do, when_alone))

    def close(self) -> None:
        """Stop following and close the line."""
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    async def _follow(self, do: Do, when_alone: Callable[[], None]) -> None:
        while (message := await next_message(self._reader)) is not None:
            if "order" in message:
                self._keep(self._carry_out(do, message))
            elif (answer := self._told.pop(message.get("told", 0), None)) is not None:
                answer.set_result(message["errors"])
        for answer in self._told.values():
            answer.set_exception(OtherWorkerFailed("the supervisor has ended; try again"))
        when_alone()

    async def _carry_out(self, do: Do, order: dict[str, Any]) -> None:
        reason = None
        try:
            await do(order["verb"], order["model"])
        except Exception as error:  # noqa: BLE001 - the worker that asked must get the reason
            reason = cut(str(error) or type(error).__name__)
            if order["yours"] is not None:
                self._own_errors[order["yours"]] = error
        self._send({"done": order["order"], "error": reason})

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(encoded(message))
