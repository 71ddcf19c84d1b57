"""Calls to the prior store: off the event loop, bounded in time, refused at once while the store is away."""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from service.priors.changes import Decide
from service.priors.feed import Feed, FeedStore
from service.priors.lane import Lane, LaneStuck
from service.priors.revisions import Served, StoredRevision, StoreUnavailable, Written

T = TypeVar("T")


class PriorStore(FeedStore, Protocol):
    """What is needed of a store; every call may block and may raise StoreUnavailable."""

    def write(self, model: str, name: str, decide: Decide, *, by: str, after: int) -> Written:
        """Store what decide makes of the newest entry, atomically, and return the entry that is newest then.

        Raises StoreUnavailable("behind") when the store has not got change number `after`.
        """

    def read(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """One entry of the history."""

    def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first."""

    def served(self, model: str, name: str) -> list[Served]:
        """Which revision each worker serves."""


class StoreCalls:
    """One lane for reading and one for writing, each with a thread of its own. Used from one event loop."""

    def __init__(self, store: PriorStore, feed: Feed, *, answer_seconds: float) -> None:
        """answer_seconds bounds each call; the feed knows whether the store can be reached."""
        self._store, self._feed = store, feed
        self._answer_seconds = answer_seconds
        self._fetching: dict[tuple[str, str, int], asyncio.Future[StoredRevision | None]] = {}
        self._reads: Lane | None = None
        self._writes: Lane | None = None

    def start(self) -> None:
        """Before the first call."""
        self._reads = Lane("prior-reads")
        self._writes = Lane("prior-writes")

    def stop(self) -> None:
        """No call after this one."""
        for lane in (self._reads, self._writes):
            if lane is not None:
                lane.close()

    async def read(self, call: Callable[[PriorStore], T]) -> T:
        """What a reading call returns. Raises StoreUnavailable."""
        return await self._run(self._reads, call)

    async def write(self, call: Callable[[PriorStore], T]) -> T:
        """What a writing call returns; the feed is told how it went. Raises StoreUnavailable."""
        try:
            written = await self._run(self._writes, call)
        except StoreUnavailable as error:
            self._feed.write_failed(error)
            raise
        self._feed.write_failed(None)
        return written

    async def entry(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """Read one entry; requests that want the same one share the reading."""
        key = (model, name, revision)
        reading = self._fetching.get(key)
        if reading is None:
            call = self.read(lambda store: store.read(model, name, revision))
            reading = self._fetching[key] = asyncio.ensure_future(call)
            reading.add_done_callback(lambda _: self._fetching.pop(key, None))
        entry = await asyncio.shield(reading)
        if entry is not None and entry.damaged:
            raise StoreUnavailable(
                "corrupt", f"revision {revision} of prior '{name}' is damaged in the store"
            )
        return entry

    async def _run(self, lane: Lane | None, call: Callable[[PriorStore], T]) -> T:
        if lane is None:
            raise StoreUnavailable("none", "it is not followed yet")
        self._feed.check_reachable()
        try:
            return await lane.run(lambda: call(self._store), seconds=self._answer_seconds)
        except LaneStuck as error:
            effect = "; it may still take effect" if error.started and lane is self._writes else ""
            raise StoreUnavailable("slow", f"{error}{effect}") from None
