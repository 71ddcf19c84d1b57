"""Which examples an epoch sees: samplers by name, deterministic in (seed, epoch)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from training.learning.losses import InvalidObjective, Objective, SourcePrior

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Draws the examples of an epoch. Classes without an example are never drawn."""

    name: str
    labels: Indices
    class_prior: Callable[[float], Vector | None]
    """progress 0 … 1 -> [C] the class prior to draw from; None for each example once."""
    seed: int
    recorded_loss_tau: float | None = None
    """What sampling has divided out of the label frequencies; None leaves it to the loss."""
    source_prior: SourcePrior = "exact"

    def epoch_indices(self, epoch: int, total_epochs: int) -> Indices:
        """[N] indices into the training set for epoch 0 … total_epochs - 1."""
        rng = np.random.default_rng([self.seed, epoch])
        prior = self.class_prior(epoch / max(total_epochs - 1, 1))
        if prior is None:
            return rng.permutation(len(self.labels))
        return _draw(self.labels, prior, rng)


def make_sampler(
    name: str,
    labels: NDArray[Any],
    num_classes: int,
    *,
    seed: int,
    switch: float = 0.8,
    beta: float = 0.9999,
) -> Sampler:
    """The sampler called `name` for training labels [N].

    `uniform`: every example once. `balanced`: every class as often (Kang et al., 2020: class-aware; also what cRT
    uses). `square-root`: classes by sqrt(n_y). `effective-number`: examples weighted by (1 - beta) / (1 - beta^n_y)
    (Cui et al., 2019). `progressive`: from uniform to balanced, linearly over the run (Kang et al.).
    `deferred`: uniform, then balanced from `switch` of the run on (Cao et al.: DRS). Raises InvalidObjective.
    """
    targets = np.asarray(labels, np.int64)
    counts = np.bincount(targets, minlength=num_classes).astype(np.float64)
    present = counts > 0
    own = counts / counts.sum()
    balanced = present / present.sum()
    half = np.sqrt(counts) / np.sqrt(counts).sum()
    effective = np.where(present, -np.expm1(np.log(beta)) * counts, 0.0)
    effective[present] /= -np.expm1(counts[present] * np.log(beta))
    effective /= effective.sum()
    plans: dict[str, tuple[Callable[[float], Vector | None], float | None, SourcePrior]] = {
        "uniform": (lambda _: None, None, "exact"),
        "balanced": (lambda _: balanced, 1.0, "exact"),
        "square-root": (lambda _: half, 0.5, "exact"),
        "effective-number": (
            lambda _: effective,
            divided_share(own[present], effective[present]),
            "approximate",
        ),
        "progressive": (lambda p: (1 - p) * own + p * balanced, 1.0, "approximate"),
        "deferred": (lambda p: balanced if p >= switch else None, 1.0, "approximate"),
    }
    if name not in plans:
        raise InvalidObjective(f"no sampler '{name}'; expected one of {', '.join(SAMPLERS)}")
    prior, recorded, exactness = plans[name]
    return Sampler(name, targets, prior, seed, recorded, exactness)


SAMPLERS = (
    "uniform",
    "balanced",
    "square-root",
    "effective-number",
    "progressive",
    "deferred",
)


class Recorded(NamedTuple):
    """What a model must remember of how it was trained."""

    loss_tau: float
    source_prior: SourcePrior


def recorded(objective: Objective, sampler: Sampler) -> Recorded:
    """What a loss and a sampler divide out together.

    Raises InvalidObjective when both would: a re-sampling sampler with a loss that already accounts for the
    label frequencies divides twice.
    """
    if sampler.recorded_loss_tau is None:
        return Recorded(objective.recorded_loss_tau, objective.source_prior)
    if objective.recorded_loss_tau > 0 or objective.deferred is not None:
        raise InvalidObjective(
            f"sampler '{sampler.name}' and loss '{objective.name}' both divide out the label frequencies; "
            "use sampler 'uniform', or loss 'erm'"
        )
    approximate = "approximate" in (objective.source_prior, sampler.source_prior)
    return Recorded(sampler.recorded_loss_tau, "approximate" if approximate else "exact")


def divided_share(label_frequencies: Vector, class_prior: Vector) -> float:
    """The loss_tau for which label_frequencies ** (1 - loss_tau) is closest to class_prior, within 0 … 1.

    Least squares of one log on the other over the classes; 0 when the frequencies are all equal.
    """
    x = np.log(label_frequencies) - np.log(label_frequencies).mean()
    if not x.any():
        return 0.0
    slope = float(np.dot(x, np.log(class_prior)) / np.dot(x, x))
    return float(np.clip(1 - slope, 0.0, 1.0))


def _draw(labels: Indices, class_prior: Vector, rng: np.random.Generator) -> Indices:
    """[N] indices whose classes follow class_prior; within a class, each example equally often but for one.

    Cycling through a class's examples rather than drawing with replacement lets no example starve.
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
