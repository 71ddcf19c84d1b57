"""Waits for a condition that another thread, process or task brings about."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Found = TypeVar("Found")


def _attempts(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while True:
        yield
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"


def eventually(condition: Callable[[], Found], *, seconds: float = 20.0) -> Found:
    """Call `condition` until it returns a true value, and return that value."""
    for _ in _attempts(seconds):
        if found := condition():
            return found
        threading.Event().wait(0.02)
    raise AssertionError


async def eventually_async(condition: Callable[[], Found], *, seconds: float = 20.0) -> Found:
    """Call `condition` until it returns a true value, while the event loop goes on."""
    for _ in _attempts(seconds):
        if found := condition():
            return found
        await asyncio.sleep(0.005)
    raise AssertionError
