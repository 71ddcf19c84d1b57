"""The line between a worker and its supervisor: one JSON object a line over a socket pair.

    supervisor → worker   the Place, once; {"order": n, "verb": …, "model": …}; {"told": n, "errors": […]}
    worker → supervisor   {"ready": true}; {"refused": why}; {"tell": n, "verb": …, "model": …}; {"done": n, "error": why | null}

A worker tells its supervisor to load or unload a model; the supervisor orders it of every worker, the teller included, in
the same order of all. A load may take long: an order that comes meanwhile is carried out meanwhile. The end of the line is the end of the other side.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

MAX_LINE_BYTES = 2**20


class OtherWorkerFailed(RuntimeError):
    """A model was loaded or unloaded here, and could not be in another worker."""


@dataclass(frozen=True)
class Place:
    """Where a worker stands: what its supervisor tells it before anything else."""

    slot: int
    run_folder: str
    listener: int
    """File descriptor of the bound socket that all workers share."""
    settings: dict[str, Any]
    unloaded: list[str]
    """Models that are not to be loaded, because somebody unloaded them."""
    replaces: str = ""
    """Why the worker before this one ended: killed, hung or failed; empty for the first."""

    def encoded(self) -> bytes:
        """As a line."""
        return encoded(asdict(self))

    @classmethod
    def read(cls, line: socket.socket) -> "Place":
        """Read the first line, blocking. Raises EOFError when the supervisor is gone."""
        got = bytearray()
        while not got.endswith(b"\n"):
            byte = line.recv(1)
            if not byte:
                raise EOFError("the supervisor is gone")
            got += byte
        return cls(**json.loads(got))


def encoded(message: dict[str, Any]) -> bytes:
    """A message as a line."""
    return json.dumps(message).encode() + b"\n"


Do = Callable[[str, str], Awaitable[None]]
"""Carry out a verb ("load" or "unload") on a model in this process."""


class Link:
    """A worker's end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._told: dict[int, asyncio.Future[list[str]]] = {}
        self._own_errors: dict[int, Exception] = {}
        self._tells = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, line: socket.socket) -> "Link":
        """Over a connected socket."""
        reader, writer = await asyncio.open_connection(sock=line, limit=MAX_LINE_BYTES)
        return cls(reader, writer)

    def ready(self) -> None:
        """Tell that this worker serves."""
        self._send({"ready": True})

    async def refuse(self, reason: str) -> None:
        """Tell why this worker will not start."""
        self._send({"refused": reason})
        await self._writer.drain()

    async def everywhere(self, verb: str, model: str) -> None:
        """Have all workers do it. Raises what this worker met, or OtherWorkerFailed."""
        self._tells += 1
        number = self._tells
        answer = self._told[number] = asyncio.get_running_loop().create_future()
        self._send({"tell": number, "verb": verb, "model": model})
        errors = await answer
        own = self._own_errors.pop(number, None)
        if own is not None:
            raise own
        if errors:
            raise OtherWorkerFailed("; ".join(errors))

    def follow(self, do: Do, *, when_alone: Callable[[], None]) -> None:
        """Carry out orders from now on; `when_alone` is called when the supervisor is gone."""
        self._keep(self._follow(do, when_alone))

    def close(self) -> None:
        """Stop following and hang up."""
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    async def _follow(self, do: Do, when_alone: Callable[[], None]) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                message = json.loads(line)
                if "order" in message:
                    self._keep(self._carry_out(do, message))
                else:
                    self._told.pop(message["told"]).set_result(message["errors"])
        for answer in self._told.values():
            answer.set_exception(OtherWorkerFailed("the supervisor is gone"))
        when_alone()

    async def _carry_out(self, do: Do, order: dict[str, Any]) -> None:
        reason = None
        try:
            await do(order["verb"], order["model"])
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever asked must hear of it
            reason = str(error) or type(error).__name__
            if order["yours"] is not None:
                self._own_errors[order["yours"]] = error
        self._send({"done": order["order"], "error": reason})

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(encoded(message))
