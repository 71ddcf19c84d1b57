"""The class prior of unlabelled data, from a classifier's posteriors: expectation maximisation, with intervals.

Saerens, Latinne and Decaestecker, *Adjusting the outputs of a classifier to new a priori probabilities* (2002):
rho <- mean over examples of normalise(p(.|x) * rho / sigma), from rho = sigma. It climbs the likelihood of the
unlabelled data, which is concave in rho; it is as right as the posteriors are calibrated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from service.contract.adjustment import Vector
from service.contract.scores import bootstrap_rng

TOLERANCE = 1e-6
MAX_ITERATIONS = 2000
_CHUNK_CELLS = 4_000_000  # of [n, resamples]: 32 MB


class NotConverged(ValueError):
    """Expectation maximisation was still moving after MAX_ITERATIONS."""


@dataclass(frozen=True)
class PriorEstimate:
    """An estimated class prior; a candidate, to be judged by its interval."""

    prior: Vector
    """[C], sums to 1."""
    low: Vector
    """[C] lower ends of 95 % bootstrap intervals, class by class."""
    high: Vector
    """[C] upper ends."""
    n: int
    """Unlabelled examples."""
    effective_n: float
    """The number of *labelled* examples whose class frequencies would be as sure:
    sum of rho (1 - rho) over the sum of the bootstrap variances, at most n."""


def em_prior(posteriors: ArrayLike, *, source_prior: ArrayLike) -> Vector:
    """The prior [C] that makes the unlabelled examples likeliest.

    posteriors: [n, C], rows sum to 1, posteriors under source_prior [C] > 0. Raises NotConverged.
    """
    p = np.asarray(posteriors, np.float64)
    source = np.asarray(source_prior, np.float64)[:, None]
    return _climb(p, source, np.full((len(p), 1), 1 / len(p)))[:, 0]


def estimate_prior(
    posteriors: ArrayLike, *, source_prior: ArrayLike, resamples: int = 200, seed: int = 0
) -> PriorEstimate:
    """em_prior with intervals from drawing the unlabelled examples again. Raises NotConverged."""
    p = np.asarray(posteriors, np.float64)
    source = np.asarray(source_prior, np.float64)[:, None]
    draws = [_climb(p, source, weights) for weights in bootstrap_weights(len(p), resamples, seed)]
    prior = em_prior(p, source_prior=source_prior)
    return with_intervals(prior, np.concatenate(draws, axis=1).T, n=len(p))


def with_intervals(prior: Vector, resampled: Vector, *, n: int) -> PriorEstimate:
    """The estimate of a prior [C] and of its resamples [resamples, C]."""
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    variance = float(resampled.var(axis=0, ddof=1).sum())
    spread = float((prior * (1 - prior)).sum())
    effective = n if spread >= n * variance else spread / variance
    return PriorEstimate(prior, low, high, n, float(effective))


def bootstrap_weights(n: int, resamples: int, seed: int) -> Iterator[Vector]:
    """Weights [n, some], columns summing to 1, of `resamples` draws of n examples with replacement."""
    rng = bootstrap_rng(seed)
    step = max(1, _CHUNK_CELLS // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=size).T / n


def _climb(posteriors: Vector, source: Vector, weights: Vector) -> Vector:
    """[C, R] priors for weights [n, R] of the examples; source is [C, 1] or [C, R]."""
    prior: Vector = np.repeat(source / source.sum(axis=0), weights.shape[1] // source.shape[1], 1)
    for _ in range(MAX_ITERATIONS):
        ratio = prior / source
        mixed = posteriors @ ratio
        moved: Vector = ratio * (posteriors.T @ (weights / mixed))
        change = np.abs(moved - prior).max()
        prior = moved
        if change < TOLERANCE:
            settled: Vector = prior / prior.sum(axis=0)
            return settled
    raise NotConverged(
        f"the estimate still moved by {change:.1e} after {MAX_ITERATIONS} iterations; "
        "the posteriors hardly tell the classes apart"
    )
