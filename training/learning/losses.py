"""Losses by name: what each divides out of the label frequencies, and the head that it needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract.adjustment import MAX_TAU, Vector
from training.learning.margins import (
    cross_entropy,
    equalised_random,
    focal,
    logit_adjusted,
    separable_margin,
)

SourcePrior: TypeAlias = Literal["exact", "approximate"]
Head: TypeAlias = Literal["linear", "cosine"]
ExampleLoss: TypeAlias = "partial[Tensor]"

COSINE_SCALE = 30.0
"""s of LDAM: a cosine head gives s * cos(features, class weights) as its logits."""


class InvalidObjective(ValueError):
    """A loss that does not exist, a parameter that it does not have, or frequencies that it cannot use."""

    exit_code = 2


@dataclass(frozen=True)
class Objective:
    """A loss ready for training, and what the model that it trains must remember."""

    name: str
    example_loss: ExampleLoss
    """(logits [B, C], labels [B]) -> [B]."""
    recorded_loss_tau: float
    """Share of the label frequencies that training divides out: sigma ~ pi ** (1 - recorded_loss_tau)."""
    source_prior: SourcePrior = "exact"
    """Whether softmax(logits) is a posterior under sigma exactly, at the optimum, or only about."""
    head: Head = "linear"
    deferred: tuple[float, ExampleLoss] | None = None
    """(share of the run, the loss from then on)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch, a scalar: float32 or wider whatever the dtype of the logits."""
        own = next((v for v in self.example_loss.keywords.values() if isinstance(v, Tensor)), None)
        moved = self if own is None or own.device == logits.device else self.to(logits.device)
        return moved.example_loss(logits, labels).mean()

    def at(self, progress: float) -> "Objective":
        """The objective at a share 0 … 1 of the run."""
        if self.deferred is None or progress < self.deferred[0]:
            return self
        return replace(self, example_loss=self.deferred[1], deferred=None)

    def to(self, device: torch.device | str) -> "Objective":
        """The same with its class vectors on a device: once before a run rather than at each step."""
        later = self.deferred and (self.deferred[0], _moved(self.deferred[1], device))
        return replace(self, example_loss=_moved(self.example_loss, device), deferred=later)


def make_loss(
    name: str, class_counts: NDArray[Any], *, loss_tau: float = 1.0, **options: Any
) -> Objective:
    """The loss called `name` for these training counts [C] (or frequencies; only ratios matter).

    loss_tau belongs to `logit-adjusted` and `weighted-logit-adjusted`. Options: `gamma` (focal, equalised-random),
    `rare_below` (equalised-random, a frequency), `max_margin`, `drw`, `drw_start`, `beta` (ldam).
    Raises InvalidObjective.
    """
    if name not in _MAKERS:
        raise InvalidObjective(f"no loss '{name}'; expected one of {', '.join(LOSSES)}")
    counts = np.asarray(class_counts, np.float64)
    if counts.ndim != 1 or not (np.isfinite(counts).all() and (counts > 0).all()):
        raise InvalidObjective("every class needs a finite training count greater than 0")
    if name in ("logit-adjusted", "weighted-logit-adjusted"):
        if not 0 <= loss_tau <= MAX_TAU:
            raise InvalidObjective(f"loss_tau is {loss_tau}; expected 0 … {MAX_TAU:g}")
        options["loss_tau"] = loss_tau
    elif loss_tau != 1.0:
        raise InvalidObjective(f"loss_tau is {loss_tau}, and '{name}' has no loss_tau")
    try:
        return _MAKERS[name](counts, **options)
    except TypeError as error:
        raise InvalidObjective(f"'{name}': {error}") from None


def _erm(counts: Vector) -> Objective:
    del counts
    return Objective("erm", partial(cross_entropy), 0.0)


def _balanced(counts: Vector) -> Objective:
    alpha = _mean_one(1 / _frequencies(counts), counts)
    return Objective("balanced", partial(cross_entropy, alpha=_tensor(alpha)), 1.0)


def _logit_adjusted(counts: Vector, *, loss_tau: float) -> Objective:
    log_frequencies = _tensor(np.log(_frequencies(counts)))
    loss = partial(logit_adjusted, log_frequencies=log_frequencies, loss_tau=loss_tau)
    return Objective("logit-adjusted", loss, loss_tau)


def _balanced_softmax(counts: Vector) -> Objective:
    return replace(_logit_adjusted(counts, loss_tau=1.0), name="balanced-softmax")


def _weighted_logit_adjusted(counts: Vector, *, loss_tau: float) -> Objective:
    frequencies = _frequencies(counts)
    margin = loss_tau * np.log(frequencies)
    loss = partial(
        separable_margin,
        label_margin=_tensor(-margin),
        rival_margin=_tensor(margin),
        alpha=_tensor(_mean_one(frequencies ** (loss_tau - 1), counts)),
    )
    return Objective("weighted-logit-adjusted", loss, 1.0)


def _adaptive(counts: Vector) -> Objective:
    margin = _frequencies(counts) ** -0.25
    loss = partial(separable_margin, label_margin=_tensor(margin))
    return Objective("adaptive", loss, 0.0, "approximate")


def _logit_adjusted_adaptive(counts: Vector) -> Objective:
    frequencies = _frequencies(counts)
    log_frequencies = np.log(frequencies)
    loss = partial(
        separable_margin,
        label_margin=_tensor(frequencies**-0.25 - log_frequencies),
        rival_margin=_tensor(log_frequencies),
    )
    return Objective("logit-adjusted+adaptive", loss, 1.0, "approximate")


def _ldam(
    counts: Vector,
    *,
    max_margin: float = 0.5,
    drw: bool = True,
    drw_start: float = 0.8,
    beta: float = 0.9999,
) -> Objective:
    """LDAM as its authors ran it (Cao et al., NeurIPS 2019): logits are s * cos of a cosine head.

    cross-entropy(s * (cos - m_y * 1[y])), m_y = max_margin * (n_min / n_y)^(1/4); with DRW, from drw_start on,
    weighted by class_balanced_weights.
    """
    margin = COSINE_SCALE * max_margin * (counts.min() / counts) ** 0.25
    loss = partial(separable_margin, label_margin=_tensor(margin))
    weighted = partial(loss, alpha=_tensor(class_balanced_weights(counts, beta=beta)))
    later = (drw_start, weighted) if drw else None
    return Objective("ldam", loss, 0.0, "approximate", "cosine", later)


def _equalised(counts: Vector) -> Objective:
    loss = partial(separable_margin, rival_margin=_tensor(np.log(_frequencies(counts))))
    return Objective("equalised", loss, 0.0, "approximate")


def _equalised_random(
    counts: Vector, *, gamma: float = 0.9, rare_below: float = 0.005
) -> Objective:
    rare = torch.from_numpy(_frequencies(counts) < rare_below)
    return Objective(
        "equalised-random",
        partial(equalised_random, rare=rare, gamma=gamma),
        0.0,
        "approximate",
    )


def _focal(counts: Vector, *, gamma: float = 2.0) -> Objective:
    del counts
    return Objective("focal", partial(focal, gamma=gamma), 0.0, "approximate")


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


def class_balanced_weights(counts: Vector, *, beta: float = 0.9999) -> Vector:
    """(1 - beta) / (1 - beta ** n_y), scaled to sum to C (Cui et al., CVPR 2019)."""
    weights: Vector = (1 - beta) / -np.expm1(counts * np.log(beta))
    weights *= len(counts) / weights.sum()
    return weights


def _frequencies(counts: Vector) -> Vector:
    scaled: Vector = counts / counts.max()
    scaled /= scaled.sum()
    return scaled


def _mean_one(weights: Vector, counts: Vector) -> Vector:
    """Weights scaled so that their mean over the training examples is 1: the learning rate keeps its meaning."""
    scaled: Vector = weights / np.dot(_frequencies(counts), weights)
    return scaled


def _tensor(vector: Vector) -> Tensor:
    return torch.from_numpy(vector).float()


def _moved(loss: ExampleLoss, device: torch.device | str) -> ExampleLoss:
    keywords = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in loss.keywords.items()
    }
    return partial(loss.func, **keywords)
