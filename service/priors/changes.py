"""Changes of a stored prior, as values: replace, add counts, return to a revision, delete.

Inside its transaction, the store applies a change to the newest entry of the prior: a deletion
counts as an entry, and None means that there is none. It stores the draft that the change returns,
and nothing where that is None.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.automatic import AUTHOR
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior, PriorBody, body_of, document_of
from service.contract.members.named import (
    are_equal,
    list_of,
    places_of,
    short_form,
    vector_of,
)
from service.contract.members.sparse import SPARSE_FROM
from service.contract.prior import UnknownLabelFrequencies, resolve_prior
from service.priors.names import DEFAULT
from service.priors.revisions import (
    PriorConflict,
    PriorDoesNotFit,
    StaleRevision,
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
)

_VECTORS = ("label_frequencies", "target")
Revisions: TypeAlias = Literal["*"] | frozenset[int]
Counts: TypeAlias = dict[str, float] | list[float]
"""Counts by class name, or in class order."""


@dataclass(frozen=True)
class Condition:
    """The conditions If-Match and If-None-Match of a write, as sets of revisions.

    The revision in force must be among those of If-Match, and not among those of If-None-Match.
    """

    if_match: Revisions | None = None
    if_none_match: Revisions | None = None

    def check(self, name: str, current: StoredRevision | None) -> None:
        """Raise StaleRevision unless both hold. If-Match "0" means an unstored `default`."""
        stored = None if current is None or current.deleted else current.revision
        shown = stored if stored is not None else (0 if name == DEFAULT else None)
        if self.if_match is not None and not (
            stored is not None if self.if_match == "*" else shown in self.if_match
        ):
            raise StaleRevision(
                f"{_state(name, stored)}, which If-Match does not list; read it again and retry",
                current=stored,
            )
        if self.if_none_match is not None and (
            stored is not None if self.if_none_match == "*" else stored in self.if_none_match
        ):
            raise StaleRevision(
                f"{_state(name, stored)}, which If-None-Match excludes; to replace it, send "
                "If-Match with that revision",
                current=stored,
            )


UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class Draft:
    """An entry to be stored; body None records a deletion."""

    body: PriorBody | None
    class_digest: str
    note: str


class Change(Protocol):
    """A change of one prior."""

    def apply(self, current: StoredRevision | None) -> Draft | None:
        """Return the entry to store after `current`; None when there is nothing to change."""


@dataclass(frozen=True)
class Replace:
    """A new revision with this body; nothing when the one in force has the same body and note.

    With `class_names`, a vector in class order equals one by class name.
    """

    name: str
    body: PriorBody
    class_digest: str
    condition: Condition = UNCONDITIONAL
    class_names: Sequence[str] | None = None

    def apply(self, current: StoredRevision | None) -> Draft | None:
        """Raises StaleRevision."""
        self.condition.check(self.name, current)
        draft = Draft(self.body, self.class_digest, self.body.note)
        if current is None or current.body is None or current.class_digest != self.class_digest:
            return draft
        return None if _are_equal(current.body, self.body, self.class_names) else draft


@dataclass(frozen=True)
class ReturnTo:
    """A new revision equal to an old one; nothing when the one in force is equal already.

    With `class_names`, a vector in class order equals one by class name. When it undoes an
    automatic step, it freezes automatic adoption.
    """

    name: str
    old: StoredRevision
    class_digest: str
    note: str
    condition: Condition = UNCONDITIONAL
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Raises PriorConflict or PriorDoesNotFit when the old revision cannot be used again."""
        if self.old.body is None:
            raise PriorConflict(
                f"revision {self.old.revision} of '{self.name}' is a deletion; choose another "
                "revision, or revision 0 to have nothing stored"
            )
        if self.old.class_digest != self.class_digest:
            raise PriorDoesNotFit(
                f"revision {self.old.revision} of '{self.name}' belongs to another class list "
                "than the model's; choose another revision, or PUT the prior again"
            )

    def apply(self, current: StoredRevision | None) -> Draft | None:
        """Raises StaleRevision."""
        self.condition.check(self.name, current)
        body = self.old.body
        assert body is not None
        if (
            current is not None
            and current.body is not None
            and current.class_digest == self.class_digest
            and same_prior(current.body, body, self.class_names)
        ):
            return None
        if current is not None and current.by == AUTHOR:
            body = _frozen(body)
        return Draft(body.model_copy(update={"note": self.note}), self.class_digest, self.note)


