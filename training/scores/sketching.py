"""Describes a labelled split for the `estimation` block: how its rows look, and how many there are.

service.contract.shift.misfit compares both with traffic, to test whether a mix explains it.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.scores import class_totals
from service.contract.shift.estimation import ValidationRows
from service.contract.shift.label_shift import inputs_of
from service.contract.shift.sketch import (
    ENERGY_BINS,
    Moments,
    Sketch,
    binned,
    class_means_of,
    features_of,
    numbers_of,
    sketched,
)

Labels: TypeAlias = NDArray[np.integer]

MAX_DIRECTIONS = 10
"""With more classes than this, rows are not measured along directions of the logits."""
_NARROWEST = 1e-3  # of the widest direction: below, other batches and machines differ as much
_ROUNDING = 1e-9  # numbers that spread less, relative to their size, are the same number


def sketch(
    logits: Vector, labels: Labels, *, temperature: float, probabilities: bool = False
) -> Sketch | Moments | None:
    """Return how the rows of each class look on average: moments of a few numbers of the logits.

    logits: [n, C]. For probabilities, histograms of the entropy, whose edges are deciles in which
    every class has equal weight. Returns None when all rows look the same.
    """
    if probabilities:
        return _entropies(logits, labels, temperature=temperature)
    directions = [rounded(each, digits=6) for each in _directions(logits, labels)]
    numbers = numbers_of(logits, directions=directions)
    scale = numbers.std(axis=0)
    differs = scale > _ROUNDING * (1 + np.abs(numbers).max(axis=0))
    if not differs.any():
        return None
    centre = rounded(numbers.mean(axis=0))
    units = rounded(np.where(differs, scale, 1.0))
    features = features_of(numbers, centre=centre, scale=units)
    means = class_means_of(features, labels, logits.shape[1])
    return Moments(
        directions=directions,
        centre=centre,
        scale=units,
        means=[rounded(row, digits=6) for row in means],
    )


def _directions(logits: Vector, labels: Labels) -> Vector:
    """Return [D, C] the principal axes of the logits within a class, over all classes.

    Along the narrow ones a small change of the inputs stands out, while the energy, spread and
    rest of a linear network hardly show it. There are none with over MAX_DIRECTIONS classes: their
    many means would be too uncertain.
    """
    rows, classes = logits.shape
    if classes > MAX_DIRECTIONS or rows <= 2 * classes:
        return np.empty((0, classes))
    totals = class_totals(labels, classes)
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, logits)
    within = logits - (sums / np.maximum(totals, 1)[:, None])[labels]
    values, vectors = np.linalg.eigh(within.T @ within)
    axes = vectors.T[values > _NARROWEST**2 * max(float(values[-1]), 1e-300)]
    largest = np.abs(axes).argmax(axis=1)
    found: Vector = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    return found


def _entropies(logits: Vector, labels: Labels, *, temperature: float) -> Sketch | None:
    """Return one histogram per class; None when two edges coincide."""
    values = sketched(logits, statistic="entropy", temperature=temperature)
    totals = class_totals(labels, logits.shape[1])
    order = np.argsort(values, kind="stable")
    mass = np.cumsum((1 / totals[labels])[order])
    cuts = np.searchsorted(mass, mass[-1] * np.arange(1, ENERGY_BINS) / ENERGY_BINS)
    edges = np.array(rounded(values[order][cuts]))
    if (np.diff(edges) <= 0).any():
        return None
    cells = labels * ENERGY_BINS + binned(values, edges)
    counts = np.bincount(cells, minlength=len(totals) * ENERGY_BINS)
    return Sketch(
        statistic="entropy",
        edges=edges.tolist(),
        counts=counts.reshape(len(totals), ENERGY_BINS).tolist(),
    )


def validation_rows(f: Vector, labels: Labels) -> ValidationRows:
    """Count the rows [n, C] of each class, and the rows whose logits an earlier row has, too."""
    counts = class_totals(labels, f.shape[1]).astype(int).tolist()
    inputs = inputs_of(f)
    repeated = 0 if inputs is None else len(f) - int(inputs.max()) - 1
    return ValidationRows(rows=len(f), class_counts=counts, repeated=repeated)


def rounded(values: Vector, *, digits: int = 9) -> list[float]:
    """Round to so many digits that a block does not depend on the machine that computed it."""
    return [float(f"{value:.{digits}g}") for value in values]
