"""The error of live traffic from few labels: prediction-powered inference with sampled labels.

    recall_c = A_c / B_c        w = 1 / P(labelled)
    B_c = mean_N p_c        + Σ_L w (1{y = c}        − p_c)        / Σ_L w
    A_c = mean_N p_c 1{ŷ=c} + Σ_L w (1{y = c, ŷ = c} − p_c 1{ŷ=c}) / Σ_L w

N are all rows, L the labelled ones, ŷ the decision, and p any prediction of the label. A and B are
unbiased for any p (Angelopoulos et al., Science 2023; Robins, Rotnitzky and Zhao, JASA 1994), and a
better p needs fewer labels. Intervals are bootstraps of L.

The ratio of two unbiased numbers has the bias −Cov(A − R·B, B) / B² (Cochran, Sampling Techniques,
§6.8): a rare class with few labels seems better than it is. The predictions give the covariance,
including the noise of labelling a row only with probability 1/w, and

    recall_c = A_c / B_c + Σ_L w (w − 1) p_c (1 − p_c) (1{ŷ=c} − R_c) / (Σ_L w)² / (B² + Var B)

with R_c and B from the predictions alone, so that the correction adds no noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.members.costs import REJECTED

RESAMPLES = 200
MOST_CONFUSIONS = 10
_Z = 1.959964


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Predicted:
    """Predictions of the label of n rows, sparse: classes [n, k] with probabilities [n, k].

    A class of -1 has probability 0. decided: [n] the decision, a class or REJECTED.
    """

    classes: NDArray[np.int64]
    probabilities: Vector
    decided: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.decided)

    def take(self, rows: NDArray[Any]) -> "Predicted":
        """Some of the rows."""
        return Predicted(self.classes[rows], self.probabilities[rows], self.decided[rows])

    def sums(self, weights: Vector | None, classes: int) -> tuple[Vector, Vector]:
        """(Σ w p_c, Σ w p_c 1{ŷ=c}) over the decided rows: [C] each."""
        p = self.probabilities * (self.decided != REJECTED)[:, None]
        if weights is not None:
            p = p * weights[:, None]
        there = self.classes >= 0
        hit = there & (self.classes == self.decided[:, None])
        return (
            np.bincount(self.classes[there], p[there], classes).astype(np.float64),
            np.bincount(self.classes[hit], p[hit], classes).astype(np.float64),
        )


@dataclass(frozen=True)
class Labelled:
    """Rows with a label: their predictions, the label [m] and the weight 1 / P(labelled) [m]."""

    predicted: Predicted
    label: NDArray[np.int64]
    weight: Vector


@dataclass(frozen=True)
class Figures:
    """The errors of the traffic as estimated from labels: of decided rows, from 0 to 1.

    groups: the mean error of the classes of each group, by its name. gap: mean probability of the
    decision less the share that is right. class_shares: [C] the mix of the traffic.
    """

    balanced_error: Interval
    error: Interval
    groups: dict[str, Interval]
    gap: Interval
    class_shares: Vector
    confusions: list[tuple[int, int, Interval]]


def figures(
    everything: Predicted,
    labelled: Labelled,
    *,
    groups: dict[str, NDArray[np.int64]],
    classes: int,
    seed: int = 0,
) -> Figures:
    """Estimate the errors of `everything` with the help of the labelled rows among it.

    groups: the classes of each group by name. seed: of the bootstrap's generator.
    """
    traffic = _Traffic.of(everything, groups, classes)
    rows = np.flatnonzero(labelled.predicted.decided != REJECTED)
    ours = Labelled(labelled.predicted.take(rows), labelled.label[rows], labelled.weight[rows])
    pairs = _most_confused(ours)
    m, rng = len(rows), np.random.default_rng(seed)
    skew = traffic.skew(ours)
    first = traffic.corrected(ours, np.ones(m), pairs, skew)
    resamples = (
        np.bincount(rng.integers(0, m, m), minlength=m) for _ in range(RESAMPLES if m else 0)
    )
    again = np.array([traffic.corrected(ours, each, pairs, skew).numbers for each in resamples])
    # The plain bootstrap of ratios of few rows is too narrow.
    widen = np.sqrt(m / (m - classes)) if m > 2 * classes else np.sqrt(2.0)

    least = [*traffic.variances(ours), *[0.0] * len(pairs)]

    def interval(at: int) -> Interval:
        value = first.numbers[at]
        half = 1.0
        if m > 1:
            half = widen * _Z * float(np.sqrt(max(again[:, at].var(ddof=1), least[at])))
        return Interval(value, value - half, value + half)

    last = 3 + len(groups)
    return Figures(
        balanced_error=_bounded(interval(0)),
        error=_bounded(interval(1)),
        gap=interval(2),
        groups={name: _bounded(interval(3 + at)) for at, name in enumerate(groups)},
        class_shares=first.shares,
        confusions=[
            (true, wrong, _bounded(interval(last + at))) for at, (true, wrong) in enumerate(pairs)
        ],
    )


def without_labels(
    everything: Predicted, *, groups: dict[str, NDArray[np.int64]], classes: int
) -> dict[str, float]:
    """Balanced error, error, gap and group errors from the predictions alone, without labels.

    They are correct only if the predictions are calibrated. groups: as in `figures`.
    """
    traffic = _Traffic.of(everything, groups, classes)
    found = traffic.numbers(traffic.share, traffic.hit, [], np.zeros(classes))
    return dict(zip(("balanced_error", "error", "gap", *groups), found.numbers, strict=True))


class _Estimate(NamedTuple):
    numbers: list[float]
    """balanced error, error, gap, the groups' errors, the shares of the confusions."""
    shares: Vector


