"""Turns priors as users write them (counts or probabilities, by name or position) into vectors.

A prior is a pair: label frequencies (what is divided out) and a target (what is multiplied in).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_source_prior, log_target_prior
from service.contract.members import costs as of_costs
from service.contract.members import switch as of_switch
from service.contract.members.body import InvalidPrior, PriorBody, VectorSpec, clip
from service.contract.members.costs import Costs
from service.contract.members.named import places_of, vector_of
from service.contract.members.sparse import (
    SPARSE_FROM,
    Held,
    Shared,
    Sparse,
    SparseOffset,
    dense,
    sparse_weights,
)
from service.contract.members.switch import Switch
from service.contract.nearest import did_you_mean

SMALLEST_SHARE = 1e-300
"""The smallest nonzero entry of a vector, as a share of its largest: less would be shown as 0."""


class UnknownLabelFrequencies(ValueError):
    """The label frequencies are needed, but neither the prior nor the model has them."""


class Vectors(NamedTuple):
    """The vectors [C] of a prior, each as an array or in a form that takes less memory.

    label_frequencies and log_source are None when the model has none and the prior gives none.
    """

    label_frequencies: Held | None
    target: Held
    log_source: Held | None
    log_target: Held

    @property
    def nbytes(self) -> int:
        """Memory of the vectors that no other prior shares, in bytes."""
        return sum(vector.nbytes for vector in self if vector is not None)


class OwnSource(NamedTuple):
    """The two vectors [C] that all priors of a model without label frequencies of their own
    share.
    """

    label_frequencies: Vector | None
    log_source: Vector | None


@dataclass(frozen=True)
class Prior:
    """A checked prior of one class list. All vectors are float64 [C]; offset = log sigma - log rho.

    A vector that is not held as an array is made at each use. Without a log_source there is no
    offset, and only tau = 0 can be served.
    """

    vectors: Vectors = field(repr=False)
    expected: bool = False
    warnings: tuple[str, ...] = field(default=())
    calibrated: bool = False
    """Whether log_source was measured on validation (and holds a bias per class)."""
    costs: Costs | None = None
    """With costs, answers hold the decision that is expected to cost least."""
    switch: Switch | None = None
    """With a switch, another stored prior may apply in place of this one."""

    @property
    def label_frequencies(self) -> Vector | None:
        """[C] what is divided out, normalised; None where it is unknown."""
        held = self.vectors.label_frequencies
        return None if held is None else dense(held)

    @property
    def target(self) -> Vector:
        """[C] what is multiplied in, normalised."""
        return dense(self.vectors.target)

    @property
    def log_source(self) -> Vector | None:
        """[C] log sigma; None where it is unknown."""
        held = self.vectors.log_source
        return None if held is None else dense(held)

    @property
    def log_target(self) -> Vector:
        """[C] log rho, LOG_ZERO where the target is 0."""
        return dense(self.vectors.log_target)

    @property
    def offset(self) -> NDArray[np.float32] | SparseOffset | None:
        """[C] this prior's row of the prior table: tau * offset is subtracted from logits / T."""
        source, target = self.vectors.log_source, self.vectors.log_target
        if source is None:
            return None
        if isinstance(target, Sparse):
            return SparseOffset(source, target)
        return (dense(source) - dense(target)).astype(np.float32)


def resolve_prior(
    body: PriorBody,
    *,
    class_names: Sequence[str],
    class_counts: Sequence[float] | None,
    loss_tau: float,
    calibrated_log_source: Vector | None = None,
    own: OwnSource | None = None,
) -> Prior:
    """Turn a body into vectors for a model. Raises InvalidPrior or UnknownLabelFrequencies.

    own: what class_counts, loss_tau and calibrated_log_source come to. A body that gives most of a
    large class list one value then takes no vector of its own.

    calibrated_log_source: [C] the source prior that validation has measured (see
    Bundle.calibrated_log_source). It replaces the one that class_counts imply, unless the body
    names label frequencies of its own that have an effect (see `_names_source`).
    """
    errors: list[tuple[str, str]] = []
    costs = None
    if body.costs is not None:
        costs = of_costs.resolve_costs(body.costs, class_names, errors)
    switch = of_switch.resolve_switch(body.context, body.schedule, errors)
    vectors = None
    if own is not None and len(class_names) >= SPARSE_FROM and not errors:
        vectors = _sparse_vectors(body, class_names, loss_tau, own)
    if vectors is None:
        vectors = _dense_vectors(
            body, class_names, class_counts, loss_tau, calibrated_log_source, errors
        )
    warnings: tuple[str, ...] = ()
    if loss_tau == 1 and body.label_frequencies is not None:
        warnings = (
            (
                "label_frequencies have no effect: the model was trained with loss_tau = 1, "
                "so its source prior is uniform"
            ),
        )
    return Prior(
        vectors=vectors,
        expected=body.expected,
        warnings=warnings,
        calibrated=calibrated_log_source is not None and not _names_source(body, loss_tau),
        costs=costs,
        switch=switch,
    )