@dataclass(frozen=True)
class Delete:
    """Take the prior out of use; with `if_stored`, doing so twice is not an error."""

    name: str
    condition: Condition = UNCONDITIONAL
    note: str = ""
    if_stored: bool = False

    def apply(self, current: StoredRevision | None) -> Draft | None:
        """Raises StaleRevision, and UnknownPrior when the prior is not in use."""
        self.condition.check(self.name, current)
        if current is None or current.deleted:
            if current is not None and self.if_stored:
                return None
            raise UnknownPrior(f"there is no stored prior '{self.name}'; GET /priors lists them")
        return Draft(None, "", self.note)


@dataclass(frozen=True)
class AddCounts:
    """Add observed counts to label_frequencies, target, or both."""

    name: str
    added: Mapping[str, Counts]
    """Counts to add, of each field."""
    bundle: Bundle
    note: str
    condition: Condition = UNCONDITIONAL

    @classmethod
    def checked(
        cls,
        name: str,
        addition: Mapping[str, Mapping[str, float] | Sequence[float]],
        *,
        bundle: Bundle,
        note: str,
        condition: Condition = UNCONDITIONAL,
    ) -> "AddCounts":
        """The change for counts in the form of a request. Raises InvalidPrior."""
        added = {field: _checked(field, v, bundle.class_names) for field, v in addition.items()}
        return cls(name, added, bundle, note, condition)

    def apply(self, current: StoredRevision | None) -> Draft | None:
        """Raises StaleRevision, UnknownPrior, PriorConflict, PriorDoesNotFit and the like."""
        self.condition.check(self.name, current)
        bundle, digest = self.bundle, self.bundle.class_digest
        body = _body_to_add_to(self.name, current, digest)
        update: dict[str, object] = {"note": self.note}
        for field, values in self.added.items():
            counts = _counts(self.name, field, body, bundle)
            update[field] = _sum(counts, values, body.others or 0.0, bundle.class_names)
        stored = current is not None and not current.deleted
        if stored and not any(n > 0 for values in self.added.values() for n in _numbers(values)):
            return None
        summed = body_of({**document_of(body), **update})
        resolve_prior(
            summed,
            class_names=bundle.class_names,
            class_counts=bundle.class_counts,
            loss_tau=bundle.loss_tau,
            own=bundle.own_source,
        )
        return Draft(summed, digest, self.note)


def _frozen(body: PriorBody) -> PriorBody:
    """The body with `auto_adopt.freeze` set, if steps are on, so that none follows at once."""
    auto = body.auto_adopt
    if auto is None or auto.mode != "on":
        return body
    return body.model_copy(update={"auto_adopt": auto.model_copy(update={"freeze": True})})


def same_prior(one: PriorBody, other: PriorBody, class_names: Sequence[str] | None = None) -> bool:
    """Whether two bodies are equal but for their notes. class_names: see `_are_equal`."""
    return _are_equal(one.model_copy(update={"note": other.note}), other, class_names)


def _body_to_add_to(name: str, current: StoredRevision | None, class_digest: str) -> PriorBody:
    if current is None or current.deleted:
        if name == DEFAULT:
            return PriorBody()
        raise UnknownPrior(f"there is no stored prior '{name}' to add to; PUT it first")
    if current.body is None:
        raise StoreUnavailable(
            "corrupt", f"revision {current.revision} of '{name}' cannot be read; PUT a whole prior"
        )
    if current.class_digest != class_digest:
        raise PriorDoesNotFit(
            f"revision {current.revision} of '{name}' belongs to another class list than "
            "the model's; PUT a whole prior"
        )
    return current.body


