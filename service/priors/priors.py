"""The priors in force: chosen in constant time while requests run, changed through the store."""

import asyncio
import os
import socket
import uuid
from collections.abc import Mapping, Sequence

from service.contract.bundle import Bundle
from service.contract.prior import PriorBody, resolve_prior
from service.priors.changes import (
    UNCONDITIONAL,
    Condition,
    Decide,
    add_counts,
    delete,
    replace,
    return_to,
)
from service.priors.feed import Feed, StoreState, WorkerReport
from service.priors.in_force import PriorsInForce
from service.priors.revisions import (
    DEFAULT,
    PriorConflict,
    PriorDoesNotFit,
    PriorReference,
    PriorRevision,
    RevisionNotHere,
    RevisionNotInMemory,
    Served,
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
    Written,
    check_prior_name,
    parse_prior_reference,
)
from service.priors.store_calls import PriorStore, StoreCalls

__all__ = [
    "PriorDoesNotFit",
    "PriorReference",
    "PriorRevision",
    "Priors",
    "RevisionNotHere",
    "RevisionNotInMemory",
    "StoreState",
    "StoreUnavailable",
    "StoredRevision",
    "UnknownPrior",
    "Written",
    "parse_prior_reference",
]

MAX_NAMES = 1000
"""Stored priors a model can have in use: each is a metric series and a line of the list."""


def this_worker() -> WorkerReport:
    """This process, as other workers see it."""
    return WorkerReport(
        worker=uuid.uuid4().hex[:12], replica=socket.gethostname(), pid=os.getpid(), change=-1
    )


class Priors(PriorsInForce):
    """The priors in force, kept in step with a store, and the way to change them. Used from one event loop."""

    def __init__(
        self,
        store: PriorStore | None = None,
        *,
        worker: WorkerReport | None = None,
        poll_seconds: float = 0.1,
        answer_seconds: float = 2.0,
        cache_bytes: int = 16 * 2**20,
    ) -> None:
        """Without a store only built-in and inline priors are served. answer_seconds bounds each call to it."""
        super().__init__(cache_bytes=cache_bytes)
        self._store = store
        self._feed: Feed | None = None
        self._calls: StoreCalls | None = None
        if store is not None:
            self._feed = Feed(
                store,
                worker=worker or this_worker(),
                poll_seconds=poll_seconds,
                prepare=self._prepare,
                deliver=self._apply,
            )
            self._calls = StoreCalls(store, self._feed, answer_seconds=answer_seconds)

    async def start(self, *, optional: bool = False, seconds: float = 5.0) -> None:
        """Read the store and follow it. Raises StoreUnavailable when that fails, unless the store is optional."""
        if self._feed is None or self._calls is None:
            return
        self._calls.start()
        error = await self._feed.start(seconds=seconds)
        if error is not None and not optional:
            await self.stop()
            raise error

    async def stop(self) -> None:
        """Stop following; what was read stays in force."""
        if self._calls is not None:
            self._calls.stop()
        if self._feed is not None:
            await self._feed.stop(seconds=1.0)

    @property
    def store_state(self) -> StoreState:
        """How the store does now; `none` when there is none."""
        return StoreState("none", "no store was given") if self._feed is None else self._feed.state

    async def fetch(self, bundle: Bundle, name: str | None, at: int) -> PriorRevision:
        """An older revision, from memory or the store. Raises as select does, and StoreUnavailable."""
        name = name or DEFAULT
        try:
            return self._pinned(bundle, name, at)
        except RevisionNotInMemory:
            entry = await self._need_store().entry(bundle.name, name, at)
        if entry is None or entry.deleted:
            newest = self.newest(bundle.name, name)
            known = f"; it is at revision {newest.revision}" if newest else ""
            raise UnknownPrior(f"prior '{name}' has no revision {at}{known}")
        return self._resolve_entry(bundle, entry)

    # ---- changing

    async def put(
        self,
        bundle: Bundle,
        name: str,
        body: PriorBody,
        *,
        by: str,
        condition: Condition = UNCONDITIONAL,
    ) -> Written:
        """Store a new revision, unless it equals the one in force. Raises InvalidPrior, StaleRevision and the like."""
        check_prior_name(name)
        digest = self._digest(bundle)
        await asyncio.to_thread(_check_resolves, bundle, body)
        if self.newest(bundle.name, name) is None and len(self.names(bundle.name)) >= MAX_NAMES:
            raise PriorConflict(
                f"model '{bundle.name}' has {MAX_NAMES} priors already; delete one first"
            )
        return await self._write(
            bundle, name, replace(name, body, digest, condition, class_names=bundle.class_names), by
        )

    async def add(
        self,
        bundle: Bundle,
        name: str,
        addition: Mapping[str, Mapping[str, float] | Sequence[float]],
        *,
        by: str,
        note: str = "",
        condition: Condition = UNCONDITIONAL,
    ) -> Written:
        """Add observed counts, atomically among all writers."""
        check_prior_name(name)
        return await self._write(
            bundle, name, add_counts(name, addition, bundle, condition, note), by
        )

    async def rollback(
        self,
        bundle: Bundle,
        name: str,
        revision: int,
        *,
        by: str,
        note: str = "",
        condition: Condition = UNCONDITIONAL,
    ) -> Written:
        """Store a new revision equal to an old one."""
        check_prior_name(name)
        old = await self.entry(bundle.name, name, revision)
        note = note or f"back to revision {revision}"
        return await self._write(
            bundle, name, return_to(name, old, self._digest(bundle), condition, note), by
        )

    async def remove(
        self, bundle: Bundle, name: str, *, by: str, condition: Condition = UNCONDITIONAL
    ) -> None:
        """Take a prior out of use; its history stays."""
        check_prior_name(name)
        await self._write(bundle, name, delete(name, condition), by)

    # ---- reading history

    async def entry(self, model: str, name: str, revision: int) -> StoredRevision:
        """One entry of the history, deletions included. Raises UnknownPrior; StoreUnavailable when it is damaged."""
        newest = self.newest(model, name)
        if newest is not None and newest.revision == revision:
            return newest
        entry = await self._need_store().entry(model, name, revision)
        if entry is None:
            raise UnknownPrior(f"prior '{name}' has no revision {revision}")
        return entry

    async def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first; empty when there never was such a prior."""
        return await self._need_store().read(
            lambda store: store.history(model, name, before=before, limit=limit)
        )

    async def served(self, model: str, name: str) -> list[Served]:
        """Which revision each worker of each replica serves, as they last told the store."""
        return await self._need_store().read(lambda store: store.served(model, name))

    # ---- inside

    async def _write(self, bundle: Bundle, name: str, decide: Decide, by: str) -> Written:
        calls = self._need_store()
        assert self._feed is not None
        feed = self._feed

        def write(store: PriorStore) -> Written:
            written = store.write(bundle.name, name, decide, by=by, after=feed.change)
            self._prepare([written.entry])
            return written

        written = await calls.write(write)
        self._apply([written.entry])
        return written

    def _wish(self) -> None:
        if self._feed is not None:
            self._feed.wake()

    def _need_store(self) -> StoreCalls:
        if self._calls is None:
            raise StoreUnavailable(
                "none", "no store was given, so only built-in and inline priors can be used"
            )
        return self._calls


def _check_resolves(bundle: Bundle, body: PriorBody) -> None:
    resolve_prior(
        body,
        class_names=bundle.class_names,
        class_counts=bundle.class_counts,
        loss_tau=bundle.loss_tau,
    )
