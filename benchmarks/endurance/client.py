"""Sends many requests at once over persistent connections; hangs up early if a request says so."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.endurance.answers import fault_of
from benchmarks.endurance.traffic import Ask

LEFT = 0
"""Counted instead of a status when the client left."""
MAX_KEPT_FAULTS = 100


@dataclass
class Driven:
    """The results: the number of answers by status, and the first hundred faults in words."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0

    def add(self, status: int, fault: str | None) -> None:
        """Count one result."""
        self.statuses[status] += 1
        if fault is not None:
            self.faulty += 1
            if len(self.faults) < MAX_KEPT_FAULTS:
                self.faults.append(fault)


async def drive(url: str, asks: Iterable[Ask], *, connections: int) -> Driven:
    """Send every request, `connections` at a time, and compare each answer with the formula."""
    driven, left = Driven(), iter(asks)
    await asyncio.gather(*(_one_connection(url, left, driven) for _ in range(connections)))
    return driven


async def _one_connection(url: str, asks: Iterator[Ask], driven: Driven) -> None:
    connection = Connection(url)
    try:
        for ask in asks:
            if ask.leaves is not None:
                await connection.leave(ask)
                driven.add(LEFT, None)
                continue
            status, headers, body = await connection.send(ask)
            driven.add(status, fault_of(ask, status, headers, body))
    finally:
        await connection.close()


class Connection:
    """One HTTP/1.1 connection, opened again after it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, ask: Ask) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of the answer."""
        reader, writer = await self._open()
        writer.write(_head(ask) + ask.body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in [line.partition(": ") for line in head[1:] if line]
        }
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "") == "close":
            await self.close()
        return int(head[0].split()[1]), headers, body

    async def leave(self, ask: Ask) -> None:
        """Send a part of the request or all of it, then hang up without reading the answer."""
        _, writer = await self._open()
        body = ask.body[: len(ask.body) // 2] if ask.leaves == "within" else ask.body
        writer.write(_head(ask) + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        await self.close()

    async def close(self) -> None:
        """Close the connection, if it is open."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self._reader, self._writer


def _head(ask: Ask) -> bytes:
    lines = [f"POST {ask.path} HTTP/1.1", "host: test", f"content-length: {len(ask.body)}"]
    lines += [f"{name}: {value}" for name, value in ask.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
