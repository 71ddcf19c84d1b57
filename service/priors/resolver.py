"""Priors as vectors of each model, made once and held in a cache of bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from service.contract.bundle import Bundle
from service.priors.revisions import PriorDoesNotFit, PriorRevision, StoredRevision
from service.priors.snapshot import (
    content_key,
    resolve_built_in,
    resolve_inline,
    resolve_stored,
)

_MAX_BUNDLES = 64


class Resolver:
    """Resolves built-in, inline and stored priors for models. For any thread."""

    def __init__(self, cache_bytes: int) -> None:
        """cache_bytes: the most memory for resolved priors."""
        self._cache = ByteBoundedCache(cache_bytes)
        self._digests: dict[int, tuple[Bundle, str]] = {}

    def built_in(self, bundle: Bundle, name: str) -> PriorRevision:
        """`uniform`, `training`, or what applies while no `default` is stored."""
        key = (id(bundle), name, 0)
        found = self._cache.get(key)
        if found is None:
            found = resolve_built_in(bundle, name)
            self._cache.put(key, bundle, found)
        return found

    def stored(self, bundle: Bundle, entry: StoredRevision) -> PriorRevision:
        """A stored revision as vectors of the model. Raises PriorDoesNotFit."""
        key = (id(bundle), entry.name, entry.revision)
        found = self._cache.get(key)
        if found is None:
            found = resolve_stored(bundle, entry, self.digest(bundle))
            self._cache.put(key, bundle, found)
        return found

    def inline(self, bundle: Bundle, body: object) -> PriorRevision:
        """A prior that came with its request. Raises InvalidPrior or UnknownLabelFrequencies."""
        key = (id(bundle), None, content_key(body))
        found = self._cache.get(key)
        if found is None:
            found = resolve_inline(bundle, body)
            self._cache.put(key, bundle, found)
        return found

    def held(self, bundle: Bundle, name: str, revision: int) -> PriorRevision | None:
        """A revision that was resolved before, if it is still held."""
        return self._cache.get((id(bundle), name, revision))

    def digest(self, bundle: Bundle) -> str:
        """The digest of a bundle's class list, computed once for each bundle."""
        found = self._digests.get(id(bundle))
        if found is None:
            if len(self._digests) >= _MAX_BUNDLES:
                self._digests = {}
            found = self._digests[id(bundle)] = (bundle, bundle.class_digest)
        return found[1]

    def prepare(self, entries: Sequence[StoredRevision]) -> None:
        """Resolve new entries for the models in use, before the event loop needs them."""
        for bundle, digest in list(self._digests.values()):
            for entry in entries:
                if (
                    entry.model == bundle.name
                    and entry.class_digest == digest
                    and entry.body is not None
                ):
                    with suppress(PriorDoesNotFit):
                        found = resolve_stored(bundle, entry, digest)
                        self._cache.put((id(bundle), entry.name, entry.revision), bundle, found)

    def forget(self, bundle: Bundle) -> None:
        """Drop what is held for a model version that is no longer served."""
        self._digests.pop(id(bundle), None)
        self._cache.forget(bundle)


@dataclass
class ByteBoundedCache:
    """A cache of resolved priors of at most max_bytes, least recently used first out. Thread-safe.

    Keys begin with the id of a bundle. The bundle is held beside the value, so that no other
    object can get the same id.
    """

    max_bytes: int
    _held: OrderedDict[Hashable, tuple[Bundle, PriorRevision]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable) -> PriorRevision | None:
        """The prior under the key, if it is held."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                return None
            self._held.move_to_end(key)
            return found[1]

    def put(self, key: Hashable, bundle: Bundle, revision: PriorRevision) -> None:
        """Hold a prior; the newest entry is never dropped."""
        with self._lock:
            old = self._held.pop(key, None)
            self._held[key] = (bundle, revision)
            self._bytes += (
                _ENTRY_BYTES
                + revision.nbytes
                - (0 if old is None else _ENTRY_BYTES + old[1].nbytes)
            )
            while self._bytes > self.max_bytes and len(self._held) > 1:
                _, (_, dropped) = self._held.popitem(last=False)
                self._bytes -= _ENTRY_BYTES + dropped.nbytes

    def forget(self, bundle: Bundle) -> None:
        """Drop everything that was resolved for a bundle."""
        with self._lock:
            for key in [key for key, (held, _) in self._held.items() if held is bundle]:
                self._bytes -= _ENTRY_BYTES + self._held.pop(key)[1].nbytes


_ENTRY_BYTES = 2000
"""Approximate memory of an entry without its vectors, in bytes."""
