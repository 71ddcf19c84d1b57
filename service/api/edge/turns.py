"""Lets requests compute one at a time, and limits how many wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.api.edge.errors import Problem

MAX_WAITING = 4
"""The most requests that wait while another computes; each keeps its decoded body in memory."""


class Turns:
    """Gives the requests to a few routes turns to compute."""

    def __init__(self, what: str, *, waiting: int = MAX_WAITING) -> None:
        """what: says what is being computed, for messages. waiting: how many may wait."""
        self._what, self._most = what, 1 + waiting
        self._held = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[asyncio.Lock]:
        """Hold a place in the queue. Yields the lock to take while computing.

        A holder takes the lock while it computes, and releases it while it waits for others.
        """
        if self._held >= self._most:
            raise Problem(
                "overloaded",
                f"{self._what} for {self._most} requests, the most that can wait; send this one "
                "again",
                headers={"Retry-After": "1"},
            )
        self._held += 1
        try:
            yield self._turn
        finally:
            self._held -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn, and hold it. Raises Problem(overloaded) if the queue is full."""
        async with self.place() as turn, turn:
            yield