def _names_source(body: PriorBody, loss_tau: float) -> bool:
    """Whether the body's label frequencies are the source prior: q ** (1 − loss_tau).

    At loss_tau = 1 they have no effect, so what was measured, or uniform, stays.
    """
    return body.label_frequencies is not None and loss_tau != 1


def own_source(
    class_counts: Sequence[float] | None,
    *,
    classes: int,
    loss_tau: float,
    calibrated_log_source: Vector | None,
) -> OwnSource:
    """The vectors of priors that give no label frequencies. The arrays are read-only.

    Raises ValueError when a count is 0.
    """
    counts = None if class_counts is None else vector_of(class_counts)
    frequencies = None if counts is None else _normalised(counts)
    if calibrated_log_source is not None:
        log_source: Vector | None = np.array(calibrated_log_source)
    elif frequencies is not None or loss_tau == 1:
        basis = np.ones(classes) if counts is None else counts
        log_source = log_source_prior(basis, loss_tau=loss_tau)
    else:
        log_source = None
    for vector in (frequencies, log_source):
        if vector is not None:
            vector.setflags(write=False)
    return OwnSource(frequencies, log_source)


def _sparse_vectors(
    body: PriorBody, class_names: Sequence[str], loss_tau: float, own: OwnSource
) -> Vectors | None:
    """The vectors of a body that gives most classes one value.

    None for any other body, and for an invalid one, whose faults `_dense_vectors` then names.
    """
    frequencies: Held | None = None
    log_source: Held | None = None
    given: Sparse | None = None
    if body.label_frequencies is None:
        if body.smoothing:
            return None
        frequencies = None if own.label_frequencies is None else Shared(own.label_frequencies)
        log_source = None if own.log_source is None else Shared(own.log_source)
    else:
        given = _sparse_label_frequencies(body, class_names)
        if given is None:
            return None
        frequencies, log_source = given.normalised(), given.log(1.0 - loss_tau)
        if not _names_source(body, loss_tau) and own.log_source is not None:
            log_source = Shared(own.log_source)
    target = given if body.target == "training" else _sparse_target(body, class_names)
    if target is None:
        return None
    return Vectors(frequencies, target.normalised(), log_source, target.log())


def _sparse_label_frequencies(body: PriorBody, class_names: Sequence[str]) -> Sparse | None:
    if not isinstance(body.label_frequencies, dict):
        return None
    given = sparse_weights(body.label_frequencies, body.others, class_names)
    if given is None:
        return None
    given = given.plus(body.smoothing)
    lowest = min(given.base, given.values.min(initial=given.base))
    return given if lowest > 0 and _shares_fit(given) else None


def _sparse_target(body: PriorBody, class_names: Sequence[str]) -> Sparse | None:
    if body.target == "uniform":
        return Sparse(len(class_names), 1.0, np.empty(0, np.int64), np.empty(0))
    if isinstance(body.target, dict):
        target = sparse_weights(body.target, body.others, class_names)
        return target if target is not None and _shares_fit(target) else None
    return None


def _shares_fit(weights: Sparse) -> bool:
    """Whether `_check_shares` would find no fault, and the largest weight is finite."""
    every = np.append(weights.values, weights.base)
    largest = float(every.max())
    return math.isfinite(largest) and bool((every[every > 0] >= largest * SMALLEST_SHARE).all())


def _dense_vectors(  # noqa: PLR0917 - what resolve_prior was given
    body: PriorBody,
    class_names: Sequence[str],
    class_counts: Sequence[float] | None,
    loss_tau: float,
    calibrated_log_source: Vector | None,
    later_errors: list[tuple[str, str]],
) -> Vectors:
    """The vectors of any body. Raises InvalidPrior with its faults and then `later_errors`."""
    errors: list[tuple[str, str]] = []
    frequencies = _label_frequencies(body, class_names, class_counts, errors)
    target = _target(body, class_names, frequencies, errors)
    errors += later_errors
    if errors:
        raise InvalidPrior(errors)
    if target is None:
        raise UnknownLabelFrequencies(
            "target 'training' needs label frequencies, and neither this prior nor the model "
            "has any: give label_frequencies"
        )
    source_known = frequencies is not None or loss_tau == 1
    basis = frequencies if frequencies is not None else np.ones(len(class_names))
    log_source = calibrated_log_source
    if log_source is None or _names_source(body, loss_tau):
        log_source = log_source_prior(basis, loss_tau=loss_tau) if source_known else None
    return Vectors(
        label_frequencies=None if frequencies is None else _normalised(frequencies),
        target=_normalised(target),
        log_source=log_source,
        log_target=log_target_prior(target),
    )


