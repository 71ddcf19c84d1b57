"""Losses by name, what each divides out of the label frequencies, and the last layer it needs.

The formulas are the functions in margins.py. The modules here hold their class vectors as buffers,
which move to a device together with the network.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract.adjustment import MAX_TAU, Vector
from service.contract.nearest import did_you_mean
from training.learning.margins import equalised_random, focal, logit_adjusted, separable_margin
from training.learning.options import InvalidObjective, Option, completed

__all__ = ["InvalidObjective"]

SourcePrior: TypeAlias = Literal["exact", "approximate"]
Head: TypeAlias = Literal["linear", "cosine"]

COSINE_SCALE = 30.0
"""s of LDAM: a cosine head gives s * cos(features, class weights) as its logits."""


class MarginLoss(nn.Module):
    """`separable_margin` with its class vectors [C] as buffers; cross-entropy if it has none."""

    alpha: Tensor | None
    label_margin: Tensor | None
    rival_margin: Tensor | None

    def __init__(
        self,
        *,
        alpha: Vector | None = None,
        label_margin: Vector | None = None,
        rival_margin: Vector | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("alpha", _tensor(alpha))
        self.register_buffer("label_margin", _tensor(label_margin))
        self.register_buffer("rival_margin", _tensor(rival_margin))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [B], for logits [B, C] and labels [B]."""
        return separable_margin(
            logits,
            labels,
            label_margin=self.label_margin,
            rival_margin=self.rival_margin,
            alpha=self.alpha,
        )


class LogitAdjustedLoss(nn.Module):
    """`logit_adjusted` with log pi [C] as a buffer."""

    log_frequencies: Tensor

    def __init__(self, log_frequencies: Vector, *, loss_tau: float) -> None:
        super().__init__()
        self.register_buffer("log_frequencies", _tensor(log_frequencies))
        self.loss_tau = loss_tau

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [B], for logits [B, C] and labels [B]."""
        return logit_adjusted(
            logits, labels, log_frequencies=self.log_frequencies, loss_tau=self.loss_tau
        )


class EqualisedRandomLoss(nn.Module):
    """`equalised_random` with the mask of rare classes [C] as a buffer."""

    rare: Tensor

    def __init__(self, rare: NDArray[np.bool_], *, gamma: float) -> None:
        super().__init__()
        self.register_buffer("rare", torch.from_numpy(rare))
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [B], for logits [B, C] and labels [B]."""
        return equalised_random(logits, labels, rare=self.rare, gamma=self.gamma)


