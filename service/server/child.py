"""A worker from its supervisor's point of view: a child process, the socket to it, and its end."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from signal import SIGKILL
from typing import Any

from service.contract.resources import available_memory, memory_kills
from service.server.link import Place, next_message

logger = logging.getLogger(__name__)


class WorkerProcess:
    """A worker process. Create it with `start`.

    The worker has ended once `next_message` returned None and `wait` returned.
    """

    def __init__(
        self,
        slot: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.slot, self.pid = slot, process.pid
        self._process, self._reader, self._writer = process, reader, writer
        self.listens_at: float | None = None
        """time.monotonic() when the worker began to accept connections; None before that."""
        self.unready: str | None = None
        """Why the worker was not ready at that moment, in its own words; None if it was."""
        self.refused: str | None = None
        """The worker's own reason for refusing to serve; None unless it refuses."""

    @classmethod
    async def start(cls, place: Place) -> "WorkerProcess":
        """Start `python -m service.server.worker` and send it its `Place`.

        Raises OSError, or RuntimeError if no thread can be started to wait for the process.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "service.server.worker", str(theirs.fileno()),
                    pass_fds=(theirs.fileno(), place.listener),
                    process_group=0,  # Ctrl-C in a terminal is for the supervisor only
                )  # fmt: skip
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # if the process has started, it finds its line closed and ends
            raise
        writer.write(place.encoded())
        return cls(place.slot, process, reader, writer)

    async def next_message(self) -> dict[str, Any] | None:
        """Return the worker's next message; None once it has closed the socket."""
        return await next_message(self._reader)

    async def wait(self) -> int:
        """Wait until the worker has ended, and return its exit status.

        A status of -N means that signal N killed it.
        """
        status = await self._process.wait()
        self._writer.close()
        return status

    def signal(self, number: int) -> None:
        """Send the worker a signal, unless it has ended.

        The process's own `send_signal` first looks whether it has ended, and then takes its exit
        status away from the thread that waits for it.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class MemoryKills:
    """Tells which workers the kernel has killed because memory ran out.

    The kernel only counts them, so each new one in the control group explains one worker.
    """

    def __init__(self, count: Callable[[], int] = memory_kills) -> None:
        """`count` is the number of such processes so far."""
        self._count, self._explained = count, count()

    def reason(self, status: int) -> str | None:
        """Why the kernel killed a worker with this exit status; None if it did not."""
        if status != -SIGKILL or self._count() <= self._explained:
            return None
        self._explained += 1
        return (
            "killed by the kernel, because memory ran out (this service may use "
            f"{available_memory() // 2**20} MiB): give it more, or set fewer --workers or a lower "
            "--max-bodies-mib"
        )
