"""Sketches: how the rows of each class look to a model, in a few numbers for each class.

Comparing traffic with them shows whether any mix of the classes can look like it. A sketch gives
each row a few features, and says what each class's rows have on average.
"""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from service.contract.adjustment import Vector, softmax
from service.contract.portions import Long
from service.contract.strict import Strict
from service.contract.values import Count, Positive, Single

ENERGY_BINS = 10
NUMBERS = 3
"""The numbers of a row of logits that `Moments` describes: energy, spread and rest."""
FARTHEST = 4.0
"""Numbers farther from their centre, in units of their scale, count as this far."""
_PSEUDO_ROWS = 4  # of the mean over the classes, added to the rows of each class


class Sketch(Strict):
    """One histogram per class of a number computed for each row of the split.

    `energy` is the log of the sum of the exponentials of the raw logits. `entropy`, for models
    whose output is probabilities, is that of softmax(f / T).
    """

    statistic: Literal["energy", "entropy"]
    edges: Annotated[Long[float], Field(min_length=ENERGY_BINS - 1, max_length=ENERGY_BINS - 1)]
    counts: Long[Annotated[Long[Count], Field(min_length=ENERGY_BINS, max_length=ENERGY_BINS)]]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if sorted(self.edges) != self.edges:
            raise ValueError("edges must ascend")
        return self

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.counts)

    def features(self, logits: ArrayLike, *, temperature: float) -> Vector:
        """[n, 9] which bin each row of logits [n, C] falls into: 1 there, 0 elsewhere.

        The last bin is left out, because it follows from the others.
        """
        values = sketched(logits, statistic=self.statistic, temperature=temperature)
        found: Vector = np.eye(ENERGY_BINS)[binned(values, self.edges)]
        return found[:, :-1]

    def class_means(self, totals: ArrayLike) -> Vector:
        """[C, 9] share of each class's rows in each bin but the last.

        A class without rows gets the mean over the others. totals: not used; the histograms hold
        the rows of each class themselves.
        """
        del totals
        counts = np.asarray(self.counts, np.float64)
        own = counts.sum(axis=1)
        shares = counts / np.maximum(own, 1)[:, None]
        shares[own == 0] = shares[own > 0].mean(axis=0)
        found: Vector = shares[:, :-1]
        return found

    def parts(self) -> list[NDArray[np.intp]]:
        """The sets of features that are tested by themselves: all [9]."""
        return [np.arange(ENERGY_BINS - 1)]

    def least_variance(self, expected: Vector) -> Vector:
        """[9] variance of each feature of a row, where [9] are expected.

        Rows that happen to miss a rare bin do not show it.
        """
        return expected * (1 - expected)


class Moments(Strict):
    """Per class, the mean and the mean square of M = 3 + D numbers of a row's raw logits f.

    energy: the log of the sum of the exponentials of f. spread: the standard deviation of f.
    rest: the mean of f without its largest entry. directions: [D][C]; f along each of them is
    another number. Each number is taken from `centre` [M] in units of `scale` [M], and cut to
    -4 … 4. means: [C][2 M], the means and then the mean squares, each drawn towards the mean over
    the classes with the weight of four rows. `class_means` undoes that.
    """

    statistic: Literal["logits"] = "logits"
    directions: Annotated[Long[Long[Single]], Field(default_factory=list)]
    centre: Long[Single]
    scale: Long[Positive]
    means: Long[Long[Single]]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        size = NUMBERS + len(self.directions)
        for name, found, wanted in (
            ("centre", [self.centre], size),
            ("scale", [self.scale], size),
            ("means", self.means, 2 * size),
            ("directions", self.directions, len(self.means)),
        ):
            for each in found:
                if len(each) != wanted:
                    raise ValueError(
                        f"sketch.{name} has {len(each)} numbers where {wanted} are expected; "
                        "write the block with `training calibrate`"
                    )
        return self

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.means)

    def features(self, logits: ArrayLike, *, temperature: float) -> Vector:
        """[n, 2 M] the numbers of each row of logits [n, C], and their squares."""
        del temperature  # raw logits tell more: a temperature that hides a change would not show
        numbers = numbers_of(logits, directions=self.directions)
        return features_of(numbers, centre=self.centre, scale=self.scale)

    def class_means(self, totals: ArrayLike) -> Vector:
        """[C, 2 M] mean of each feature over the rows of each class, from their number [C].

        A class without rows gets the mean over the others.
        """
        return _unsmoothed(np.asarray(self.means, np.float64), np.asarray(totals, np.float64))

    def parts(self) -> list[NDArray[np.intp]]:
        """The sets of features that are tested by themselves: of the three numbers, and all.

        A test of few numbers detects a change in them more reliably; a test of many numbers detects
        more kinds of change.
        """
        size = NUMBERS + len(self.directions)
        three = np.arange(NUMBERS)
        first = np.concatenate([three, size + three])
        return [first, np.arange(2 * size)] if self.directions else [first]

    def least_variance(self, expected: Vector) -> Vector:
        """[2 M] zeros: the rows show the variance of each feature themselves."""
        return np.zeros_like(expected)


