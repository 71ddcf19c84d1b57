"""How good predictions are: errors by class and group, calibration, and intervals. NumPy only.

Every error is a fraction 0 … 1. Labels are integers [n]; classes without an example in the split have no
error of their own (NaN) and take no part in a mean over classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector

Labels: TypeAlias = NDArray[np.integer]
Interval: TypeAlias = tuple[float, float]

GROUPS = ("many", "medium", "few")
MANY_ABOVE = 100
FEW_BELOW = 20
ECE_BINS = 15


def group_of(class_count: float) -> str:
    """The group of a class by its training examples: many > 100, medium 20 … 100, few < 20."""
    if class_count > MANY_ABOVE:
        return "many"
    return "few" if class_count < FEW_BELOW else "medium"


def class_totals(labels: Labels, num_classes: int, weights: ArrayLike | None = None) -> Vector:
    """[C] number, or sum of the weights, of the examples of each class."""
    totals = np.bincount(labels, weights=_optional(weights), minlength=num_classes)
    return np.asarray(totals, np.float64)


def error(predicted: Labels, labels: Labels) -> float:
    """Share of examples whose predicted class is wrong."""
    return float(np.mean(predicted != labels))


def per_class_errors(predicted: Labels, labels: Labels, num_classes: int) -> Vector:
    """[C] share of each class's examples that are wrong: 1 - recall; NaN where there are none."""
    totals = class_totals(labels, num_classes)
    wrong = class_totals(labels, num_classes, predicted != labels)
    errors: Vector = np.divide(wrong, totals, out=np.full(num_classes, np.nan), where=totals > 0)
    return errors


def balanced_error(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """Mean over the classes of the error within the class: 1 - balanced accuracy (paper, eq. 2)."""
    return float(np.nanmean(per_class_errors(predicted, labels, num_classes)))


def group_errors(errors: Vector, class_counts: ArrayLike) -> dict[str, float]:
    """Mean error of the classes of each group; NaN for a group without a class.

    errors: [C] as per_class_errors gives them; class_counts: [C] *training* examples.
    """
    groups = np.array([group_of(count) for count in np.asarray(class_counts, np.float64)])
    present = ~np.isnan(errors)
    members = {name: errors[(groups == name) & present] for name in GROUPS}
    return {name: float(e.mean()) if e.size else float("nan") for name, e in members.items()}


def target_weights(labels: Labels, target: ArrayLike) -> Vector:
    """[n] weights of mean 1 under which the split's class mix is the target's [C].

    Mass that the target puts on classes absent from the split cannot be represented and is shared out.
    Raises ValueError when the target has no mass on any class of the split.
    """
    wanted = np.asarray(target, np.float64)
    totals = class_totals(labels, len(wanted))
    ratios = np.divide(wanted, totals, out=np.zeros(len(wanted)), where=totals > 0)
    weights: Vector = ratios[labels]
    if not weights.sum() > 0:
        raise ValueError("the target gives no mass to any class of the split")
    weights *= len(labels) / weights.sum()
    return weights


def negative_log_likelihood(
    log_probabilities: Vector, labels: Labels, weights: ArrayLike | None = None
) -> float:
    """Mean of -log p[label] in nats, of log p [n, C]."""
    own = log_probabilities[np.arange(len(labels)), labels]
    return float(np.average(-own, weights=_optional(weights)))


def brier(probabilities: Vector, labels: Labels, weights: ArrayLike | None = None) -> float:
    """Mean squared distance of p [n, C] from the one-hot label, summed over classes: 0 … 2 (Brier 1950)."""
    own = probabilities[np.arange(len(labels)), labels]
    distances = np.square(probabilities).sum(axis=1) - 2 * own + 1
    return float(np.average(distances, weights=_optional(weights)))


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin of confidence, [bins] each; NaN means where a bin is empty."""

    edges: Vector
    """[bins + 1] from 0 to 1; a bin holds its upper edge."""
    share: Vector
    """Weighted share of the examples in the bin."""
    confidence: Vector
    accuracy: Vector

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over examples of |accuracy - confidence| of their bin."""
        filled = self.share > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(np.dot(self.share[filled], gaps))


def reliability(
    probabilities: Vector, labels: Labels, weights: ArrayLike | None = None, *, bins: int = ECE_BINS
) -> Reliability:
    """Bin the examples by the probability of their predicted class, in bins of equal width."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    weight = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    totals = np.bincount(index, weight, bins)

    def mean_of(values: Vector) -> Vector:
        sums = np.bincount(index, weight * values, bins)
        means: Vector = np.divide(sums, totals, out=np.full(bins, np.nan), where=totals > 0)
        return means

    return Reliability(edges, totals / totals.sum(), mean_of(confidence), mean_of(right))


def expected_calibration_error(
    probabilities: Vector, labels: Labels, weights: ArrayLike | None = None, *, bins: int = ECE_BINS
) -> float:
    """ECE of the predicted class's probability (Guo et al., 2017), 0 … 1."""
    return reliability(probabilities, labels, weights, bins=bins).ece


class ErrorIntervals(NamedTuple):
    """Intervals of the share of wrong answers and of its mean over the classes."""

    error: Interval
    balanced_error: Interval


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    strata: Labels,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of statistic(indices), drawing with replacement within each stratum.

    strata: [n] labels, so that every resample has the split's class counts and no class is lost.
    """
    rng = bootstrap_rng(seed)
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    values = [
        statistic(np.concatenate([rng.choice(own, len(own)) for own in members]))
        for _ in range(resamples)
    ]
    return percentile_interval(np.array(values), level=level)


def error_intervals(
    errors: Vector,
    totals: ArrayLike,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ErrorIntervals:
    """bootstrap_interval of the error and of the balanced error, without drawing examples.

    errors, totals: [C] error and number of examples of each class; classes without examples are left out.
    Resampling the n_y examples of a class gives Binomial(n_y, error_y) wrong ones, whatever they are.
    """
    counts = np.asarray(totals).astype(np.int64)
    present = counts > 0
    counts = counts[present]
    size = (resamples, len(counts))
    wrong = bootstrap_rng(seed).binomial(counts, errors[present], size)
    return ErrorIntervals(
        error=percentile_interval(wrong.sum(axis=1) / counts.sum(), level=level),
        balanced_error=percentile_interval((wrong / counts).mean(axis=1), level=level),
    )


def bootstrap_rng(seed: int) -> "np.random.Generator":  # in quotes, or it would be imported
    """A stream of its own for resampling: examples that were themselves drawn from default_rng(seed) would
    otherwise meet the very random numbers that made them.
    """
    return np.random.default_rng([seed, 0xB007])


def percentile_interval(values: Vector, *, level: float = 0.95) -> Interval:
    """The central `level` of the values [resamples]."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _optional(weights: ArrayLike | None) -> Vector | None:
    return None if weights is None else np.asarray(weights, np.float64)
