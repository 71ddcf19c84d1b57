"""The class prior of unlabelled data, from a classifier's logits: expectation maximisation.

Saerens, Latinne and Decaestecker, *Adjusting the outputs of a classifier to new a priori
probabilities* (2002): rho <- mean over examples of normalise(p(.|x) * rho / sigma). It climbs
the likelihood of the unlabelled data, which is concave in rho. The result is only as accurate as
the posteriors are calibrated. Intervals come from the observed information of that likelihood, and
from the replicates of the calibration in the `estimation` block of a model.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from service.contract.adjustment import Vector
from service.contract.scores import Z_95
from service.contract.shift.estimation import Replicates

TOLERANCE = 1e-7
MAX_ITERATIONS = 2000
MAX_CLASSES_WITH_COVARIANCE = 2000
"""With more classes their variances are estimated one by one, as if independent."""
MAX_CONDITION = 100.0
_REPLICATE_SPREAD = (2.093 / Z_95) ** 2
"""For a variance from 20 replicates: t with 19 degrees of freedom."""
SAME_LOGITS = 1e-4
"""Rows whose logits differ by less, in units of their standard deviation, are of one input."""
_CHUNK_CELLS = 4_000_000  # of [n, C]: 32 MB of float64 at a time


class NotConverged(ValueError):
    """Expectation maximisation was still moving after MAX_ITERATIONS."""


@dataclass(frozen=True)
class PriorEstimate:
    """An estimated class prior, to be judged by its intervals before it is used."""

    prior: Vector
    """[C], sums to 1."""
    low: Vector
    """[C] lower ends of 95 % intervals, class by class."""
    high: Vector
    """[C] upper ends."""
    n: int
    """Unlabelled examples."""
    effective_n: float
    """The number of *labelled* examples that would give the same certainty:
    sum of rho (1 - rho) over the sum of the variances, at most n."""
    covariance: Vector
    """[C, C] of the estimate; with over MAX_CLASSES_WITH_COVARIANCE classes, [C] variances only."""
    calibration_covariance: Vector | float = 0.0
    """The share of `covariance` that the calibration causes; 0 where it is unknown."""
    inverse_information: Vector | None = None
    """[C, C] what moves the estimate per unit of the rows' likelihood gradient. None where the
    estimate was not made from rows, or has no covariance matrix."""

    @property
    def calibration_variance(self) -> Vector | float:
        """[C] the share of the variances that the calibration causes; 0 where it is unknown."""
        added = self.calibration_covariance
        return added if isinstance(added, float) or added.ndim == 1 else added.diagonal()


def em_prior(posteriors: ArrayLike, *, source_prior: ArrayLike) -> Vector:
    """The prior [C] that makes the unlabelled examples likeliest.

    posteriors: [n, C], rows sum to 1, posteriors under source_prior [C] > 0. Raises NotConverged.
    """
    source = np.asarray(source_prior, np.float64)
    source = source / source.sum()
    return climb(np.asarray(posteriors, np.float64) / source, start=source)


def likelihood_ratios(
    logits: ArrayLike,
    *,
    temperature: float,
    log_source: ArrayLike,
    dtype: DTypeLike = np.float64,
) -> NDArray[Any]:
    """[n, C] p(x | y) of each row up to a factor per row, the largest of a row being 1."""
    scores: NDArray[Any] = np.asarray(logits, dtype) / np.asarray(temperature, dtype)
    scores -= np.asarray(log_source, dtype)
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    return scores


def climb(
    ratios: Vector, *, start: Vector, toward: Vector | None = None, strength: float = 0.0
) -> Vector:
    """The prior [C] that makes the rows likeliest, from their likelihood ratios [n, C].

    start: [C] > 0 where a class may have mass. `toward` [C] adds `strength` pseudo-rows with that
    class mix to the real rows, which gives the mode of the posterior under a Dirichlet prior.
    Every third step extrapolates (SQUAREM; Varadhan and Roland 2008), and is undone where it
    lowers the likelihood. Raises NotConverged.
    """
    extra = np.zeros_like(start) if toward is None else strength * toward
    total = len(ratios) + extra.sum()
    counted = extra > 0

    def step(prior: Vector) -> tuple[Vector, float]:
        mixed = ratios @ prior
        moved: Vector = (prior * (ratios.T @ (1 / mixed)) + extra) / total
        likelihood = float(np.log(mixed).sum() + extra[counted] @ np.log(prior[counted]))
        return moved, likelihood

    prior = start / start.sum()
    for _ in range(MAX_ITERATIONS // 3):
        first, likelihood = step(prior)
        change = float(np.abs(first - prior).max())
        if change < TOLERANCE:
            settled: Vector = first / first.sum()
            return settled
        second, _ = step(first)
        moved, bend = first - prior, second - 2 * first + prior
        length = max(1.0, float(np.linalg.norm(moved)) / max(float(np.linalg.norm(bend)), 1e-300))
        leap = prior + 2 * length * moved + length**2 * bend
        prior = second
        if (leap >= 0).all() and (leap[second > 0] > 0).all():
            landed, reached = step(leap)
            prior = landed if reached >= likelihood else second
    raise NotConverged(
        f"the estimate still moved by {change:.1e} after {MAX_ITERATIONS} iterations; "
        "the posteriors hardly separate the classes; use more rows or a better model"
    )


def estimate_prior(
    logits: ArrayLike,
    *,
    temperature: float,
    log_source: ArrayLike,
    replicates: Replicates | None = None,
    inputs: NDArray[np.integer] | None = None,
) -> PriorEstimate:
    """The likeliest prior of rows of logits [n, C], n > 0, with intervals. Raises NotConverged.

    temperature and log_source [C] are the calibration; `replicates` give its uncertainty. The
    intervals cover two sources of error: the sampling of the rows, from the observed information,
    and the calibration, from one Newton step toward the estimate of each replicate.
    inputs: [n] which input each row is of (`inputs_of`), where inputs may be repeated: rows of one
    input err together. None when every row is an input of its own.
    """
    f, source = np.asarray(logits, np.float64), np.asarray(log_source, np.float64)
    ratios = likelihood_ratios(f, temperature=temperature, log_source=source)
    prior = climb(ratios, start=np.exp(source - source.max()))
    relative = ratios / (ratios @ prior)[:, None]
    if len(prior) > MAX_CLASSES_WITH_COVARIANCE:
        variances = 1 / np.maximum((relative**2).sum(axis=0), 1e-300)
        return with_intervals(prior, np.minimum(variances, 0.25), n=len(f))
    information = relative.T @ relative
    inverse = inverse_of(information, prior)
    covariance, added = inverse, np.zeros_like(inverse)
    if inputs is not None:
        again = summed_by(relative, inputs)
        covariance = inverse + inverse @ (again.T @ again - information) @ inverse
    if replicates is not None:
        own = relative.sum(axis=0)
        moves = np.stack([inverse @ (score - own) for score in _scores(f, prior, replicates)])
        added = _REPLICATE_SPREAD * (moves.T @ moves) / len(moves)
        covariance = covariance + added
    found = with_intervals(prior, covariance, n=len(f))
    return replace(found, calibration_covariance=added, inverse_information=inverse)


def bbse_prior(confusion: ArrayLike, predicted: ArrayLike) -> Vector | None:
    """The prior by black-box shift estimation (Lipton et al., ICML 2018), or None.

    confusion: [predicted, class] rows of a labelled split; predicted: [C] rows of each predicted
    class in the unlabelled data, with the same decisions. Solves rates @ prior = predicted shares,
    leaving out classes that would become negative. None where the rates are ill-conditioned: the
    solution would magnify their errors more than MAX_CONDITION times.
    """
    cells, seen = np.asarray(confusion, np.float64), np.asarray(predicted, np.float64)
    if condition_of(cells) > MAX_CONDITION:
        return None
    rates = cells / cells.sum(axis=0)
    kept = np.arange(len(seen))
    while True:
        solution = np.linalg.lstsq(rates[:, kept], seen / seen.sum(), rcond=None)[0]
        if (solution >= 0).all():
            break
        kept = kept[solution >= 0]
    prior = np.zeros(len(seen))
    prior[kept] = solution / solution.sum()
    return prior


def condition_of(confusion: ArrayLike) -> float:
    """The condition number of the rates of a confusion matrix [predicted, class].

    It bounds how much inverting them magnifies errors. Infinite when a class has no row.
    """
    cells = np.asarray(confusion, np.float64)
    totals = cells.sum(axis=0)
    return float(np.linalg.cond(cells / totals)) if (totals > 0).all() else float("inf")


def no_surer(estimate: PriorEstimate, most: float | None) -> PriorEstimate:
    """The estimate with the sampling variance of `most` labelled rows added; None adds nothing."""
    if most is None:
        return estimate
    return less_sure(estimate, estimate.prior * (1 - estimate.prior) / most)


def less_sure(estimate: PriorEstimate, variances: Vector) -> PriorEstimate:
    """The estimate with variances [C] added, which its calibration causes.

    Between classes they are correlated like the shares of labelled rows: where one class gets too
    much, the others get too little.
    """
    prior, own, added = estimate.prior, estimate.covariance, variances
    if own.ndim == 2:
        odds = np.sqrt(prior / np.maximum(1 - prior, 1e-300))
        sd = np.sqrt(variances)
        added = -np.outer(sd * odds, sd * odds)
        added[np.diag_indices_from(added)] = variances
    wider = with_intervals(prior, own + added, n=estimate.n)
    return replace(
        wider,
        calibration_covariance=estimate.calibration_covariance + added,
        inverse_information=estimate.inverse_information,
    )


def inputs_of(logits: ArrayLike) -> NDArray[np.intp] | None:
    """Return which input each row of logits [n, C] is of, [n]; None when no input is repeated.

    Rows are of the same input where their logits are equal but for rounding: a model answers an
    input a little differently in batches of other sizes.
    """
    f = np.asarray(logits, np.float64)
    mixing = np.cos(np.arange(1.0, f.shape[1] + 1))  # hardly ever equal for rows that differ
    keys = f @ mixing
    order = np.argsort(keys, kind="stable")
    near = SAME_LOGITS * max(float(f.std()), 1e-30)
    same = np.diff(keys[order]) <= near * np.abs(mixing).sum()
    at = np.flatnonzero(same)
    same[at] = (np.abs(f[order[at]] - f[order[at + 1]]) <= near).all(axis=1)
    if not same.any():
        return None
    found = np.empty(len(f), np.intp)
    found[order] = np.concatenate([[0], np.cumsum(~same)])
    return found


def summed_by(rows: Vector, inputs: NDArray[np.integer]) -> Vector:
    """[inputs, m] the sum of the rows [n, m] of each input."""
    order = np.argsort(inputs, kind="stable")
    starts = np.flatnonzero(np.diff(inputs[order], prepend=-1))
    total: Vector = np.add.reduceat(rows[order], starts, axis=0)
    return total


def with_intervals(prior: Vector, covariance: Vector, *, n: int) -> PriorEstimate:
    """The estimate with 95 % intervals of a covariance [C, C], or of variances [C]."""
    variances = covariance if covariance.ndim == 1 else covariance.diagonal()
    half = Z_95 * np.sqrt(variances)
    spread, variance = float((prior * (1 - prior)).sum()), float(variances.sum())
    effective = n if spread >= n * variance else spread / variance
    return PriorEstimate(
        prior,
        np.maximum(prior - half, 0.0),
        np.minimum(prior + half, 1.0),
        n,
        float(effective),
        covariance,
    )


def _scores(logits: Vector, prior: Vector, replicates: Replicates) -> Vector:
    """[R, C] gradients of the log likelihood of the rows at `prior`, under each calibration."""
    sources = np.array([np.asarray(source, np.float64) for source in replicates.log_source])
    total = np.zeros_like(sources)
    rows = max(1, _CHUNK_CELLS // len(prior))
    for start in range(0, len(logits), rows):
        # classes first: where they are few, NumPy finds the largest of each row three times as fast
        some = np.ascontiguousarray(logits[start : start + rows].T)
        for at, (temperature, source) in enumerate(
            zip(replicates.temperature, sources, strict=True)
        ):
            ratios = some / temperature
            ratios -= source[:, None]
            ratios -= ratios.max(axis=0)
            np.exp(ratios, out=ratios)
            total[at] += ratios @ (1 / (prior @ ratios))
    return total


def inverse_of(information: Vector, prior: Vector) -> Vector:
    """[C, C] inverse of the observed information [C, C] among priors that sum to 1.

    The information is the sum over rows of the outer products of their gradients of the log
    likelihood. A small fraction of the information of one multinomial row is added: classes that
    no row distinguishes then get a large variance instead of making the matrix singular.
    """
    information = information.copy()
    information[np.diag_indices_from(information)] += 0.01 / np.maximum(prior, 1e-4)
    inverse = np.linalg.inv(information)
    sums = inverse.sum(axis=1)
    projected: Vector = inverse - np.outer(sums, sums) / sums.sum()
    return projected