class FocalLoss(nn.Module):
    """`focal` as a module; it has no class vectors."""

    def __init__(self, *, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [B], for logits [B, C] and labels [B]."""
        return focal(logits, labels, gamma=self.gamma)


class Objective(nn.Module):
    """A loss ready for training, and the facts that a model trained with it must record.

    name: the name of the loss, one of LOSSES.
    example_loss: takes logits [B, C] and labels [B]; returns the loss of each example, [B].
    recorded_loss_tau: the share of the label frequencies that training divides out, so that
    sigma ~ pi ** (1 - recorded_loss_tau).
    source_prior: "exact" if softmax(logits) is a posterior under sigma at the optimum.
    head: the last layer that the loss needs.
    shifts_rivals: whether the loss holds the logits of rare rivals back less, which divides out an
    unknown share of the label frequencies; a sampler may then not divide them out too.
    later: the loss that replaces example_loss once the run's progress, 0 … 1, reaches `later_from`.
    """

    later: "Objective | None"

    def __init__(
        self,
        name: str,
        example_loss: nn.Module,
        recorded_loss_tau: float,
        *,
        source_prior: SourcePrior = "exact",
        head: Head = "linear",
        shifts_rivals: bool = False,
        later: nn.Module | None = None,
        later_from: float = math.inf,
    ) -> None:
        super().__init__()
        self.name = name
        self.example_loss = example_loss
        self.recorded_loss_tau = recorded_loss_tau
        self.source_prior: SourcePrior = source_prior
        self.head: Head = head
        self.shifts_rivals = shifts_rivals
        self.later_from = later_from
        self.later = None
        if later is not None:
            self.later = Objective(
                name, later, recorded_loss_tau, source_prior=source_prior, head=head
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits [B, C] and labels [B]: a scalar in float32 or wider."""
        mean: Tensor = self.example_loss(logits, labels).mean()
        return mean

    def at(self, progress: float) -> "Objective":
        """Return the objective in force when the run's progress is `progress`, 0 … 1."""
        return self if self.later is None or progress < self.later_from else self.later


def make_loss(
    name: str, class_counts: NDArray[Any], *, loss_tau: float = 1.0, **options: float
) -> Objective:
    """Return the loss called `name` for training counts [C] (only their ratios matter).

    loss_tau belongs to `logit-adjusted` and `weighted-logit-adjusted`. OPTIONS lists the options
    of the other losses. Raises InvalidObjective for an unknown name or option, a value out of
    range, or a class without training examples.
    """
    if name not in _MAKERS:
        near = did_you_mean(name, LOSSES)
        raise InvalidObjective(f"no loss '{name}'; expected one of {', '.join(LOSSES)}{near}")
    counts = np.asarray(class_counts, np.float64)
    if counts.ndim != 1 or not (np.isfinite(counts).all() and (counts > 0).all()):
        raise InvalidObjective(
            "a class has no training row; every class needs a finite count greater than 0"
        )
    settings = completed("loss", name, options, OPTIONS.get(name, {}))
    if name in ("logit-adjusted", "weighted-logit-adjusted"):
        if not 0 <= loss_tau <= MAX_TAU:
            raise InvalidObjective(f"loss_tau is {loss_tau}; expected 0 … {MAX_TAU:g}")
        settings["loss_tau"] = loss_tau
    elif loss_tau != 1.0:
        raise InvalidObjective(
            f"loss_tau is {loss_tau}, but '{name}' has no loss_tau; leave it out"
        )
    return _MAKERS[name](counts, **settings)


def _erm(counts: Vector) -> Objective:
    del counts
    return Objective("erm", MarginLoss(), 0.0)


def _balanced(counts: Vector) -> Objective:
    return Objective("balanced", MarginLoss(alpha=_mean_one(1 / _frequencies(counts), counts)), 1.0)


def _logit_adjusted(
    counts: Vector, *, loss_tau: float = 1.0, name: str = "logit-adjusted"
) -> Objective:
    loss = LogitAdjustedLoss(np.log(_frequencies(counts)), loss_tau=loss_tau)
    return Objective(name, loss, loss_tau)


def _balanced_softmax(counts: Vector) -> Objective:
    return _logit_adjusted(counts, name="balanced-softmax")


def _weighted_logit_adjusted(counts: Vector, *, loss_tau: float) -> Objective:
    frequencies = _frequencies(counts)
    margin = loss_tau * np.log(frequencies)
    loss = MarginLoss(
        label_margin=-margin,
        rival_margin=margin,
        alpha=_mean_one(frequencies ** (loss_tau - 1), counts),
    )
    return Objective("weighted-logit-adjusted", loss, 1.0)


def _adaptive(counts: Vector) -> Objective:
    loss = MarginLoss(label_margin=_frequencies(counts) ** -0.25)
    return Objective("adaptive", loss, 0.0, source_prior="approximate")


def _logit_adjusted_adaptive(counts: Vector) -> Objective:
    frequencies = _frequencies(counts)
    log_frequencies = np.log(frequencies)
    loss = MarginLoss(
        label_margin=frequencies**-0.25 - log_frequencies, rival_margin=log_frequencies
    )
    return Objective("logit-adjusted+adaptive", loss, 1.0, source_prior="approximate")


def _ldam(
    counts: Vector, *, max_margin: float, drw: float, drw_start: float, beta: float
) -> Objective:
    """LDAM as its authors ran it (Cao et al., NeurIPS 2019): logits are s * cos of a cosine head.

    cross-entropy(s * (cos - m_y * 1[y])), m_y = max_margin * (n_min / n_y)^(1/4); with DRW, from
    progress drw_start on, weighted by class_balanced_weights.
    """
    margin = COSINE_SCALE * max_margin * (counts.min() / counts) ** 0.25
    weights = class_balanced_weights(counts, beta=beta)
    return Objective(
        "ldam",
        MarginLoss(label_margin=margin),
        0.0,
        source_prior="approximate",
        head="cosine",
        later=MarginLoss(label_margin=margin, alpha=weights) if drw else None,
        later_from=drw_start,
    )


def _equalised(counts: Vector) -> Objective:
    loss = MarginLoss(rival_margin=np.log(_frequencies(counts)))
    return Objective("equalised", loss, 0.0, source_prior="approximate", shifts_rivals=True)


def _equalised_random(counts: Vector, *, gamma: float, rare_below: float) -> Objective:
    loss = EqualisedRandomLoss(_frequencies(counts) < rare_below, gamma=gamma)
    return Objective("equalised-random", loss, 0.0, source_prior="approximate", shifts_rivals=True)


def _focal(counts: Vector, *, gamma: float) -> Objective:
    del counts
    return Objective("focal", FocalLoss(gamma=gamma), 0.0, source_prior="approximate")


_MAKERS: dict[str, Callable[..., Objective]] = {
    "erm": _erm,
    "balanced": _balanced,
    "logit-adjusted": _logit_adjusted,
    "weighted-logit-adjusted": _weighted_logit_adjusted,
    "adaptive": _adaptive,
    "ldam": _ldam,
    "equalised": _equalised,
    "equalised-random": _equalised_random,
    "logit-adjusted+adaptive": _logit_adjusted_adaptive,
    "focal": _focal,
    "balanced-softmax": _balanced_softmax,
}
LOSSES = tuple(_MAKERS)
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "ldam": {
        "max_margin": Option(0.5, high=10),
        "drw": Option(1, switch=True),
        "drw_start": Option(0.8, high=1),
        "beta": Option(0.9999, low=1e-12, high=1, below=True),
    },
    "equalised-random": {"gamma": Option(0.9, high=1), "rare_below": Option(0.005, high=1)},
    "focal": {"gamma": Option(2.0, high=100)},
}
"""The options of each loss. `gamma` is an exponent for focal and a probability for
equalised-random. `rare_below` is a label frequency. `drw` is 1 (re-weight once the run's progress
reaches `drw_start`) or 0.
"""


def class_balanced_weights(counts: Vector, *, beta: float = 0.9999) -> Vector:
    """[C] weights (1 - beta) / (1 - beta ** n_y), scaled to sum to C (Cui et al., CVPR 2019)."""
    weights: Vector = (1 - beta) / -np.expm1(counts * np.log(beta))
    weights *= len(counts) / weights.sum()
    return weights


def _frequencies(counts: Vector) -> Vector:
    scaled: Vector = counts / counts.max()
    scaled /= scaled.sum()
    return scaled


def _mean_one(weights: Vector, counts: Vector) -> Vector:
    """Scale weights [C] to mean 1 over the training examples, so the learning rate can stay."""
    scaled: Vector = weights / np.dot(_frequencies(counts), weights)
    return scaled


def _tensor(vector: Vector | None) -> Tensor | None:
    return None if vector is None else torch.from_numpy(vector).float()
