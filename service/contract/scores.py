"""How good predictions are: errors by class and group, calibration, and intervals. NumPy only.

Every error is a fraction 0 … 1. Labels are integers [n]; classes without an example in the split
have no error of their own (NaN) and take no part in a mean over classes.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
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
Z_95 = 1.959964
"""Half the width of a 95 % interval, in standard deviations of a normal distribution."""


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

    Mass that the target puts on classes absent from the split goes to the other classes.
    Raises ValueError when the target has no mass on any class of the split.
    """
    wanted = np.asarray(target, np.float64)
    totals = class_totals(labels, len(wanted))
    ratios = np.divide(wanted, totals, out=np.zeros(len(wanted)), where=totals > 0)
    weights: Vector = ratios[labels]
    if not weights.sum() > 0:
        raise ValueError(
            "the target gives no mass to any class of the split; expected one above 0 for a class "
            "that has rows"
        )
    weights *= len(labels) / weights.sum()
    return weights


def negative_log_likelihood(
    log_probabilities: Vector, labels: Labels, weights: ArrayLike | None = None
) -> float:
    """Mean of -log p[label] in nats, of log p [n, C]."""
    own = log_probabilities[np.arange(len(labels)), labels]
    return float(np.average(-own, weights=_optional(weights)))


def brier(probabilities: Vector, labels: Labels, weights: ArrayLike | None = None) -> float:
    """Mean over rows of the squared distance of p [n, C] from the one-hot label: 0 … 2."""
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
        """Expected calibration error: mean over examples of their bin's |accuracy - confidence|."""
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
    """95 % intervals of the share of wrong answers and of its mean over the classes."""

    error: Interval
    balanced_error: Interval


def proportion_interval(share: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a share observed among n examples, which need not be a whole number.

    It has a width even when the share is 0 or 1 (Wilson 1927; Brown, Cai and DasGupta 2001).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_error_interval(
    errors: ArrayLike, totals: ArrayLike, *, shares: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Interval of a mean over classes of the error within the class, also for classes of one row.

    errors, totals: [C] error and number of examples of each class; classes without examples are
    left out. shares: [C] weights of the classes in the mean, equal by default.

    The method has three steps. (1) m is the mean error in which each class weighs as much as it
    adds to the variance, share^2 / n, and N is the number of examples that m rests on. (2) The
    variance of class y is p(1 - p) / n, with its error p shrunk by one example towards m, so that
    a class that is all right or all wrong keeps a variance. (3) Wilson's interval of m among N
    examples gives the distance to either side, scaled to the standard deviation of the mean.
    With equal totals this is Wilson's interval of the pooled error.
    """
    n = np.asarray(totals, np.float64)
    present = n > 0
    n, p = n[present], np.asarray(errors, np.float64)[present]
    share = np.ones(len(n)) if shares is None else np.asarray(shares, np.float64)[present]
    share = share / share.sum()
    weight = share**2 / n
    typical = float(weight @ p / weight.sum())
    rows = float(weight.sum() ** 2 / (weight**2 / n).sum())
    variance = _shrunk_variance(p, n, prior=(rows * typical + 0.5) / (rows + 1))
    deviation = math.sqrt(float(share**2 @ variance))
    scale = deviation / math.sqrt(float(weight**2 @ variance)) * float(weight.sum())
    low, high = proportion_interval(typical, rows, level=level)
    mean = float(share @ p)
    return max(0.0, mean - scale * (typical - low)), min(1.0, mean + scale * (high - typical))


def error_intervals(errors: Vector, totals: ArrayLike, *, level: float = 0.95) -> ErrorIntervals:
    """Intervals of the error and of the balanced error from the errors [C] of the classes.

    totals: [C] examples of each class. The error has Wilson's interval, the balanced error that of
    mean_error_interval. Classes without examples are left out.
    """
    n = np.asarray(totals, np.float64)
    wrong = float(np.where(n > 0, errors * n, 0.0).sum())
    return ErrorIntervals(
        error=proportion_interval(wrong / float(n.sum()), float(n.sum()), level=level),
        balanced_error=mean_error_interval(errors, n, level=level),
    )


def paired_standard_errors(differences: Vector, labels: Labels, shares: Vector) -> Vector:
    """[G] standard errors of weighted means of paired differences, also for classes of one row.

    differences: [G, n], each -1, 0 or 1: the error of one rule less that of another, by example.
    shares: [C] weights of the classes in the mean. As in mean_error_interval, the share of
    examples that differ is shrunk by one example towards that of the classes that matter most.
    """
    totals = class_totals(labels, len(shares))
    of_classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(totals)[:-1].astype(int))
    members = [of_classes[y] for y in np.flatnonzero((totals > 0) & (shares > 0))]
    n = np.array([len(own) for own in members], np.float64)
    share = np.array([shares[labels[own[0]]] for own in members])
    differ = np.stack([np.abs(differences[:, own]).mean(axis=1) for own in members], axis=1)
    mean = np.stack([differences[:, own].mean(axis=1) for own in members], axis=1)
    weight = share**2 / n
    rows = float(weight.sum() ** 2 / (weight**2 / n).sum())
    typical = (rows * (differ @ weight) / weight.sum() + 0.5) / (rows + 1)
    shrunk = (n * differ + typical[:, None]) / (n + 1)
    variance = np.maximum(shrunk - (n * mean / (n + 1)) ** 2, 0.0) / n
    errors: Vector = np.sqrt(variance @ share**2)
    return errors


def bootstrap_rng(seed: int) -> "np.random.Generator":  # in quotes, or it would be imported
    """A random stream for resampling that shares no numbers with default_rng(seed).

    Examples are often drawn from default_rng(seed) themselves, and must not meet those numbers.
    """
    return np.random.default_rng([seed, 0xB007])


def _shrunk_variance(errors: Vector, totals: Vector, *, prior: float) -> Vector:
    """[C] p(1 - p) / n of each class, with p shrunk by one example towards `prior`."""
    shrunk = (totals * errors + prior) / (totals + 1)
    variance: Vector = shrunk * (1 - shrunk) / totals
    return variance


def _optional(weights: ArrayLike | None) -> Vector | None:
    return None if weights is None else np.asarray(weights, np.float64)