@dataclass(frozen=True)
class _Traffic:
    """Means of the predictions over all rows: p_c and p_c 1{ŷ=c}, [C] each."""

    share: Vector
    hit: Vector
    confidence: float
    groups: dict[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls, everything: Predicted, groups: dict[str, NDArray[np.int64]], classes: int
    ) -> "_Traffic":
        decided = max(1, int((everything.decided != REJECTED).sum()))
        share, hit = everything.sums(None, classes)
        return cls(share / decided, hit / decided, float(hit.sum()) / decided, groups)

    def corrected(
        self,
        ours: Labelled,
        times: NDArray[Any],
        pairs: Sequence[tuple[int, int]],
        skew: Vector,
    ) -> _Estimate:
        """The estimate with each labelled row counted `times` [m] times, less its `skew`."""
        weight, classes = ours.weight * times, len(self.share)
        total = weight.sum()
        if total <= 0:
            return self.numbers(self.share, self.hit, [0.0] * len(pairs), np.zeros(classes))
        share, hit = ours.predicted.sums(weight, classes)
        right = ours.label == ours.predicted.decided
        seen = np.bincount(ours.label, weight, classes)
        hits = np.bincount(ours.label[right], weight[right], classes)
        confused = [
            float(weight[(ours.label == y) & (ours.predicted.decided == k)].sum() / total)
            for y, k in pairs
        ]
        return self.numbers(
            self.share + (seen - share) / total, self.hit + (hits - hit) / total, confused, skew
        )

    def skew(self, ours: Labelled) -> Vector:
        """[C] the bias of A_c / B_c, by the formula at the top of this module."""
        classes, total = len(self.share), ours.weight.sum()
        if total <= 0:
            return np.zeros(classes)
        predicted = ours.predicted
        varied = predicted.probabilities * (1 - predicted.probabilities)
        spread = Predicted(predicted.classes, varied, predicted.decided)
        both, hit = spread.sums(ours.weight * (ours.weight - 1) / total**2, classes)
        recall = np.divide(self.hit, self.share, out=np.zeros(classes), where=self.share > 0)
        size = self.share**2 + both
        skew: Vector = np.divide(recall * both - hit, size, out=np.zeros(classes), where=size > 0)
        return skew

    def variances(self, ours: Labelled) -> list[float]:
        """The variances of `numbers` without the confusions, if labels follow the predictions.

        A bootstrap cannot see the errors of a rare class of which no labelled row was wrong.
        """
        if not len(ours.label):
            return [0.0] * (3 + len(self.groups))
        predicted, known = ours.predicted, np.append(self.share > 0, [False])
        hit = predicted.classes == predicted.decided[:, None]
        recall = np.divide(self.hit, self.share, out=np.zeros_like(self.hit), where=known[:-1])
        slope = np.where(known[predicted.classes], hit - np.append(recall, 0)[predicted.classes], 0)
        slope /= np.where(known, np.append(self.share, 1.0), 1.0)[predicted.classes]

        def of(values: Vector) -> float:
            mean = (predicted.probabilities * values).sum(axis=1)
            each = (predicted.probabilities * values**2).sum(axis=1) - mean**2
            return float((ours.weight**2 * each).sum() / ours.weight.sum() ** 2)

        def of_classes(members: NDArray[Any]) -> float:
            there = members[known[members]]
            return of(np.where(np.isin(predicted.classes, there), slope, 0.0) / max(1, len(there)))

        plain = of(hit.astype(np.float64))
        each = [of_classes(members) for members in self.groups.values()]
        return [of_classes(np.arange(len(self.share))), plain, plain, *each]

    def numbers(self, share: Vector, hit: Vector, confused: list[float], skew: Vector) -> _Estimate:
        """The errors that follow from the estimated shares and hits of the classes, [C] each.

        Noise can leave a class without a positive share or with negative hits. That class gets the
        share and hits which the posterior alone gives.
        """
        noise = (share <= 0) | (hit < 0)
        accuracy = float(hit.sum())
        share, hit = np.where(noise, self.share, share), np.where(noise, self.hit, hit)
        present = share > 0
        recall = np.divide(hit, share, out=np.zeros_like(hit), where=present)
        missed = 1.0 - np.clip(recall - np.where(noise, 0.0, skew), 0.0, 1.0)
        numbers = [_mean(missed, present), 1.0 - accuracy, self.confidence - accuracy]
        numbers += [_mean(missed[m], present[m]) for m in self.groups.values()]
        return _Estimate([*numbers, *confused], share)


def _mean(missed: Vector, present: NDArray[np.bool_]) -> float:
    return float(missed[present].mean()) if present.any() else 0.0


def _most_confused(ours: Labelled) -> list[tuple[int, int]]:
    """The pairs (true, decided) of the largest weight among the labelled rows."""
    wrong = np.flatnonzero(ours.label != ours.predicted.decided)
    total: dict[tuple[int, int], float] = {}
    for row in wrong.tolist():
        pair = int(ours.label[row]), int(ours.predicted.decided[row])
        total[pair] = total.get(pair, 0.0) + float(ours.weight[row])
    return sorted(total, key=lambda pair: -total[pair])[:MOST_CONFUSIONS]


def _bounded(found: Interval) -> Interval:
    return Interval(*(min(1.0, max(0.0, each)) for each in found))
