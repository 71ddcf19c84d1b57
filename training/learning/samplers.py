"""Samplers by name: they choose the examples of an epoch, deterministically from (seed, epoch)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.nearest import did_you_mean
from training.learning.losses import Objective, SourcePrior
from training.learning.options import InvalidObjective, Option, completed

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Draws the examples of an epoch. Classes without an example are never drawn."""

    name: str
    labels: Indices
    class_prior: Callable[[float], Vector | None]
    """Takes the run's progress, 0 … 1, and returns the class prior [C] to draw from.

    None means that the epoch takes each example once.
    """
    seed: int
    recorded_loss_tau: float | None = None
    """The share of the label frequencies that sampling divides out; None leaves it to the loss."""
    source_prior: SourcePrior = "exact"

    def epoch_indices(self, epoch: int, total_epochs: int) -> Indices:
        """Return the [N] row indices to train on in an epoch, 0 … total_epochs - 1."""
        rng = np.random.default_rng([self.seed, epoch])
        prior = self.class_prior(epoch / max(total_epochs - 1, 1))
        if prior is None:
            return rng.permutation(len(self.labels))
        return _draw(self.labels, prior, rng)


class Plan(NamedTuple):
    """How a sampler draws classes, and which share of the label frequencies that divides out."""

    class_prior: Callable[[float], Vector | None]
    recorded_loss_tau: float | None
    source_prior: SourcePrior


def make_sampler(
    name: str, labels: NDArray[Any], num_classes: int, *, seed: int, **options: float
) -> Sampler:
    """Return the sampler called `name` for training labels [N]; its options are in OPTIONS.

    `uniform`: every example once. `balanced`: every class equally often (Kang et al., 2020:
    class-aware; cRT uses it as well). `square-root`: classes by sqrt(n_y). `effective-number`:
    examples weighted by (1 - beta) / (1 - beta^n_y) (Cui et al., 2019). `progressive`: from uniform
    to balanced, linearly over the run (Kang et al.). `deferred`: uniform, then balanced from
    `switch` of the run on (Cao et al.: DRS). Raises InvalidObjective for an unknown name or option,
    or a value out of range.
    """
    if name not in _PLANS:
        near = did_you_mean(name, SAMPLERS)
        raise InvalidObjective(f"no sampler '{name}'; expected one of {', '.join(SAMPLERS)}{near}")
    settings = completed("sampler", name, options, OPTIONS.get(name, {}))
    targets = np.asarray(labels, np.int64)
    counts = np.bincount(targets, minlength=num_classes).astype(np.float64)
    plan = _PLANS[name](counts, **settings)
    return Sampler(name, targets, plan.class_prior, seed, plan.recorded_loss_tau, plan.source_prior)


def _uniform(counts: Vector) -> Plan:
    del counts
    return Plan(lambda _: None, None, "exact")


def _balanced(counts: Vector) -> Plan:
    balanced = _over_present(counts)
    return Plan(lambda _: balanced, 1.0, "exact")


def _square_root(counts: Vector) -> Plan:
    half = np.sqrt(counts) / np.sqrt(counts).sum()
    return Plan(lambda _: half, 0.5, "exact")


def _effective_number(counts: Vector, *, beta: float) -> Plan:
    present = counts > 0
    effective = np.where(present, -np.expm1(np.log(beta)) * counts, 0.0)
    effective[present] /= -np.expm1(counts[present] * np.log(beta))
    effective /= effective.sum()
    share = divided_share((counts / counts.sum())[present], effective[present])
    return Plan(lambda _: effective, share, "approximate")


def _progressive(counts: Vector) -> Plan:
    own, balanced = counts / counts.sum(), _over_present(counts)
    return Plan(lambda p: (1 - p) * own + p * balanced, 1.0, "approximate")


def _deferred(counts: Vector, *, switch: float) -> Plan:
    balanced = _over_present(counts)
    return Plan(lambda p: balanced if p >= switch else None, 1.0, "approximate")


_PLANS: dict[str, Callable[..., Plan]] = {
    "uniform": _uniform,
    "balanced": _balanced,
    "square-root": _square_root,
    "effective-number": _effective_number,
    "progressive": _progressive,
    "deferred": _deferred,
}
SAMPLERS = tuple(_PLANS)
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "effective-number": {"beta": Option(0.9999, low=1e-12, high=1, below=True)},
    "deferred": {"switch": Option(0.8, high=1)},
}
"""The options of each sampler; `switch` is a share of the run."""


def _over_present(counts: Vector) -> Vector:
    """Equal probabilities for the classes that have an example, 0 for the others."""
    present = counts > 0
    shares: Vector = present / present.sum()
    return shares


class Recorded(NamedTuple):
    """The facts about training that a published model records, from the loss and the sampler
    together.
    """

    loss_tau: float
    source_prior: SourcePrior


def recorded(objective: Objective, sampler: Sampler) -> Recorded:
    """Return what a loss and a sampler together divide out of the label frequencies.

    Raises InvalidObjective when each of them divides: the frequencies would then be divided out
    twice.
    """
    if sampler.recorded_loss_tau is None:
        return Recorded(objective.recorded_loss_tau, objective.source_prior)
    divides = objective.recorded_loss_tau > 0 or objective.shifts_rivals
    if divides or objective.later is not None:
        raise InvalidObjective(
            f"sampler '{sampler.name}' and loss '{objective.name}' both divide out the label "
            "frequencies; use sampler 'uniform', or loss 'erm'"
        )
    approximate = "approximate" in (objective.source_prior, sampler.source_prior)
    return Recorded(sampler.recorded_loss_tau, "approximate" if approximate else "exact")


def divided_share(label_frequencies: Vector, class_prior: Vector) -> float:
    """Return the loss_tau in 0 … 1 whose label_frequencies ** (1 - loss_tau) best fits class_prior.

    Both are [C] and positive. The fit is by least squares between the logarithms; the result is 0
    when all frequencies are equal.
    """
    x = np.log(label_frequencies) - np.log(label_frequencies).mean()
    if not x.any():
        return 0.0
    slope = float(np.dot(x, np.log(class_prior)) / np.dot(x, x))
    return float(np.clip(1 - slope, 0.0, 1.0))


def _draw(labels: Indices, class_prior: Vector, rng: np.random.Generator) -> Indices:
    """Draw N row indices whose classes follow class_prior [C].

    Within a class, examples are cycled through rather than drawn with replacement, so two examples
    of a class occur equally often or differ by one.
    """
    size = len(labels)
    wanted = rng.multinomial(size, class_prior)
    by_class = np.split(
        np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=len(wanted)))
    )[: len(wanted)]
    drawn = [_cycle(own, int(count), rng) for own, count in zip(by_class, wanted, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _cycle(own: Indices, count: int, rng: np.random.Generator) -> Indices:
    if count == 0:
        return own[:0]
    rounds = [rng.permutation(own) for _ in range(-(-count // len(own)))]
    return np.concatenate(rounds)[:count]