def numbers_of(logits: ArrayLike, *, directions: ArrayLike = ()) -> Vector:
    """[n, 3 + D] energy, spread and rest of each row of raw logits [n, C], C > 1.

    directions: [D, C], along which the rows are measured as well.
    """
    f = np.asarray(logits, np.float64)
    largest = f.max(axis=1)
    rest = (f.sum(axis=1) - largest) / (f.shape[1] - 1)
    along = f @ np.asarray(directions, np.float64).reshape(-1, f.shape[1]).T
    return np.column_stack([_energy(f), f.std(axis=1), rest, along])


def features_of(numbers: Vector, *, centre: ArrayLike, scale: ArrayLike) -> Vector:
    """[n, 2 M] the numbers [n, M] from their centre [M] in units of scale [M], and the squares."""
    z = (numbers - np.asarray(centre)) / np.asarray(scale)
    z = z.clip(-FARTHEST, FARTHEST)
    return np.concatenate([z, z**2], axis=1)


def class_means_of(features: Vector, labels: NDArray[np.integer], num_classes: int) -> Vector:
    """Return the mean feature [C, m] of each class's rows, drawn towards the mean over the classes.

    features: [n, m]; labels: [n]. The mean over the classes has the weight of four rows. A class
    without rows gets the mean over all classes that have some.
    """
    totals = np.bincount(labels, minlength=num_classes).astype(np.float64)
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    return _smoothed(sums / np.maximum(totals, 1)[:, None], totals)


def sketched(
    logits: ArrayLike, *, statistic: Literal["energy", "entropy"], temperature: float
) -> Vector:
    """[n] the number of each row that the histograms count, from raw logits [n, C]."""
    f = np.asarray(logits, np.float64)
    if statistic == "energy":
        return _energy(f)
    p = softmax(f / temperature)
    entropy: Vector = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return entropy


def binned(values: Vector, edges: ArrayLike) -> NDArray[np.intp]:
    """[n] index of each value's bin; a bin holds its lower edge."""
    return np.searchsorted(np.asarray(edges), values, side="right")


def _energy(f: Vector) -> Vector:
    peak = f.max(axis=1)
    energy: Vector = peak + np.log(np.exp(f - peak[:, None]).sum(axis=1))
    return energy


def _smoothed(means: Vector, totals: Vector) -> Vector:
    """Return means [C, m], each drawn towards the mean over the classes. totals: [C] the rows
    behind each.
    """
    pooled = means[totals > 0].mean(axis=0)
    found: Vector = (totals[:, None] * means + _PSEUDO_ROWS * pooled) / (totals + _PSEUDO_ROWS)[
        :, None
    ]
    return found


def _unsmoothed(means: Vector, totals: Vector) -> Vector:
    """The means [C, m] that `_smoothed` was given, except those of classes without rows.

    With k pseudo-rows it gave h = (n x + k p) / (n + k), where p is the mean of x over the classes
    that have rows. So x = ((n + k) h - k p) / n, and p = mean((n + k) h / n) / (1 + k mean(1 / n)).
    """
    seen = totals > 0
    if not seen.any():
        return means
    rows, sums = totals[seen, None], (totals[seen, None] + _PSEUDO_ROWS) * means[seen]
    pooled = (sums / rows).mean(axis=0) / (1 + _PSEUDO_ROWS * (1 / rows).mean())
    found = means.copy()
    found[seen] = (sums - _PSEUDO_ROWS * pooled) / rows
    return found
