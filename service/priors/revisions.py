"""Revisions of priors as values: in a store, in a request, in its answer; and what can go wrong."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.members.body import InvalidPrior, PriorBody
from service.contract.members.sparse import SparseOffset
from service.contract.members.switch import NAME_PATTERN, Fallback
from service.contract.prior import Prior
from service.priors.names import MAX_REVISION

BUILT_IN = {"uniform": PriorBody(target="uniform"), "training": PriorBody(target="training")}
REFERENCE = rf"^({NAME_PATTERN})(?:@(>=)?([0-9]{{1,16}}))?$"
"""NAME, NAME@REVISION or NAME@>=REVISION, for requests and for `/openapi.json`."""
_NAME = re.compile(NAME_PATTERN)
_REFERENCE = re.compile(REFERENCE)


class UnknownPrior(LookupError):
    """There is no prior of this name, or no such revision; the message lists the known ones."""


class PriorDoesNotFit(ValueError):
    """A stored prior belongs to another class list than the model's."""


class RevisionNotHere(LookupError):
    """This worker does not have that revision yet; it may arrive within a second."""


class RevisionNotInMemory(LookupError):
    """An older revision, which must be fetched from the store first."""


class InvalidReference(ValueError):
    """`prior=` is not of the form NAME, NAME@REVISION or NAME@>=REVISION."""


class StaleRevision(ValueError):
    """If-Match or If-None-Match does not hold; `current` is the revision in force, if any."""

    def __init__(self, message: str, *, current: int | None) -> None:
        super().__init__(message)
        self.current = current


class PriorConflict(ValueError):
    """The stored prior does not allow this change."""


StoreTrouble: TypeAlias = Literal[
    "away", "slow", "read-only", "full", "corrupt", "behind", "incompatible", "none"
]


class StoreUnavailable(RuntimeError):
    """The store of priors cannot carry out the call now; `kind` names the reason in one word."""

    def __init__(self, kind: StoreTrouble, detail: str) -> None:
        super().__init__(f"the store of priors is unavailable ({kind}): {detail}")
        self.kind: StoreTrouble = kind
        self.detail = detail


class PriorsBusy(RuntimeError):
    """Too many long priors wait for their vectors."""


@dataclass(frozen=True)
class StoredRevision:
    """One entry of the history of a prior, as the store holds it; never edited.

    body is None when the entry records a deletion, and when it is damaged (its checksum differs).
    change is the position in the history of the whole store. equals is the number of an older
    revision with the same content, on the same page of a history.
    """

    model: str
    name: str
    revision: int
    body: PriorBody | None
    class_digest: str
    updated_at: datetime
    by: str
    note: str
    deleted: bool = False
    change: int = 0
    damaged: bool = False
    equals: int | None = None


@dataclass(frozen=True)
class Written:
    """The newest entry after a write; `created`: the name was not in use before it.

    `changed` is false when the write had nothing to change.
    """

    entry: StoredRevision
    created: bool
    changed: bool = True


@dataclass(frozen=True)
class Served:
    """The revision of a prior that one worker process serves, by its last report."""

    replica: str
    pid: int
    worker: str
    revision: int
    seen_at: datetime


@dataclass(frozen=True)
class ChosenBy:
    """The prior whose context or schedule chose another one, and why.

    name, revision: the prior that the request named. key, value: the key of the request's context
    and its value, or the rule of the schedule, that decided. fallback: why the mapped prior is not
    used; None when it is.
    """

    name: str | None
    revision: int
    key: str | None
    value: str | None
    fallback: Fallback | None
    warnings: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """Return the member `prior.context` of an answer."""
        return {
            "name": self.name,
            "revision": self.revision,
            "key": self.key,
            "value": self.value,
            "fallback": self.fallback,
        }


@dataclass(frozen=True)
class PriorRevision:
    """A prior resolved for a model's class list, ready to answer requests with.

    name is None for an inline prior; revision is 0 for inline and built-in priors and an unstored
    default. offset is float32 [C], log sigma - log rho, or the sparse form of it, or None when the
    label frequencies are unknown (then only tau = 0 can be served). key identifies the offset
    among all priors of the model version.
    """

    name: str | None
    revision: int
    prior: Prior
    offset: NDArray[np.float32] | SparseOffset | None = field(repr=False)
    key: Hashable = field(repr=False)
    chosen_by: ChosenBy | None = None
    """Set where the context or schedule of another prior led to this one."""

    @property
    def nbytes(self) -> int:
        """Memory of the vectors that no other prior shares, in bytes."""
        prior = self.prior
        costs = 0 if prior.costs is None else prior.costs.nbytes
        offset = 0 if self.offset is None else self.offset.nbytes
        return costs + offset + prior.vectors.nbytes


@dataclass(frozen=True)
class PriorReference:
    """`name`, `name@at` or `name@>=at_least` as a request writes it."""

    name: str
    at: int | None = None
    at_least: int | None = None


@lru_cache(maxsize=1024)
def parse_prior_reference(text: str) -> PriorReference:
    """Parse `name`, `name@7` or `name@>=8`. Raises InvalidReference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        shown = text if len(text) <= 80 else text[:79] + "…"
        raise InvalidReference(
            f"'{shown}' is not a prior; expected NAME, NAME@REVISION or NAME@>=REVISION"
        )
    if match[3] is None:
        return PriorReference(match[1])
    revision = int(match[3])
    if revision > MAX_REVISION:
        raise InvalidReference(
            f"the revision is {revision}; expected a number up to {MAX_REVISION}"
        )
    return (
        PriorReference(match[1], at_least=revision)
        if match[2]
        else PriorReference(match[1], at=revision)
    )


def is_prior_name(text: str) -> bool:
    """Whether a prior can have this name; no other text may reach the store."""
    return _NAME.fullmatch(text) is not None


def check_prior_name(name: str) -> str:
    """Return the name of a prior that may be written.

    Raises InvalidPrior, or PriorConflict for a built-in.
    """
    if name in BUILT_IN:
        raise PriorConflict(f"'{name}' is built in and cannot be written; choose another name")
    if not is_prior_name(name):
        shown = name if len(name) <= 80 else name[:79] + "…"
        expected = "expected a-z, 0-9, '.', '_', '-', at most 64 characters"
        raise InvalidPrior([("name", f"'{shown}' is not a prior's name; {expected}")])
    return name


def unknown_prior(name: str, known: Sequence[str]) -> UnknownPrior:
    """The error for an unknown name; it names up to twenty known ones."""
    choices = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return UnknownPrior(f"there is no prior '{name}'; expected one of {choices}")
