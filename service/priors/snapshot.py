"""An immutable snapshot of the stored priors in force, and their resolution for a model."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import orjson

from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.prior import UnknownLabelFrequencies, resolve_prior
from service.priors.revisions import (
    BUILT_IN,
    PriorDoesNotFit,
    PriorRevision,
    StoredRevision,
)


@dataclass(frozen=True)
class InForce:
    """One named prior: its newest entry, and the newest one that fits each class list."""

    newest: StoredRevision
    fitting: Mapping[str, StoredRevision]
    deleted_at: int = 0
    """Revision of the last deletion; earlier entries are history only."""


Snapshot: TypeAlias = Mapping[tuple[str, str], InForce]
EMPTY: Snapshot = MappingProxyType({})


def advance(snapshot: Snapshot, entries: Iterable[StoredRevision]) -> Snapshot:
    """The snapshot after these entries, in any order.

    Damaged entries change nothing, and no prior goes back to an older revision.
    """
    fresh = dict(snapshot)
    for entry in sorted(entries, key=lambda entry: entry.revision):
        if entry.damaged:
            continue
        key = (entry.model, entry.name)
        held = fresh.get(key)
        if held is None:
            held = InForce(entry, {})
        if entry.deleted:
            if entry.revision > held.deleted_at:
                kept = {d: e for d, e in held.fitting.items() if e.revision > entry.revision}
                held = replace(held, fitting=kept, deleted_at=entry.revision)
        elif entry.revision > held.deleted_at:
            rival = held.fitting.get(entry.class_digest)
            if rival is None or entry.revision > rival.revision:
                held = replace(held, fitting={**held.fitting, entry.class_digest: entry})
        fresh[key] = replace(held, newest=entry) if entry.revision > held.newest.revision else held
    return MappingProxyType(fresh)


def resolve(
    bundle: Bundle, name: str | None, revision: int, body: PriorBody, key: Hashable
) -> PriorRevision:
    """A body as vectors of the model. Raises InvalidPrior or UnknownLabelFrequencies."""
    prior = resolve_prior(
        body,
        class_names=bundle.class_names,
        class_counts=bundle.class_counts,
        loss_tau=bundle.loss_tau,
        calibrated_log_source=bundle.calibrated_log_source,
        own=bundle.own_source,
    )
    offset = prior.offset
    if isinstance(offset, np.ndarray):
        offset.setflags(write=False)
    return PriorRevision(name, revision, prior, offset, key)


def resolve_stored(bundle: Bundle, entry: StoredRevision, class_digest: str) -> PriorRevision:
    """A stored revision as vectors of the model. Raises PriorDoesNotFit."""
    if entry.class_digest != class_digest or entry.body is None:
        raise PriorDoesNotFit(
            f"revision {entry.revision} of prior '{entry.name}' belongs to another class list "
            f"than version {bundle.version} of model '{bundle.name}'; PUT the prior again"
        )
    try:
        return resolve(bundle, entry.name, entry.revision, entry.body, (entry.name, entry.revision))
    except (InvalidPrior, UnknownLabelFrequencies) as error:
        raise PriorDoesNotFit(
            f"revision {entry.revision} of prior '{entry.name}' does not fit version "
            f"{bundle.version} of model '{bundle.name}': {error}; PUT the prior again"
        ) from error


def resolve_built_in(bundle: Bundle, name: str) -> PriorRevision:
    """`uniform`, `training`, or the rule that applies while no `default` is stored."""
    return resolve(bundle, name, 0, BUILT_IN.get(name, PriorBody()), (name, 0))


def resolve_inline(bundle: Bundle, body: object) -> PriorRevision:
    """A prior that came with its request. Raises InvalidPrior or UnknownLabelFrequencies."""
    return resolve(bundle, None, 0, _parse(body), (None, content_key(body)))


def _parse(body: object) -> PriorBody:
    try:
        return parse_prior(body)
    except RecursionError:
        deep = "the prior is nested too deeply; expected an object as GET /priors/NAME shows"
        raise InvalidPrior([("", deep)]) from None


def content_key(body: object) -> bytes:
    """A digest of a decoded JSON value. Raises InvalidPrior for what no prior can hold."""
    try:
        return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()
    except orjson.JSONEncodeError:
        _parse(body)  # says what is wrong where it can
        held = "a number beyond 64 bits or a text that is not UTF-8"
        raise InvalidPrior([("", f"the prior holds {held}; expected what JSON can hold")]) from None
