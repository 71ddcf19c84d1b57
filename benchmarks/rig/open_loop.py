"""Open-loop load: each request is sent when it is due, whether or not earlier ones were answered.

A crowd of independent clients behaves like this.
"""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

TICK_SECONDS = 1e-3


@dataclass
class Arrivals:
    """Outcomes of the requests of one phase.

    A latency is measured from the time at which its request was due, not from when it was sent.
    """

    due: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    without_retry_after: int = 0
    broken: int = 0
    late: list[float] = field(default_factory=list)
    """For each request, how late the generator sent it, in seconds."""

    def milliseconds(self, percentile: float, status: int = 200) -> float:
        """Return a percentile of the latency, in ms, of answers with `status`; NaN without any."""
        taken = np.array(self.seconds)[np.array(self.status) == status]
        return float(1e3 * np.percentile(taken, percentile)) if len(taken) else float("nan")

    def count(self, status: int) -> int:
        """The number of answers with a status."""
        return self.status.count(status)


class Crowd:
    """Connections to one server, each with at most one open request; opened when needed."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._host, self._port, self._request = host, port, request
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def open(self, connections: int) -> None:
        """Open this many connections before the first request."""
        for start in range(0, connections, 50):
            await asyncio.gather(*(self._connect() for _ in range(min(50, connections - start))))

    async def arrive(self, *, per_second: float, seconds: float, most: int = 4000) -> Arrivals:
        """Send requests at an even rate, then wait for all answers.

        At most `most` connections are opened; when all are busy, requests are sent late.
        """
        found = Arrivals()
        begun, sent = time.perf_counter(), 0
        total = int(per_second * seconds)
        while sent < total:
            now = time.perf_counter()
            wanted = min(total, int((now - begun) * per_second))
            while sent < wanted and self._idle:
                due = begun + sent / per_second
                found.late.append(now - due)
                self._idle.pop().send(self._request, due, found)
                sent += 1
            missing = min(wanted - sent, most - len(self._all), 50) - len(self._opening)
            for _ in range(missing):
                task = asyncio.ensure_future(self._connect())
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            await asyncio.sleep(TICK_SECONDS)
        await self._all_answered()
        return found

    async def hold(self, *, clients: int, seconds: float) -> float:
        """Run this many closed-loop clients and return the answers per second with status 200.

        Each client sends its next request as soon as the previous one is answered.
        """
        found, end = Arrivals(), time.perf_counter() + seconds
        begun = time.perf_counter()

        def again(connection: "_Connection") -> None:
            if time.perf_counter() < end:
                self._idle.remove(connection)
                connection.send(self._request, time.perf_counter(), found, again)

        for connection in self._idle[:clients]:
            again(connection)
        await self._all_answered()
        return found.count(200) / (time.perf_counter() - begun)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._all):
            connection.transport.close()

    async def _all_answered(self) -> None:
        while any(c.waiting for c in self._all):  # noqa: ASYNC110 - polling once a tick is exact enough
            await asyncio.sleep(TICK_SECONDS)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._idle, self._all), self._host, self._port
        )
        self._all.add(connection)
        self._idle.append(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, idle: "list[_Connection]", everyone: "set[_Connection]") -> None:
        self._idle, self._everyone = idle, everyone
        self._buffer = b""
        self.waiting = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float, into: Arrivals, then=None) -> None:
        self._due, self._into, self._then, self.waiting = due, into, then, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at : at + 12].split(b"\r", 1)[0])
        if len(body) < length:
            return
        self._buffer = b""
        status = int(head[9:12])
        into = self._into
        into.due.append(self._due)
        into.seconds.append(time.perf_counter() - self._due)
        into.status.append(status)
        if status == 429 and b"\r\nretry-after:" not in lower:
            into.without_retry_after += 1
        self.waiting = False
        if not self.transport.is_closing():
            self._idle.append(self)
        if self._then is not None:
            self._then(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._everyone.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        if self.waiting:
            self.waiting = False
            self._into.broken += 1
