"""Whether any mix of the known classes looks like the rows: a chi-square test of the sketch."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.shift.estimation import Estimation
from service.contract.shift.label_shift import PriorEstimate, summed_by

_SMALLEST_EIGENVALUE = 1e-10  # of the largest: below, rounding decides
_SMALLEST_VARIANCE = 1e-6  # with less, rows do not differ but for rounding
_PSEUDO_ROWS = 4  # as in the sketch's means
ROWS_PER_FEATURE = 30
"""Fewest observations per feature of a sketch's later parts. With fewer, their covariance is too
uncertain for so many features at once.
"""


@dataclass(frozen=True)
class Misfit:
    """How well label shift explains the rows: a chi-square test of the sketch.

    `p` is its tail probability; `phi2` the misfit per row, which does not grow with the rows.
    """

    p: float
    phi2: float


def misfit_of(
    logits: Vector,
    estimate: PriorEstimate,
    calibration: Estimation,
    *,
    temperature: float,
    ratios: Vector,
    inputs: NDArray[np.integer] | None = None,
) -> Misfit | None:
    """Test whether the sketched classes, mixed by the estimate, explain the rows [n, C].

    ratios: [n, C] `likelihood_ratios` of the rows. inputs: [n] which input each row is of, where
    an input can come again. Returns None where the model has no sketch, or the estimate no
    covariance matrix.

    The mean feature of the rows is compared with that of the mix. Their difference has three
    sources of chance: the rows, which move the mean and the estimate together (each row by its
    influence on both); the split, whose class means are those of so many rows; and the estimate's
    own error from the calibration. Each of the sketch's parts for which there are enough rows is
    tested. The smallest probability counts, times the number of parts. Where rows that come again
    cannot be told from others, only the first part is: many features take few inputs for a change.
    """
    sketch = calibration.sketch
    if sketch is None or estimate.covariance.ndim == 1:
        return None
    prior, means = estimate.prior, sketch.class_means()
    features = sketch.features(logits, temperature=temperature)
    expected = prior @ means
    moved = (features - expected) / len(features)
    mixed = ratios @ prior
    if estimate.inverse_information is None:
        doubt = estimate.covariance
    else:
        doubt = np.asarray(estimate.calibration_covariance)
        moved -= (ratios / mixed[:, None]) @ (estimate.inverse_information @ means)
    if inputs is not None:
        moved = summed_by(moved, inputs)
    members = prior**2 / (np.asarray(calibration.validation.class_counts) + _PSEUDO_ROWS)
    spread = moved.T @ moved + _within_classes(features, ratios * prior / mixed[:, None], members)
    unseen = sketch.least_variance(expected) - features.var(axis=0)
    spread[np.diag_indices_from(spread)] += np.maximum(unseen, 0.0) / len(features)
    if doubt.ndim == 2:
        spread += means.T @ doubt @ means
    apart = features.mean(axis=0) - expected
    first, *more = sketch.parts()
    parts = [first]
    if calibration.validation.tells_rows_apart:
        parts += [part for part in more if ROWS_PER_FEATURE * len(part) <= len(moved)]
    tests = [_tested(apart[part], spread[np.ix_(part, part)], len(moved)) for part in parts]
    p, excess = min(tests, key=lambda test: (test[0], -test[1]))
    return Misfit(p=min(1.0, len(tests) * p), phi2=max(0.0, excess) / len(features))


def _tested(apart: Vector, spread: Vector, n: int) -> tuple[float, float]:
    """Probability of so large a difference [m] by chance, and its statistic less its mean.

    spread: [m, m] covariance of the difference. n: the observations that it was measured on.
    """
    values, vectors = np.linalg.eigh(spread)
    kept = values > _SMALLEST_EIGENVALUE * max(float(values[-1]), _SMALLEST_VARIANCE)
    degrees = int(kept.sum())
    if degrees == 0:
        return 1.0, 0.0
    along = apart @ vectors[:, kept]
    # few rows understate their own spread; this is close to Hotelling's correction
    statistic = float((along**2 / values[kept]).sum()) * max(0.0, 1 - degrees / n)
    return chi_square_tail(statistic, degrees), statistic - degrees


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability that chi-square with so many degrees of freedom, at least 1, exceeds a number."""
    half = statistic / 2
    if degrees % 2 == 0:
        term = total = 1.0
        for order in range(2, degrees, 2):
            term *= statistic / order
            total += term
        return min(1.0, math.exp(-half) * total)
    term, total = math.sqrt(statistic), 0.0
    for order in range(1, degrees - 1, 2):
        total += term
        term *= statistic / (order + 2)
    tail = math.erfc(math.sqrt(half)) + math.sqrt(2 / math.pi) * math.exp(-half) * total
    return min(1.0, tail)


def _within_classes(features: Vector, posteriors: Vector, weights: Vector) -> Vector:
    """[m, m] sum over the classes of weight [C] times the covariance of a class's features.

    features: [n, m]; posteriors: [n, C], by which the rows count for the classes.
    """
    shares = posteriors / np.maximum(posteriors.sum(axis=0), 1e-300)
    means = shares.T @ features
    found: Vector = (features * (shares @ weights)[:, None]).T @ features
    found -= (means * weights[:, None]).T @ means
    return found
