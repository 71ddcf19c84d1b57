"""What a write makes of what is stored: replace, add counts, return to an older revision, delete.

Each function returns a Decide: the store calls it inside its transaction with the newest entry of the prior (deletions
included, None when there never was one) and stores the draft that comes back, or nothing when that is None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.contract.bundle import Bundle
from service.contract.prior import InvalidPrior, PriorBody, UnknownLabelFrequencies, resolve_prior
from service.priors.revisions import (
    DEFAULT,
    PriorConflict,
    PriorDoesNotFit,
    StaleRevision,
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
)

Revisions: TypeAlias = Literal["*"] | frozenset[int]


@dataclass(frozen=True)
class Condition:
    """If-Match and If-None-Match: the revisions that the one in force must, and must not, be among."""

    if_match: Revisions | None = None
    if_none_match: Revisions | None = None

    def check(self, name: str, current: StoredRevision | None) -> None:
        """Raises StaleRevision unless both hold. An unstored `default` counts as revision 0 for If-Match."""
        stored = None if current is None or current.deleted else current.revision
        shown = stored if stored is not None else (0 if name == DEFAULT else None)
        if self.if_match is not None and not (
            stored is not None if self.if_match == "*" else shown in self.if_match
        ):
            raise StaleRevision(
                f"{_state(name, stored)}, which If-Match does not name", current=stored
            )
        if self.if_none_match is not None and (
            stored is not None if self.if_none_match == "*" else stored in self.if_none_match
        ):
            raise StaleRevision(
                f"{_state(name, stored)}, which If-None-Match excludes", current=stored
            )


UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class Draft:
    """An entry to be stored; body None records a deletion."""

    body: PriorBody | None
    class_digest: str
    note: str


Decide: TypeAlias = Callable[[StoredRevision | None], Draft | None]


def replace(
    name: str,
    body: PriorBody,
    class_digest: str,
    condition: Condition,
    *,
    class_names: Sequence[str] | None = None,
) -> Decide:
    """A new revision with this body; nothing when it says what is in force already, note included.

    With class_names a vector in class order says the same as one by name.
    """

    def decide(current: StoredRevision | None) -> Draft | None:
        condition.check(name, current)
        if current is None or current.body is None or current.class_digest != class_digest:
            return Draft(body, class_digest, body.note)
        if _by_name(current.body, class_names) == _by_name(body, class_names):
            return None
        return Draft(body, class_digest, body.note)

    return decide


def return_to(
    name: str, old: StoredRevision, class_digest: str, condition: Condition, note: str
) -> Decide:
    """A new revision equal to an old one; nothing when the one in force says the same already."""
    if old.body is None:
        raise PriorConflict(
            f"revision {old.revision} of '{name}' is a deletion; choose another or use DELETE"
        )
    if old.class_digest != class_digest:
        raise PriorDoesNotFit(
            f"revision {old.revision} of '{name}' belongs to another class list than the model's"
        )
    body = old.body

    def decide(current: StoredRevision | None) -> Draft | None:
        condition.check(name, current)
        same_classes = current is not None and current.class_digest == class_digest
        if (
            current is not None
            and current.body is not None
            and same_classes
            and _but_note(current.body) == _but_note(body)
        ):
            return None
        return Draft(body.model_copy(update={"note": note}), class_digest, note)

    return decide


def delete(name: str, condition: Condition) -> Decide:
    """An entry that takes the prior out of use. Raises UnknownPrior when it is not in use."""

    def decide(current: StoredRevision | None) -> Draft | None:
        condition.check(name, current)
        if current is None or current.deleted:
            raise UnknownPrior(f"there is no stored prior '{name}'")
        return Draft(None, "", "")

    return decide


def add_counts(
    name: str,
    addition: Mapping[str, Mapping[str, float] | Sequence[float]],
    bundle: Bundle,
    condition: Condition,
    note: str,
) -> Decide:
    """A new revision with observed counts added to label_frequencies, target, or both."""
    added = {field: _named(field, values, bundle.class_names) for field, values in addition.items()}
    class_digest = bundle.class_digest

    def decide(current: StoredRevision | None) -> Draft | None:
        condition.check(name, current)
        body = _body_to_add_to(name, current, class_digest)
        update: dict[str, object] = {"note": note}
        for field, values in added.items():
            counts = _counts(name, field, body, bundle)
            update[field] = {key: counts[key] + values.get(key, 0.0) for key in bundle.class_names}
        stored = current is not None and not current.deleted
        if stored and not any(value > 0 for values in added.values() for value in values.values()):
            return None
        summed = PriorBody.model_validate({**body.model_dump(), **update})
        resolve_prior(
            summed,
            class_names=bundle.class_names,
            class_counts=bundle.class_counts,
            loss_tau=bundle.loss_tau,
        )
        return Draft(summed, class_digest, note)

    return decide


def _body_to_add_to(name: str, current: StoredRevision | None, class_digest: str) -> PriorBody:
    if current is None or current.deleted:
        if name == DEFAULT:
            return PriorBody()
        raise UnknownPrior(f"there is no stored prior '{name}' to add to")
    if current.body is None:
        raise StoreUnavailable(
            "corrupt", f"revision {current.revision} of '{name}' cannot be read; PUT a whole prior"
        )
    if current.class_digest != class_digest:
        raise PriorDoesNotFit(
            f"revision {current.revision} of '{name}' belongs to another class list than the model's"
        )
    return current.body


def _counts(name: str, field: str, body: PriorBody, bundle: Bundle) -> dict[str, float]:
    """The stored vector of a field by class. Raises PriorConflict when it does not hold counts."""
    spec = body.label_frequencies if field == "label_frequencies" else body.target
    if spec is None:
        if bundle.class_counts is None:
            raise UnknownLabelFrequencies(
                f"'{name}' has no label_frequencies to add to, and the model's class_counts are unknown"
            )
        return dict(zip(bundle.class_names, bundle.class_counts, strict=True))
    if isinstance(spec, str):
        raise PriorConflict(f"the {field} of '{name}' is '{spec}', not counts; PUT counts first")
    if isinstance(spec, list):
        spec = dict(zip(bundle.class_names, spec, strict=True))
    others = 0.0 if body.others is None else body.others
    counts = {key: spec.get(key, others) for key in bundle.class_names}
    if max(counts.values()) <= 1 and any(not value.is_integer() for value in counts.values()):
        raise PriorConflict(
            f"the {field} of '{name}' holds probabilities, not counts; PUT counts first"
        )
    return counts


def _named(
    field: str, values: Mapping[str, float] | Sequence[float], class_names: Sequence[str]
) -> dict[str, float]:
    """Counts to add, by class. Raises InvalidPrior naming every wrong entry."""
    where = f"add.{field}"
    if not isinstance(values, Mapping):
        if len(values) != len(class_names):
            raise InvalidPrior(
                [(where, f"has {len(values)} entries; the model has {len(class_names)} classes")]
            )
        values = dict(zip(class_names, values, strict=True))
    known = set(class_names)
    errors = [(f"{where}.{key}", "unknown class") for key in values if key not in known]
    errors += [
        (f"{where}.{key}", f"expected a number of at least 0; got {value:g}")
        for key, value in values.items()
        if not (math.isfinite(value) and value >= 0)
    ]
    if errors:
        raise InvalidPrior(errors)
    return dict(values)


def _by_name(body: PriorBody, class_names: Sequence[str] | None) -> PriorBody:
    """The body with its vectors by class name, for comparing."""
    if class_names is None:
        return body
    vectors = {"target": body.target, "label_frequencies": body.label_frequencies}
    named = {
        field: dict(zip(class_names, vector, strict=True))
        for field, vector in vectors.items()
        if isinstance(vector, list) and len(vector) == len(class_names)
    }
    return body.model_copy(update=named)


def _but_note(body: PriorBody) -> PriorBody:
    return body.model_copy(update={"note": ""})


def _state(name: str, revision: int | None) -> str:
    return f"'{name}' is not stored" if revision is None else f"'{name}' is at revision {revision}"
