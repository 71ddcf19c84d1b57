"""Sends many requests at once over persistent connections, every fourth time several in a row.

It hangs up early if a request says so, and gives up a request that has no answer for 20 s.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.endurance.answers import fault_of
from benchmarks.endurance.traffic import Ask

ANSWER_SECONDS = 20.0
"""A request without an answer for so long counts as lost."""
PIPELINED = 4
"""The most requests that are sent in a row before their answers are read."""
LEFT = 0
"""Counted instead of a status when the client left."""
MAX_KEPT_FAULTS = 100


@dataclass
class Driven:
    """The results: the number of answers by status, and the first hundred faults in words."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0
    lost: int = 0
    longest_seconds: float = 0.0
    """The longest wait for an answer, from the one before it on the same connection."""

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
    connection, row = Connection(url), []
    rows = 0
    try:
        for ask in asks:
            if ask.leaves is not None:
                await connection.leave(ask)
                driven.add(LEFT, None)
                continue
            row.append(ask)
            if len(row) == (PIPELINED if rows % 4 == 3 else 1):
                await _answered(connection, row, driven)
                row, rows = [], rows + 1
        if row:
            await _answered(connection, row, driven)
    finally:
        await connection.close()


async def _answered(connection: "Connection", row: list[Ask], driven: Driven) -> None:
    """Send requests in a row, and compare their answers."""
    number = 0
    try:
        async for status, headers, body in connection.send(row):
            driven.longest_seconds = max(driven.longest_seconds, connection.waited_seconds)
            driven.add(status, fault_of(row[number], status, headers, body))
            number += 1
    except TimeoutError:
        driven.lost += 1
        ask = row[number]
        driven.add(LEFT, f"no answer for {ANSWER_SECONDS:g} s to {ask.path} {ask.body[:80]!r}")
        await connection.close()


class Connection:
    """One HTTP/1.1 connection, opened again after it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.waited_seconds = 0.0
        """How long the last answer took to come."""

    async def send(self, row: list[Ask]) -> AsyncIterator[tuple[int, dict[str, str], bytes]]:
        """Send requests in one write. Yields the status, headers and body of each answer.

        Those behind an answer that closes the connection are sent again. Raises TimeoutError.
        """
        answered = 0
        while answered < len(row):
            reader, writer = await self._open()
            writer.write(b"".join(_head(ask) + ask.body for ask in row[answered:]))
            for _ in row[answered:]:
                begun = time.monotonic()
                async with asyncio.timeout(ANSWER_SECONDS):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    headers = {
                        name.lower(): value
                        for name, _, value in [line.partition(": ") for line in head[1:] if line]
                    }
                    body = await reader.readexactly(int(headers["content-length"]))
                self.waited_seconds = time.monotonic() - begun
                closes = headers.get("connection", "") == "close"
                if closes:
                    await self.close()
                answered += 1
                yield int(head[0].split()[1]), headers, body
                if closes:
                    break

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
