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
ROWS_PER_FEATURE = 30
"""Fewest observations per feature of a sketch's later parts. With fewer, their covariance is too
uncertain for so many features at once.
"""


@dataclass(frozen=True)
class Misfit:
    """How well label shift explains the rows: a chi-square test of the sketch.

    `p` is its tail probability; `phi2` the misfit per row, which does not grow with the rows.
    `rows` is how much the test can see: as much as one of this many different rows, if the class
    means and the calibration were known exactly.
    """

    p: float
    phi2: float
    rows: float


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
    inputs may be repeated. Returns None where the model has no sketch, or the estimate no
    covariance matrix.

    The mean feature of the n rows is compared with that of the mix, d = mean x - q^T h, where h
    are the class means of the split. The chance in d has three sources: the rows, which move the
    mean and the estimate q together (each row by its influence on both); the split; and the
    estimate's own error from the calibration, D. Their covariances add up to

        S = sum_i psi_i psi_i^T + sum_y q_y^2 W_y / m_y + h^T D h
        psi_i = (x_i - q^T h) / n - h^T J l_i

    with l_i the gradient of a row's log likelihood and J the inverse of the information. The second
    term is the variance of a stratified mean (Cochran, Sampling Techniques, 1977, ch. 5): class y
    has m_y rows in the split, with the covariance W_y, which is that of the stream's rows by their
    posteriors. So h must be means of those rows alone. Means that are drawn towards a common one
    err less, but classes with few rows then err together, and no variance by class covers that.
    Classes without rows get the mean over the others, and count as one row of another class.

    Each of the sketch's parts for which there are enough rows is tested. The smallest probability
    counts, times the number of parts. If repeated inputs cannot be recognised, only the first part
    is tested: with many features, a few repeated inputs look like a change.
    """
    sketch = calibration.sketch
    if sketch is None or estimate.covariance.ndim == 1:
        return None
    counts = np.asarray(calibration.validation.class_counts, np.float64)
    prior, means = estimate.prior, sketch.class_means(counts)
    features = sketch.features(logits, temperature=temperature)
    observations = len(features) if inputs is None else len(np.unique(inputs))
    first, *more = sketch.parts()
    parts = [first]
    if calibration.validation.tells_rows_apart:
        parts += [part for part in more if ROWS_PER_FEATURE * len(part) <= observations]
    tested = np.unique(np.concatenate(parts))
    means, features = (np.ascontiguousarray(each[:, tested]) for each in (means, features))
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
    by_rows = moved.T @ moved
    posteriors = ratios * prior / mixed[:, None]
    by_split = _of_split(features, posteriors, prior=prior, means=means, counts=counts)
    spread = by_rows + by_split
    unseen = sketch.least_variance(expected) - features.var(axis=0)
    spread[np.diag_indices_from(spread)] += np.maximum(unseen, 0.0) / len(features)
    if doubt.ndim == 2:
        spread += means.T @ doubt @ means
    apart = features.mean(axis=0) - expected
    weights = _split_weights(prior, counts)
    alone = float((weights**2 / np.maximum(counts, 1)).sum() / weights.sum() ** 2)
    tests = []
    for part in parts:
        at = np.searchsorted(tested, part)
        chance = [each[np.ix_(at, at)] for each in (spread, by_rows, by_split)]
        tests.append(_tested(apart[at], *chance, observations=observations, alone=alone))
    p, excess, rows = min(tests, key=lambda test: (test[0], -test[1]))
    return Misfit(p=min(1.0, len(tests) * p), phi2=max(0.0, excess) / len(features), rows=rows)


def _tested(
    apart: Vector,
    spread: Vector,
    by_rows: Vector,
    by_split: Vector,
    *,
    observations: int,
    alone: float,
) -> tuple[float, float, float]:
    """Return (probability of so large a difference [m] by chance, statistic minus its mean, rows).

    spread: [m, m] covariance of the difference. by_rows, by_split: [m, m] the shares that the rows
    and the split have in it. observations: how many rows there are. alone: one over the rows of the
    split that its share rests on. rows: observations times tr(by_rows spread^-1) / m. In a
    direction drawn at random, a change adds so much less to the statistic than if rows alone erred.
    """
    values, vectors = np.linalg.eigh(spread)
    kept = values > _SMALLEST_EIGENVALUE * max(float(values[-1]), _SMALLEST_VARIANCE)
    degrees = int(kept.sum())
    if degrees == 0:
        return 1.0, 0.0, 0.0
    axes = vectors[:, kept]
    ours, splits = (
        float((np.einsum("ik,ij,jk->k", axes, some, axes) / values[kept]).mean())
        for some in (by_rows, by_split)
    )
    rows = observations * ours
    # Welch and Satterthwaite count the rows behind a sum of variances as if each variance came from
    # its own few rows. Those of the split come from the stream, so the larger count is taken.
    welch = 1 / max(ours**2 / observations + splits**2 * alone, 1 / observations)
    # what few rows decide strays farther than chi-square; this is close to Hotelling's correction
    share = max(0.0, 1 - degrees / max(welch, rows))
    statistic = float(((apart @ axes) ** 2 / values[kept]).sum()) * share
    return chi_square_tail(statistic, degrees), statistic - degrees, rows


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability that chi-square with `degrees` degrees of freedom, at least 1, exceeds
    `statistic`.
    """
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


def _of_split(
    features: Vector, posteriors: Vector, *, prior: Vector, means: Vector, counts: Vector
) -> Vector:
    """[m, m] covariance of prior @ means, where each of the means [C, m] is of `counts` [C] rows.

    features: [n, m] of the stream; posteriors: [n, C], by which its rows count for the classes.
    """
    seen = counts > 0
    found = _within_classes(features, posteriors, _split_weights(prior, counts))
    if not seen.all():
        apart = means[seen] - means[seen].mean(axis=0)
        found += prior[~seen].sum() ** 2 * (apart.T @ apart) / max(1, len(apart) - 1)
    return found


def _split_weights(prior: Vector, counts: Vector) -> Vector:
    """[C] weight of each class's covariance in the covariance of the mix's mean.

    A class without rows counts as if it had one.
    """
    found: Vector = prior**2 / np.maximum(counts, 1)
    return found


def _within_classes(features: Vector, posteriors: Vector, weights: Vector) -> Vector:
    """[m, m] sum over the classes of weight [C] times the covariance of a class's features.

    features: [n, m]; posteriors: [n, C], by which the rows count for the classes.
    """
    shares = posteriors / np.maximum(posteriors.sum(axis=0), 1e-300)
    means = shares.T @ features
    found: Vector = (features * (shares @ weights)[:, None]).T @ features
    found -= (means * weights[:, None]).T @ means
    return found