def _label_frequencies(
    body: PriorBody,
    class_names: Sequence[str],
    class_counts: Sequence[float] | None,
    errors: list[tuple[str, str]],
) -> Vector | None:
    if body.label_frequencies is not None:
        given = _vector(
            body.label_frequencies, "label_frequencies", class_names, body.others, errors
        )
    elif class_counts is not None:
        given = vector_of(class_counts)
    else:
        return None
    if given is None:
        return None
    with np.errstate(over="ignore"):
        given = given + body.smoothing
    if not np.isfinite(given).all():
        errors.append(
            (
                "smoothing",
                f"{body.smoothing:g} makes a label frequency infinite; give a smaller one",
            )
        )
        return None
    before = len(errors)
    _check_shares(given, "label_frequencies", class_names, errors)
    zeros = [class_names[at] for at in np.flatnonzero(given == 0).tolist()]
    errors.extend(
        (
            f"label_frequencies.{name}",
            f"'{name}' has label frequency 0; expected more than 0 (or ask for smoothing)",
        )
        for name in zeros
    )
    return None if len(errors) > before else given


def _target(
    body: PriorBody,
    class_names: Sequence[str],
    frequencies: Vector | None,
    errors: list[tuple[str, str]],
) -> Vector | None:
    if body.target == "uniform":
        return np.ones(len(class_names))
    if body.target == "training":
        return frequencies
    target = _vector(body.target, "target", class_names, body.others, errors)
    if target is not None and not (target > 0).any():
        errors.append(("target", "all entries are 0; expected at least one class with more than 0"))
    elif target is not None:
        _check_shares(target, "target", class_names, errors)
    return np.ones(len(class_names)) if target is None else target


def _check_shares(
    values: Vector, name: str, class_names: Sequence[str], errors: list[tuple[str, str]]
) -> None:
    """Report each entry of values [C] that is above 0 but too small beside the largest for a
    double.
    """
    largest = values.max()
    for place in np.flatnonzero((values > 0) & (values < largest * SMALLEST_SHARE)).tolist():
        label = class_names[place]
        came = (
            f"'{clip(label)}' has {_noun(name)} {values[place]:g}, and the largest is {largest:g}"
        )
        errors.append(
            (
                f"{name}.{label}",
                f"{came}; expected 0 or at least {SMALLEST_SHARE:g} of the largest",
            )
        )


def _vector(
    spec: VectorSpec,
    name: str,
    class_names: Sequence[str],
    others: float | None,
    errors: list[tuple[str, str]],
) -> Vector | None:
    """[C] values of a list or an object; None when it is wrong; the faults go to `errors`."""
    before = len(errors)
    if not isinstance(spec, dict):
        if len(spec) != len(class_names):
            errors.append(
                (name, f"has {len(spec)} entries; expected {len(class_names)}, one for each class")
            )
            return None
        values = vector_of(spec)
    else:
        known = sum(key in spec for key in class_names)
        unknown = []
        if known < len(spec):
            names = places_of(spec, class_names)
            unknown = [key for key in spec if key not in names]
        errors.extend(
            (f"{name}.{key}", f"unknown class '{clip(key)}'{_near(key, at, class_names)}")
            for at, key in enumerate(unknown)
        )
        missing = [key for key in class_names if key not in spec]
        if missing and others is None and not unknown:
            first = f"{len(missing)} classes are not named (the first is '{missing[0]}')"
            errors.append((name, f"{first}; name all, or give 'others' for the rest"))
        rest = others if others is not None else 0.0
        count = len(class_names)
        values = np.fromiter((spec.get(key, rest) for key in class_names), np.float64, count)
    errors.extend(
        (
            f"{name}.{class_names[at]}",
            (
                f"'{class_names[at]}' has {_noun(name)} {values[at]:g}; "
                "expected a number of at least 0"
            ),
        )
        for at in np.flatnonzero(~(np.isfinite(values) & (values >= 0))).tolist()
    )
    return None if len(errors) > before else values


def _near(key: str, at: int, class_names: Sequence[str]) -> str:
    """Return the end of the message about an unknown class: the nearest name, or where to find the
    names.

    at: the number of the fault; the nearest name is searched for the first few only.
    """
    near = did_you_mean(clip(key), class_names) if at < _MOST_SEARCHES else ""
    return near or "; expected one of the model's class_names"


_MOST_SEARCHES = 5


def _normalised(weights: Vector) -> Vector:
    scaled = weights / weights.max()  # first, so that the sum of large counts cannot overflow
    total: Vector = scaled / scaled.sum() + 0.0  # -0.0 is shown as 0
    return total


def _noun(name: str) -> str:
    return "probability" if name == "target" else "label frequency"
