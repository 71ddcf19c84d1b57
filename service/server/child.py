"""A worker as its supervisor sees it: a child process and the line to it."""

import asyncio
import json
import socket
import sys
from typing import Any

from service.server.link import MAX_LINE_BYTES, Place, encoded


class WorkerProcess:
    """Made by `start`; ended when `next_message` is None and `wait` has returned."""

    def __init__(
        self,
        slot: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.slot, self.pid = slot, process.pid
        self._process, self._reader, self._writer = process, reader, writer
        self.ready_at: float | None = None
        """time.monotonic() when it began to serve."""
        self.refused: str | None = None
        """Why it will not serve, in its own words."""
        self._orders: dict[int, asyncio.Future[str | None]] = {}

    @classmethod
    async def start(cls, place: Place) -> "WorkerProcess":
        """Start `python -m service.server.worker` and tell it its place."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.server.worker", str(theirs.fileno()),
                pass_fds=(theirs.fileno(), place.listener),
                process_group=0,  # Ctrl-C in a terminal is for the supervisor, which tells the workers once
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        writer.write(place.encoded())
        return cls(place.slot, process, reader, writer)

    def send(self, message: dict[str, Any]) -> None:
        """Say something; nothing happens when it has ended."""
        if not self._writer.is_closing():
            self._writer.write(encoded(message))

    def order(
        self, number: int, verb: str, model: str, *, yours: int | None
    ) -> "asyncio.Future[str | None]":
        """Have it do something. The future is why it could not; None when it could, or when it has ended."""
        answer = self._orders[number] = asyncio.get_running_loop().create_future()
        self.send({"order": number, "verb": verb, "model": model, "yours": yours})
        return answer

    def done(self, number: int, error: str | None) -> None:
        """It has carried out an order."""
        self._orders.pop(number).set_result(error)

    async def next_message(self) -> dict[str, Any] | None:
        """What it says next; None when it has hung up."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it has ended. Orders that it owed count as done."""
        status = await self._process.wait()
        self._writer.close()
        for answer in self._orders.values():
            answer.set_result(None)  # whoever takes its place starts from how things are now
        self._orders.clear()
        return status

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)
