"""The priors in force: chosen in constant time while requests run, changed through the store."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.contract.bundle import Bundle
from service.contract.members.body import PriorBody
from service.contract.prior import UnknownLabelFrequencies
from service.priors.changes import (
    UNCONDITIONAL,
    AddCounts,
    Change,
    Condition,
    Delete,
    Replace,
    ReturnTo,
)
from service.priors.feed import Feed, StoreState, WorkerReport, this_worker
from service.priors.making import LONG_VALUES, Making, is_long
from service.priors.names import DEFAULT
from service.priors.orders.model_orders import ModelOrders
from service.priors.orders.wishes import ModelOrder
from service.priors.resolver import Resolver
from service.priors.revisions import (
    BUILT_IN,
    PriorConflict,
    PriorDoesNotFit,
    PriorRevision,
    RevisionNotHere,
    RevisionNotInMemory,
    Served,
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
    Written,
    check_prior_name,
    is_prior_name,
    parse_prior_reference,
    unknown_prior,
)
from service.priors.snapshot import (
    EMPTY,
    Snapshot,
    advance,
    resolve,
)
from service.priors.store_calls import PriorStore, StoreCalls

MAX_NAMES = 1000
"""The most stored priors in use per model: each adds a metric series and an entry of the list."""
_MAX_CHOSEN = 4096
_MAX_CHOSEN_BYTES = 128 * 2**20
_MAX_ROUNDS = 3
"""How often a prior is made again because a newer revision arrived while it was being made."""


class Priors:
    """The priors in force, kept in step with a store, and the way to change them.

    Choosing a prior is synchronous and never gives a revision older than one given before. Used
    from one event loop, except for `in_force` and `resolved`.
    """

    def __init__(
        self,
        store: PriorStore | None = None,
        *,
        worker: WorkerReport | None = None,
        poll_seconds: float = 0.1,
        answer_seconds: float = 2.0,
        cache_bytes: int = 16 * 2**20,
    ) -> None:
        """Without a store, only built-in and inline priors are served.

        worker: the name of this process for other workers. poll_seconds: pause between two polls of
        the store. answer_seconds: time limit of each call to the store. cache_bytes: the most
        memory for resolved priors.
        """
        self._in_force: Snapshot = EMPTY
        self._chosen: dict[tuple[int, str | None], tuple[Bundle, PriorRevision]] = {}
        self._chosen_bytes = 0
        self._making = Making()
        self._resolver = Resolver(cache_bytes)
        self._feed: Feed | None = None
        self._calls: StoreCalls | None = None
        self.orders: ModelOrders | None = None
        """Orders for models, which travel through the same store; None without one."""
        if store is not None:
            self._feed = Feed(
                store,
                worker=worker or this_worker(),
                poll_seconds=poll_seconds,
                prepare=self._resolver.prepare,
                deliver=self._apply,
                deliver_orders=self._order_models,
            )
            self._calls = StoreCalls(store, self._feed, answer_seconds=answer_seconds)
            self.orders = ModelOrders(self._calls, self._feed)

    async def start(self, *, optional: bool = False, seconds: float = 5.0) -> None:
        """Read the store and follow it. Raises StoreUnavailable unless the store is `optional`."""
        if self._feed is None or self._calls is None:
            return
        self._making.start()
        self._calls.start()
        error = await self._feed.start(seconds=seconds)
        if error is not None and not optional:
            await self.stop()
            raise StoreUnavailable(
                error.kind, f"{error.detail}; give --store-optional to start without it"
            )

    async def stop(self) -> None:
        """Stop following; the priors read so far stay in force."""
        self._making.close()
        if self._calls is not None:
            self._calls.stop()
        if self._feed is not None:
            await self._feed.stop(seconds=1.0)

    @property
    def store_state(self) -> StoreState:
        """The state of the store; its kind is `none` without a store."""
        return StoreState("none", "no store was given") if self._feed is None else self._feed.state

    # ---- choosing

    def select(
        self,
        bundle: Bundle,
        name: str | None = None,
        *,
        at: int | None = None,
        at_least: int | None = None,
    ) -> PriorRevision:
        """The prior that a request gets now. A name of None is `default`.

        Raises UnknownPrior, PriorDoesNotFit, UnknownLabelFrequencies, RevisionNotHere (`at_least`
        has not arrived yet) and RevisionNotInMemory (`at` is an older revision: await `fetch`).
        """
        if at is None and at_least is None:
            chosen = self._chosen.get((id(bundle), name))
            if chosen is not None:
                return chosen[1]
            revision = self.in_force(bundle, name or DEFAULT)
            self._choose(bundle, name, revision)
            return revision
        if at is not None:
            return self._pinned(bundle, name or DEFAULT, at)
        assert at_least is not None
        return self._recent(bundle, name or DEFAULT, at_least)

    def in_force(self, bundle: Bundle, name: str) -> PriorRevision:
        """The prior that `select` would return for a name, computed without its cache: for any
        thread.

        Raises as `select` does.
        """
        if name in BUILT_IN:
            return self._resolver.built_in(bundle, name)
        entry = self._fitting(bundle, name)
        if entry is not None:
            try:
                return self._resolver.stored(bundle, entry)
            except PriorDoesNotFit:
                if name != DEFAULT:
                    raise
        if (
            name == DEFAULT
        ):  # not stored, or only for another class list: the model's own rule applies
            return self._resolver.built_in(bundle, name)
        newest = self.newest(bundle.name, name)
        if newest is None:
            raise unknown_prior(
                name, [DEFAULT, *BUILT_IN, *(n for n in self.names(bundle.name) if n != DEFAULT)]
            )
        return self._resolver.stored(bundle, newest)  # says why it does not fit

    def forget(self, bundle: Bundle) -> None:
        """Drop what is cached for a model version that is no longer served."""
        self._chosen = {k: v for k, v in self._chosen.items() if v[0] is not bundle}
        self._chosen_bytes = sum(revision.nbytes for _, revision in self._chosen.values())
        self._resolver.forget(bundle)

    def inline(self, bundle: Bundle, body: object) -> PriorRevision:
        """Check a prior that a request gives inline.

        Raises InvalidPrior or UnknownLabelFrequencies.
        """
        return self._resolver.inline(bundle, body)

    def resolved(self, bundle: Bundle, name: str, entry: StoredRevision | None) -> PriorRevision:
        """The vectors of an entry; None stands for a built-in or an unstored `default`.

        Raises PriorDoesNotFit and the like.
        """
        return (
            self._resolver.built_in(bundle, name)
            if entry is None
            else self._resolver.stored(bundle, entry)
        )

    def missing(self, bundle: Bundle, revision: PriorRevision) -> list[str]:
        """Names that a prior's context or schedule can choose but that cannot be used now.

        It may resolve each of them, and may be called from any thread.
        """
        switch, absent = revision.prior.switch, []
        for name in () if switch is None else switch.names:
            try:
                self.in_force(bundle, name)
            except (UnknownPrior, PriorDoesNotFit, UnknownLabelFrequencies):
                absent.append(name)
        return absent

    def newest(self, model: str, name: str) -> StoredRevision | None:
        """The newest entry of a prior in use, whether it fits the model's classes or not."""
        held = self._in_force.get((model, name))
        return None if held is None or held.newest.deleted else held.newest

    def last(self, model: str, name: str) -> StoredRevision | None:
        """The newest entry of a prior, which may be a deletion; None if it was never stored."""
        held = self._in_force.get((model, name))
        return None if held is None else held.newest

    def names(self, model: str) -> list[str]:
        """Stored priors of a model that are in use, sorted."""
        return sorted(
            n for (m, n), held in self._in_force.items() if m == model and not held.newest.deleted
        )

    def misfits(self, bundle: Bundle) -> list[StoredRevision]:
        """Newest entries that are not applied because their class list is not the model's."""
        digest = self._resolver.digest(bundle)
        entries = [self.newest(bundle.name, name) for name in self.names(bundle.name)]
        return [entry for entry in entries if entry is not None and entry.class_digest != digest]

    def at_hand(self, bundle: Bundle, wanted: str | dict[str, Any] | None) -> PriorRevision:
        """The prior of a request: named (`name`, `name@7`, `name@>=8`), inline, or the default.

        Raises as `select` and `inline` do, and InvalidReference. An inline prior of many values
        raises RevisionNotInMemory: `requested` checks it in a thread.
        """
        if isinstance(wanted, dict):
            if is_long(wanted):
                raise RevisionNotInMemory("an inline prior of many values is checked in a thread")
            return self.inline(bundle, wanted)
        chosen = self._chosen.get((id(bundle), wanted))
        if chosen is not None:
            return chosen[1]
        reference = parse_prior_reference(DEFAULT if wanted is None else wanted)
        if not self._is_quick(bundle, reference.name, reference.at):
            raise RevisionNotInMemory("a prior of many classes is made ready in a thread")
        if wanted is None:
            return self.select(bundle)
        return self.select(bundle, reference.name, at=reference.at, at_least=reference.at_least)

    async def requested(self, bundle: Bundle, wanted: str | dict[str, Any] | None) -> PriorRevision:
        """The prior of a request, fetched from the store if it is an older revision.

        A prior of many values or classes is checked or resolved in a thread.
        """
        if isinstance(wanted, dict) and is_long(wanted):
            return await self._making.made(partial(self.inline, bundle, wanted))
        try:
            return self.at_hand(bundle, wanted)
        except RevisionNotInMemory:
            assert not isinstance(wanted, dict)
            reference = parse_prior_reference(DEFAULT if wanted is None else wanted)
            if reference.at is not None:
                return await self.fetch(bundle, reference.name, reference.at)
            name = None if wanted is None else reference.name
            return await self.selected(bundle, name, at_least=reference.at_least)

    async def selected(
        self, bundle: Bundle, name: str | None, *, at_least: int | None = None
    ) -> PriorRevision:
        """Choose a prior as `select` does, but make the vectors of many classes in a thread.

        Raises what `select` raises, and PriorsBusy.
        """
        for _ in range(_MAX_ROUNDS):
            if self._is_quick(bundle, name or DEFAULT, chosen=name):
                return self.select(bundle, name, at_least=at_least)
            entry = self._fitting(bundle, name or DEFAULT)
            then = partial(self._choose_if, bundle, name, entry)
            make = partial(self.in_force, bundle, name or DEFAULT)
            await self._making.once((id(bundle), name), make, then)
        # Each time a newer revision arrived. This one is made for this request alone, which has
        # begun before the thread reads what is in force, so that no request gets an older one.
        revision = await self._making.made(partial(self.in_force, bundle, name or DEFAULT))
        if at_least is not None and revision.revision < at_least:
            return self.select(bundle, name, at_least=at_least)
        return revision

    def _choose_if(
        self, bundle: Bundle, name: str | None, entry: StoredRevision | None, made: PriorRevision
    ) -> None:
        """Choose a prior that was just made, unless a newer revision has arrived meanwhile."""
        if self._fitting(bundle, name or DEFAULT) is entry:
            self._choose(bundle, name, made)

    async def fetch(self, bundle: Bundle, name: str | None, at: int) -> PriorRevision:
        """An older revision, from memory or the store.

        Raises as `select` does, and StoreUnavailable.
        """
        name = name or DEFAULT
        try:
            if self._is_quick(bundle, name, at):
                return self._pinned(bundle, name, at)
            return await self._making.made(partial(self._pinned, bundle, name, at))
        except RevisionNotInMemory:
            values = len(bundle.class_names)
            entry = await self._need_store().entry(bundle.name, name, at, values=values)
        if entry is None or entry.deleted:
            newest = self.newest(bundle.name, name)
            known = f"it is at revision {newest.revision}" if newest else "it was never stored"
            raise UnknownPrior(
                f"prior '{name}' has no revision {at}; {known}: name another, or none for the "
                "newest"
            )
        if len(bundle.class_names) <= LONG_VALUES:
            return self._resolver.stored(bundle, entry)
        return await self._making.made(partial(self._resolver.stored, bundle, entry))

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
        """Store a new revision, unless it equals the one in force.

        Raises InvalidPrior, StaleRevision and the like.
        """
        check_prior_name(name)
        digest = self._resolver.digest(bundle)
        await asyncio.to_thread(resolve, bundle, name, 0, body, None)
        if self.newest(bundle.name, name) is None and len(self.names(bundle.name)) >= MAX_NAMES:
            raise PriorConflict(
                f"model '{bundle.name}' has {MAX_NAMES} priors already; delete one first"
            )
        change = Replace(name, body, digest, condition, class_names=bundle.class_names)
        return await self._write(bundle, name, change, by)

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
        checked = partial(
            AddCounts.checked, name, addition, bundle=bundle, note=note, condition=condition
        )
        change = await asyncio.to_thread(checked)
        return await self._write(bundle, name, change, by)

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
        """Store a new revision equal to an old one; revision 0 means that nothing is stored.

        After a return to revision 0 the entry written is a deletion. Raises UnknownPrior when there
        is no such revision, StaleRevision and the like.
        """
        check_prior_name(name)
        note = note or f"back to revision {revision}"
        if revision == 0:
            change: Change = Delete(name, condition, note=note, if_stored=True)
        else:
            old = await self.entry(bundle, name, revision)
            digest, names = self._resolver.digest(bundle), bundle.class_names
            change = ReturnTo(name, old, digest, note, condition, names)
        return await self._write(bundle, name, change, by)

    async def remove(
        self, bundle: Bundle, name: str, *, by: str, condition: Condition = UNCONDITIONAL
    ) -> Written:
        """Take a prior out of use; its history stays."""
        check_prior_name(name)
        return await self._write(bundle, name, Delete(name, condition), by)

    # ---- reading history

    async def entry(self, bundle: Bundle, name: str, revision: int) -> StoredRevision:
        """One entry of the history, which may be a deletion.

        Raises UnknownPrior, and StoreUnavailable for a damaged entry.
        """
        newest = self.newest(bundle.name, name)
        if newest is not None and newest.revision == revision:
            return newest
        entry = None
        if is_prior_name(name):
            values = len(bundle.class_names)
            entry = await self._need_store().entry(bundle.name, name, revision, values=values)
        if entry is None:
            raise UnknownPrior(
                f"prior '{name[:64]}' has no revision {revision}; "
                f"GET /priors/{name[:64]}/revisions lists them"
            )
        return entry

    async def refreshed(self, bundle: Bundle, name: str) -> StoredRevision | None:
        """The newest entry of a prior in use, as the store has it now; None where none is in use.

        This worker serves it from now on. Raises StoreUnavailable.
        """
        newest = await self.history(bundle.name, name, before=None, limit=1)
        held = self.last(bundle.name, name)
        if newest and (held is None or held.revision < newest[0].revision):
            self._apply([await self.entry(bundle, name, newest[0].revision)])
        return self.newest(bundle.name, name)

    async def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first; empty if the prior was never stored."""
        if not is_prior_name(name):
            return []
        return await self._need_store().read(
            lambda store: store.history(model, name, before=before, limit=limit)
        )

    async def served(self, model: str, name: str) -> list[Served]:
        """The revision that each worker of each replica serves, by its last report."""
        if not is_prior_name(name):
            return []
        return await self._need_store().read(lambda store: store.served(model, name))

    # ---- inside

    def _choose(self, bundle: Bundle, name: str | None, revision: PriorRevision) -> None:
        size = self._chosen_bytes + revision.nbytes
        if len(self._chosen) >= _MAX_CHOSEN or size > _MAX_CHOSEN_BYTES:
            self._chosen, size = {}, revision.nbytes
        self._chosen[id(bundle), name] = (bundle, revision)
        self._chosen_bytes = size

    def _fitting(self, bundle: Bundle, name: str) -> StoredRevision | None:
        """Return the stored entry in force for a model. None for a built-in prior, or if no entry
        fits.
        """
        held = None if name in BUILT_IN else self._in_force.get((bundle.name, name))
        return None if held is None else held.fitting.get(self._resolver.digest(bundle))

    def _is_quick(
        self, bundle: Bundle, name: str, at: int | None = None, *, chosen: str | None = ""
    ) -> bool:
        """Whether `select` would be quick. Making the vectors of 20,000 classes takes 20 ms.

        chosen: the name under which the result may be cached; the default, "", is no prior's name.
        """
        if len(bundle.class_names) <= LONG_VALUES or (id(bundle), chosen) in self._chosen:
            return True
        if at is None:
            entry = self._fitting(bundle, name)
            if entry is None and name != DEFAULT and name not in BUILT_IN:
                return True  # it raises
            at = 0 if entry is None else entry.revision
        return self._resolver.held(bundle, name, at) is not None

    def _pinned(self, bundle: Bundle, name: str, at: int) -> PriorRevision:
        if at == 0 and (name == DEFAULT or name in BUILT_IN):
            return self._resolver.built_in(bundle, name)
        if name in BUILT_IN:
            raise UnknownPrior(
                f"'{name}' is built in and has only revision 0, not {at}; leave the revision out"
            )
        held = self._in_force.get((bundle.name, name))
        if held is not None and held.newest.deleted:
            raise UnknownPrior(
                f"prior '{name}' was deleted at revision {held.newest.revision}; PUT it again, or "
                "roll back to an older revision"
            )
        for entry in () if held is None else (held.newest, *held.fitting.values()):
            if entry.revision == at:
                return self._resolver.stored(bundle, entry)
        found = self._resolver.held(bundle, name, at)
        if found is None:
            raise RevisionNotInMemory(f"revision {at} of prior '{name}' is in the store only")
        return found

    def _recent(self, bundle: Bundle, name: str, at_least: int) -> PriorRevision:
        held = self._in_force.get((bundle.name, name))
        newest = 0 if held is None else held.newest.revision
        if newest < at_least and name not in BUILT_IN:
            if self._feed is not None:
                self._feed.wake()
            raise RevisionNotHere(
                f"this worker still serves revision {newest} of prior '{name}'; the request asks "
                f"for at least {at_least}: send it again in a second"
            )
        chosen = self.select(bundle, name)
        if chosen.revision < at_least:
            if name in BUILT_IN or newest == 0 or (held is not None and held.newest.deleted):
                raise UnknownPrior(
                    f"prior '{name}' has no revision {at_least} or later in use; PUT it again, or "
                    "ask for an earlier one"
                )
            raise PriorDoesNotFit(
                f"revision {newest} of prior '{name}' belongs to another class list than version "
                f"{bundle.version} of model '{bundle.name}'; PUT the prior again, or use the "
                f"newest that fits, revision {chosen.revision}"
            )
        return chosen

    def _apply(self, entries: Sequence[StoredRevision]) -> None:
        self._in_force = advance(self._in_force, entries)
        self._chosen, self._chosen_bytes = {}, 0

    def _order_models(self, orders: Sequence[ModelOrder]) -> None:
        assert self.orders is not None
        self.orders.arrived(orders)

    async def _write(self, bundle: Bundle, name: str, change: Change, by: str) -> Written:
        calls = self._need_store()
        assert self._feed is not None
        feed = self._feed

        def write(store: PriorStore) -> Written:
            written = store.write(bundle.name, name, change, by=by, after=feed.change)
            self._resolver.prepare([written.entry])
            return written

        written = await calls.write(write, values=len(bundle.class_names))
        self._apply([written.entry])
        return written

    def _need_store(self) -> StoreCalls:
        if self._calls is None:
            raise StoreUnavailable(
                "none",
                "no store was given, so only built-in and inline priors can be used; restart with "
                "--store",
            )
        return self._calls
