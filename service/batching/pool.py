"""Threads for what would hold up the event loop: decoding images, the formula under many settings. Bounded, and watched."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.batching.work import Abandoned, DeadlinePassed, Overloaded

T = TypeVar("T")


class Pool:
    """Used from the event loop only; the calls run in the threads."""

    def __init__(self, threads: int, *, max_waiting_bytes: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="pool")
        self._max_waiting_bytes = max_waiting_bytes
        self._begun: dict[int, float] = {}
        self.waiting_bytes = 0
        """Of the calls that queue or run."""

    @property
    def busy_since(self) -> float | None:
        """time.monotonic() when the longest of the running calls began; a watchdog reads it."""
        return min(list(self._begun.values()), default=None)

    async def run(
        self,
        call: Callable[[], T],
        *,
        size: int,
        deadline: float,
        is_abandoned: Callable[[], bool] | None = None,
    ) -> T:
        """The result of call(), whose input has `size` bytes.

        Raises Overloaded when too much waits already, DeadlinePassed at the deadline (time.monotonic()) even while the call
        runs, Abandoned when the caller left before it began, and what the call raises.
        """
        if self.waiting_bytes and self.waiting_bytes + size > self._max_waiting_bytes:
            raise Overloaded(f"{self.waiting_bytes} bytes wait to be decoded")
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        future = asyncio.get_running_loop().run_in_executor(
            self._executor, self._watched, call, deadline, is_abandoned
        )
        self.waiting_bytes += size
        future.add_done_callback(lambda _: self._leave(size))
        await asyncio.wait({future}, timeout=min(seconds, threading.TIMEOUT_MAX))
        if not future.done():
            future.cancel()
            raise DeadlinePassed("the deadline passed before the request was decoded")
        return future.result()

    def close(self) -> None:
        """Wait for what runs, and let the threads end."""
        self._executor.shutdown(cancel_futures=True)

    def _leave(self, size: int) -> None:
        self.waiting_bytes -= size

    def _watched(
        self, call: Callable[[], T], deadline: float, is_abandoned: Callable[[], bool] | None
    ) -> T:
        now = time.monotonic()
        if deadline <= now:
            raise DeadlinePassed("the deadline passed while the request was queued")
        if is_abandoned is not None and is_abandoned():
            raise Abandoned("the caller left")
        thread = threading.get_ident()
        self._begun[thread] = now
        try:
            return call()
        finally:
            del self._begun[thread]
