"""Calls to the prior store: off the event loop, limited in time, refused while it is
unreachable.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from service.priors.changes import Change
from service.priors.feed import Feed, FeedStore
from service.priors.orders.wishes import OrderStore
from service.priors.revisions import Served, StoredRevision, StoreUnavailable, Written
from service.process.threads import GivenUp, Threads, TooManyWait

T = TypeVar("T")


class PriorStore(FeedStore, OrderStore, Protocol):
    """The part of a store that is used here. Every call may block and may raise
    StoreUnavailable.
    """

    def write(self, model: str, name: str, change: Change, *, by: str, after: int) -> Written:
        """Apply a change to the newest entry, atomically, and return the newest entry afterwards.

        Raises StoreUnavailable("behind") when the store lacks change number `after`.
        """

    def read(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """One entry of the history."""

    def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first."""

    def served(self, model: str, name: str) -> list[Served]:
        """Which revision each worker serves."""


MAX_WAITING = 1000
"""The most calls that may wait for the reading thread, and for the writing thread."""


_VALUE_SECONDS = 50e-6
"""Extra seconds that a call may take for each number of a prior: ten times what one core needs."""


class StoreCalls:
    """One thread for reading and one for writing. Used from one event loop."""

    def __init__(self, store: PriorStore, feed: Feed, *, answer_seconds: float) -> None:
        """`answer_seconds` bounds each call; the feed knows whether the store can be reached."""
        self._store, self._feed = store, feed
        self._answer_seconds = answer_seconds
        self._fetching: dict[tuple[str, str, int], asyncio.Future[StoredRevision | None]] = {}
        self._reads: Threads | None = None
        self._writes: Threads | None = None
        self._limits: list[float] = []
        """The seconds that each call which waits or runs may take."""

    def start(self) -> None:
        """Accept calls from now on."""
        self._reads = Threads("prior-reads", count=1, max_calls=MAX_WAITING)
        self._writes = Threads("prior-writes", count=1, max_calls=MAX_WAITING)
        self._reads.prepare()
        self._writes.prepare()

    def stop(self) -> None:
        """Accept no more calls. Calls that are waiting still run."""
        for threads in (self._reads, self._writes):
            if threads is not None:
                threads.close()

    async def read(self, call: Callable[[PriorStore], T]) -> T:
        """The result of a call that reads. Raises StoreUnavailable."""
        return await self._run(self._reads, call)

    async def write(self, call: Callable[[PriorStore], T], *, values: int = 0) -> T:
        """The result of a call that writes; the feed learns of trouble.

        values: the most numbers of the prior that is written. Raises StoreUnavailable.
        """
        try:
            written = await self._run(self._writes, call, values=values)
        except StoreUnavailable as error:
            self._feed.write_failed(error)
            raise
        self._feed.write_failed(None)
        return written

    async def entry(
        self, model: str, name: str, revision: int, *, values: int = 0
    ) -> StoredRevision | None:
        """Read one entry; concurrent requests for the same one share the call.

        values: the most numbers of the prior that is read.
        """
        key = (model, name, revision)
        reading = self._fetching.get(key)
        if reading is None:
            call = self._run(
                self._reads, lambda store: store.read(model, name, revision), values=values
            )
            reading = self._fetching[key] = asyncio.ensure_future(call)
            reading.add_done_callback(lambda _: self._fetching.pop(key, None))
        entry = await asyncio.shield(reading)
        if entry is not None and entry.damaged:
            raise StoreUnavailable(
                "corrupt",
                f"revision {revision} of prior '{name}' is damaged in the store; write the prior "
                "again, or restore the store from a backup",
            )
        return entry

    async def _run(
        self, threads: Threads | None, call: Callable[[PriorStore], T], *, values: int = 0
    ) -> T:
        if threads is None:
            raise StoreUnavailable(
                "none", "it is not followed yet; wait until the service is ready"
            )
        self._feed.check_reachable()
        own = self._answer_seconds + values * _VALUE_SECONDS
        limit, busy_since = max([own, *self._limits]), threads.busy_since
        if busy_since is not None and time.monotonic() - busy_since > limit:
            raise StoreUnavailable(
                "slow",
                f"an earlier call has not returned for {limit:g} s; check that the store answers",
            )
        self._limits.append(own)
        try:
            return await threads.run(lambda: call(self._store), seconds=limit)
        except TooManyWait as error:
            raise StoreUnavailable("slow", str(error)) from None
        except GivenUp as error:
            effect = (
                "; it may still take effect" if error.started and threads is self._writes else ""
            )
            raise StoreUnavailable("slow", f"{error}{effect}") from None
        finally:
            self._limits.remove(own)
