"""Choosing the prior of a request: synchronous, constant time, never a revision older than one given before."""

from collections.abc import Sequence
from contextlib import suppress

from service.contract.bundle import Bundle
from service.priors.revisions import (
    BUILT_IN,
    DEFAULT,
    PriorDoesNotFit,
    PriorRevision,
    RevisionNotHere,
    RevisionNotInMemory,
    StoredRevision,
    UnknownPrior,
    unknown_prior,
)
from service.priors.snapshot import (
    EMPTY,
    ByteBoundedCache,
    Snapshot,
    advance,
    content_key,
    resolve_built_in,
    resolve_inline,
    resolve_stored,
)

_MAX_BUNDLES = 64
_MAX_CHOSEN = 4096


class PriorsInForce:
    """The snapshot of stored priors that requests are answered with. Used from one event loop."""

    def __init__(self, *, cache_bytes: int = 16 * 2**20) -> None:
        """cache_bytes bounds the memory of resolved priors."""
        self._in_force: Snapshot = EMPTY
        self._chosen: dict[tuple[int, str | None], tuple[Bundle, PriorRevision]] = {}
        self._resolved = ByteBoundedCache(cache_bytes)
        self._digests: dict[int, tuple[Bundle, str]] = {}

    def select(
        self,
        bundle: Bundle,
        name: str | None = None,
        *,
        at: int | None = None,
        at_least: int | None = None,
    ) -> PriorRevision:
        """The prior that a request gets now. A name of None is `default`.

        Raises UnknownPrior, PriorDoesNotFit, UnknownLabelFrequencies, RevisionNotHere (when `at_least` has not arrived)
        and RevisionNotInMemory (when `at` is an older one: await fetch).
        """
        if at is None and at_least is None:
            chosen = self._chosen.get((id(bundle), name))
            if chosen is not None:
                return chosen[1]
            revision = self.in_force(bundle, name or DEFAULT)
            if len(self._chosen) >= _MAX_CHOSEN:
                self._chosen = {}
            self._chosen[id(bundle), name] = (bundle, revision)
            return revision
        if at is not None:
            return self._pinned(bundle, name or DEFAULT, at)
        assert at_least is not None
        return self._recent(bundle, name or DEFAULT, at_least)

    def in_force(self, bundle: Bundle, name: str) -> PriorRevision:
        """What `select` gives by name alone, worked out afresh: for threads beside the event loop, too. Raises as it does."""
        if name in BUILT_IN:
            return self._built_in(bundle, name)
        held = self._in_force.get((bundle.name, name))
        entry = None if held is None else held.fitting.get(self._digest(bundle))
        if entry is not None:
            try:
                return self._resolve_entry(bundle, entry)
            except PriorDoesNotFit:
                if name != DEFAULT:
                    raise
        if name == DEFAULT:  # not stored, or for another class list only: the model's own rule
            return self._built_in(bundle, name)
        newest = self.newest(bundle.name, name)
        if newest is None:
            raise unknown_prior(
                name, [DEFAULT, *BUILT_IN, *(n for n in self.names(bundle.name) if n != DEFAULT)]
            )
        return self._resolve_entry(bundle, newest)  # says why it does not fit

    def forget(self, bundle: Bundle) -> None:
        """Let go of a model version that is served no more."""
        self._chosen = {k: v for k, v in self._chosen.items() if v[0] is not bundle}
        self._digests.pop(id(bundle), None)
        self._resolved.forget(bundle)

    def inline(self, bundle: Bundle, body: object) -> PriorRevision:
        """A prior that came with its request, checked. Raises InvalidPrior or UnknownLabelFrequencies."""
        key = (id(bundle), None, content_key(body))
        found = self._resolved.get(key)
        if found is None:
            found = resolve_inline(bundle, body)
            self._resolved.put(key, bundle, found)
        return found

    def resolved(self, bundle: Bundle, name: str, entry: StoredRevision | None) -> PriorRevision:
        """The vectors of an entry, or of a built-in or an unstored default. Raises PriorDoesNotFit and the like."""
        return self._built_in(bundle, name) if entry is None else self._resolve_entry(bundle, entry)

    def newest(self, model: str, name: str) -> StoredRevision | None:
        """The newest entry of a prior that is in use, whether it fits or not."""
        held = self._in_force.get((model, name))
        return None if held is None or held.newest.deleted else held.newest

    def names(self, model: str) -> list[str]:
        """Stored priors of a model that are in use, sorted."""
        return sorted(
            n for (m, n), held in self._in_force.items() if m == model and not held.newest.deleted
        )

    def misfits(self, bundle: Bundle) -> list[StoredRevision]:
        """The newest entries that do not fit the model's class list and are not applied to it."""
        digest = self._digest(bundle)
        entries = [self.newest(bundle.name, name) for name in self.names(bundle.name)]
        return [entry for entry in entries if entry is not None and entry.class_digest != digest]

    def _pinned(self, bundle: Bundle, name: str, at: int) -> PriorRevision:
        if at == 0 and (name == DEFAULT or name in BUILT_IN):
            return self._built_in(bundle, name)
        if name in BUILT_IN:
            raise UnknownPrior(f"'{name}' is built in and has revision 0 only, not {at}")
        held = self._in_force.get((bundle.name, name))
        if held is not None and held.newest.deleted:
            raise UnknownPrior(f"prior '{name}' was deleted at revision {held.newest.revision}")
        for entry in () if held is None else (held.newest, *held.fitting.values()):
            if entry.revision == at:
                return self._resolve_entry(bundle, entry)
        found = self._resolved.get((id(bundle), name, at))
        if found is None:
            raise RevisionNotInMemory(f"revision {at} of prior '{name}'")
        return found

    def _recent(self, bundle: Bundle, name: str, at_least: int) -> PriorRevision:
        held = self._in_force.get((bundle.name, name))
        newest = 0 if held is None else held.newest.revision
        if newest < at_least and name not in BUILT_IN:
            self._wish()
            raise RevisionNotHere(
                f"this worker serves revision {newest} of prior '{name}'; asked for at least {at_least}"
            )
        chosen = self.select(bundle, name)
        if chosen.revision < at_least:
            if name in BUILT_IN or newest == 0 or (held is not None and held.newest.deleted):
                raise UnknownPrior(f"prior '{name}' has no revision {at_least} or later in use")
            raise PriorDoesNotFit(
                f"revision {newest} of prior '{name}' belongs to another class list than version {bundle.version} of "
                f"model '{bundle.name}'; the newest that fits is revision {chosen.revision}"
            )
        return chosen

    def _built_in(self, bundle: Bundle, name: str) -> PriorRevision:
        key = (id(bundle), name, 0)
        found = self._resolved.get(key)
        if found is None:
            found = resolve_built_in(bundle, name)
            self._resolved.put(key, bundle, found)
        return found

    def _resolve_entry(self, bundle: Bundle, entry: StoredRevision) -> PriorRevision:
        key = (id(bundle), entry.name, entry.revision)
        found = self._resolved.get(key)
        if found is None:
            found = resolve_stored(bundle, entry, self._digest(bundle))
            self._resolved.put(key, bundle, found)
        return found

    def _digest(self, bundle: Bundle) -> str:
        """The digest of a bundle's class list, worked out once a bundle."""
        found = self._digests.get(id(bundle))
        if found is None:
            if len(self._digests) >= _MAX_BUNDLES:
                self._digests = {}
            found = self._digests[id(bundle)] = (bundle, bundle.class_digest)
        return found[1]

    def _prepare(self, entries: Sequence[StoredRevision]) -> None:
        """In the feed's thread: resolve for the models in use, so that the event loop finds it done."""
        for bundle, digest in list(self._digests.values()):
            for entry in entries:
                if (
                    entry.model == bundle.name
                    and entry.class_digest == digest
                    and entry.body is not None
                ):
                    with suppress(PriorDoesNotFit):
                        found = resolve_stored(bundle, entry, digest)
                        self._resolved.put((id(bundle), entry.name, entry.revision), bundle, found)

    def _apply(self, entries: Sequence[StoredRevision]) -> None:
        self._in_force = advance(self._in_force, entries)
        self._chosen = {}

    def _wish(self) -> None:
        """A newer revision is asked for than is here."""