def _counts(name: str, field: str, body: PriorBody, bundle: Bundle) -> Counts:
    """The stored counts of a field, without those that `others` gives.

    Raises PriorConflict when they are not counts.
    """
    spec = body.label_frequencies if field == "label_frequencies" else body.target
    if spec is None:
        if bundle.class_counts is None:
            raise UnknownLabelFrequencies(
                f"'{name}' has no label_frequencies to add to, and the model's class_counts "
                "are unknown: PUT counts first"
            )
        return short_form(bundle.class_names, bundle.class_counts)
    if isinstance(spec, str):
        raise PriorConflict(f"the {field} of '{name}' is '{spec}', not counts; PUT counts first")
    counts = spec if isinstance(spec, dict) else short_form(bundle.class_names, spec)
    every: Iterable[float] = _numbers(counts)
    if body.others is not None and len(counts) < len(bundle.class_names):
        every = [*every, body.others]
    if max(every) <= 1 and any(not value.is_integer() for value in every):
        raise PriorConflict(
            f"the {field} of '{name}' holds probabilities, not counts; PUT counts first"
        )
    return counts


def _sum(counts: Counts, more: Counts, others: float, class_names: Sequence[str]) -> Counts:
    """The sum of two sets of counts; `others` is the count of each class without one of its own.

    Of many classes, it names only those that are named, and all of them in class order.
    """
    if isinstance(counts, dict) and isinstance(more, dict):
        names = {**counts, **more} if len(class_names) >= SPARSE_FROM else None
        return {key: counts.get(key, others) + more.get(key, 0.0) for key in names or class_names}
    whole = _vector(counts, others, class_names) + _vector(more, 0.0, class_names)
    return list_of(whole)


def _vector(counts: Counts, others: float, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Counts as a vector [C]."""
    if not isinstance(counts, dict):
        return vector_of(counts)
    every = (counts.get(name, others) for name in class_names)
    return np.fromiter(every, np.float64, len(class_names))


def _numbers(counts: Counts) -> Collection[float]:
    return counts.values() if isinstance(counts, dict) else counts


def _checked(
    field: str, values: Mapping[str, float] | Sequence[float], class_names: Sequence[str]
) -> Counts:
    """Counts to add. Raises InvalidPrior naming every wrong entry."""
    where = f"add.{field}"
    if not isinstance(values, Mapping):
        if len(values) != len(class_names):
            raise InvalidPrior(
                [(where, f"has {len(values)} entries; expected {len(class_names)}, one a class")]
            )
        counts = short_form(class_names, values)
    else:
        counts = dict(values)
    named = counts if isinstance(counts, dict) else {}
    known = places_of(named, class_names)
    errors = [
        (f"{where}.{key}", "unknown class; expected one of the model's class_names")
        for key in named
        if key not in known
    ]
    errors += [
        (f"{where}.{key}", f"expected a number of at least 0; got {value:g}")
        for key, value in zip(named or class_names, _numbers(counts), strict=True)
        if not (math.isfinite(value) and value >= 0)
    ]
    if errors:
        raise InvalidPrior(errors)
    return counts


def _are_equal(one: PriorBody, other: PriorBody, class_names: Sequence[str] | None = None) -> bool:
    """Whether two bodies are equal. Their vectors are compared entry by entry, as others run.

    With class_names, a vector in class order equals one by class name.
    """
    for field in _VECTORS:
        mine, theirs = getattr(one, field), getattr(other, field)
        both = isinstance(mine, (dict, list, tuple)) and isinstance(theirs, (dict, list, tuple))
        if not (are_equal(mine, theirs, class_names) if both else mine == theirs):
            return False
    rest: dict[str, object] = dict.fromkeys(_VECTORS)
    return one.model_copy(update=rest) == other.model_copy(update=rest)


def _state(name: str, revision: int | None) -> str:
    return f"'{name}' is not stored" if revision is None else f"'{name}' is at revision {revision}"
