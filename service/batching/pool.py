"""Threads for CPU work that would block the event loop: decoding images, or `/adjust` with many
settings.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from service.batching.work import (
    NO_DEADLINE,
    Abandoned,
    Caller,
    Deadline,
    DeadlinePassed,
    Overloaded,
)
from service.process.threads import GivenUp, Threads, TooManyWait

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""Seconds that a closing pool waits for calls that still run."""


class Pool:
    """Bounded threads with the same deadlines and refusals as the batcher. Used from the event
    loop.
    """

    def __init__(self, threads: int, *, max_waiting_bytes: int) -> None:
        self._threads = Threads("pool", count=threads, max_bytes=max_waiting_bytes)

    def start(self) -> None:
        """Start the first thread. Raises RuntimeError where the system allows none."""
        self._threads.prepare()

    @property
    def waiting_bytes(self) -> int:
        """The total input size, in bytes, of the calls that wait or run."""
        return self._threads.bytes

    @property
    def busy_since(self) -> float | None:
        """`time.monotonic()` when the oldest running call began, for the watchdog; else None."""
        return self._threads.busy_since

    async def run(
        self,
        call: Callable[[], T],
        *,
        size: int,
        deadline: Deadline = NO_DEADLINE,
        caller: Caller | None = None,
    ) -> T:
        """Run `call()` in a thread, and return its result or raise its error.

        size: bytes of its input. Raises Overloaded when the waiting calls have too many bytes.
        Raises DeadlinePassed at the deadline, even a soft one and even while the call runs. Raises
        Abandoned when the caller left before the call began.
        """
        now = time.monotonic()
        deadline.check(now)

        def wanted() -> T:
            deadline.check(time.monotonic())
            if caller is not None and caller.connection.disconnected:
                raise Abandoned("the client left before its request was decoded")
            return call()

        try:
            return await self._threads.run(wanted, seconds=deadline.at - now, size=size)
        except TooManyWait as error:
            raise Overloaded(f"the request cannot be decoded now: {error}") from None
        except GivenUp:
            raise DeadlinePassed(deadline.message(time.monotonic())) from None

    def close(self) -> None:
        """Drop the calls that wait, and wait a few seconds for those that run."""
        self._threads.close(drop=True, wait_seconds=CLOSE_SECONDS)
