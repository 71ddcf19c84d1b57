"""What is tuned on the validation split: the temperature, a bias per class, and tau. NumPy from logits on.

None of these functions is given the test split.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize

from service.contract.adjustment import (
    Vector,
    adjust_logits,
    log_softmax,
    softmax,
)
from service.contract.adjustment import log_target_prior as log_target_prior_of
from service.contract.scores import Interval, bootstrap_rng, class_totals, percentile_interval
from training.faults import BadData

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MIN_EXAMPLES_PER_CLASS = 20
"""Of the validation split, for a bias per class: below it the bias is noise (its error is about 1 / sqrt(n_y))."""
TAU_GRID = tuple(round(0.1 * step, 1) for step in range(41))


class CalibrationRefused(BadData):
    """The validation split cannot carry what was asked to be fitted to it; the message says why."""


def log_validation_prior_of(labels: NDArray[np.integer], num_classes: int) -> Vector:
    """The log of pi_val [C] of a validation split: the log of its class frequencies, LOG_ZERO for absent classes."""
    return log_target_prior_of(class_totals(labels, num_classes))


def fit_temperature(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    log_validation_prior: ArrayLike,
) -> float:
    """The T that minimises the mean NLL of softmax(f / T + log pi_val - log sigma), within 0.05 … 20.

    logits [n, C]. softmax(f / T) can only be scored against labels that follow the source prior sigma; the two
    priors turn it into a posterior under the split's own class mix. In a = 1 / T the NLL is convex, so its
    derivative, mean(E_p[f] - f_y), has one zero.
    """
    f = np.asarray(logits, np.float64)
    f = f - f.max(axis=1, keepdims=True)
    offset = np.asarray(log_validation_prior) - np.asarray(log_source_prior)
    own = f[np.arange(len(f)), labels].mean()

    def slope(inverse: float) -> float:
        return float(np.einsum("nc,nc->n", softmax(f * inverse + offset), f).mean() - own)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return float(1 / brentq(slope, low, high, xtol=1e-6))


def fit_divided_share(
    logits: ArrayLike, labels: NDArray[np.integer], *, log_label_frequencies: ArrayLike
) -> float:
    """The loss_tau in 0 … 1 under which these validation logits [n, C] are likeliest, with a temperature of their own.

    For a classifier whose source prior no rule gives: the share s of the label frequencies pi that it has divided out,
    by the NLL of softmax(f / T + log pi_val - (1 - s) log pi), which is convex in (1 / T, s).
    """
    f = np.asarray(logits, np.float64)
    f = f - f.max(axis=1, keepdims=True)
    log_pi = np.asarray(log_label_frequencies, np.float64)
    offset = log_validation_prior_of(labels, f.shape[1]) - log_pi
    rows = np.arange(len(f))
    own = np.array([f[rows, labels].mean(), log_pi[labels].mean()])

    def nll(parameters: Vector) -> tuple[float, Vector]:
        log_p = log_softmax(f * parameters[0] + offset + parameters[1] * log_pi)
        p = np.exp(log_p)
        expected = np.array([np.einsum("nc,nc->n", p, f).mean(), (p @ log_pi).mean()])
        return float(-log_p[rows, labels].mean()), expected - own

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), (0.0, 1.0)]
    result = minimize(nll, np.array([1.0, 0.5]), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(result.x[1])


@dataclass(frozen=True)
class BiasCorrected:
    """Temperature with a bias per class: calibrated logits are f / temperature + bias (BCTS)."""

    temperature: float
    bias: Vector
    """[C], mean 0."""

    def logits(self, logits: ArrayLike) -> Vector:
        """Calibrated logits [n, C]: a posterior under the source prior, as the model's own are."""
        calibrated: Vector = np.asarray(logits, np.float64) / self.temperature + self.bias
        return calibrated


def fit_bcts(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    log_validation_prior: ArrayLike,
) -> BiasCorrected:
    """Bias-corrected temperature scaling (Alexandari et al., ICML 2020), by the NLL that fit_temperature uses.

    Convex in (1 / T, bias). Raises CalibrationRefused when a class has fewer than MIN_EXAMPLES_PER_CLASS examples
    in the split, or when the fit does not converge.
    """
    f = np.asarray(logits, np.float64)
    f = f - f.max(axis=1, keepdims=True)
    n, num_classes = f.shape
    _refuse_small(labels, num_classes)
    offset = np.asarray(log_validation_prior) - np.asarray(log_source_prior)
    rows = np.arange(n)
    shares = class_totals(labels, num_classes) / n
    own = f[rows, labels].mean()

    def nll(parameters: Vector) -> tuple[float, Vector]:
        log_p = log_softmax(f * parameters[0] + parameters[1:] + offset)
        p = np.exp(log_p)
        gradient = np.concatenate([[np.einsum("nc,nc->n", p, f).mean() - own], p.mean(0) - shares])
        return float(-log_p[rows, labels].mean()), gradient

    start = np.zeros(num_classes + 1)
    start[0] = 1 / fit_temperature(
        f, labels, log_source_prior=log_source_prior, log_validation_prior=log_validation_prior
    )
    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(None, None)] * num_classes]
    result = minimize(nll, start, jac=True, method="L-BFGS-B", bounds=bounds)
    if not result.success:
        raise CalibrationRefused(f"temperature with a bias per class: {result.message}")
    bias = result.x[1:]
    return BiasCorrected(float(1 / result.x[0]), bias - bias.mean())


def _refuse_small(labels: NDArray[np.integer], num_classes: int) -> None:
    totals = class_totals(labels, num_classes)
    short = np.flatnonzero(totals < MIN_EXAMPLES_PER_CLASS)
    if len(short):
        fewest = int(short[totals[short].argmin()])
        raise CalibrationRefused(
            f"a bias per class needs {MIN_EXAMPLES_PER_CLASS} validation examples of each class; "
            f"{len(short)} of {num_classes} classes have fewer (class {fewest}: {totals[fewest]:g})"
        )


@dataclass(frozen=True)
class TauChoice:
    """The tau with the lowest validation error, and how sure that is."""

    chosen: float
    curve: tuple[tuple[float, float], ...]
    """(tau, error) over the grid: the balanced error for a uniform target."""
    interval: Interval
    """95 % bootstrap interval of the choice itself, examples drawn within their class."""
    bands: tuple[Interval, ...]
    """95 % bootstrap interval of the error at each tau of the curve."""
    n: int
    """Validation examples."""


def choose_tau(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperature: float = 1.0,
    log_target_prior: ArrayLike | None = None,
    grid: tuple[float, ...] = TAU_GRID,
    resamples: int = 200,
    seed: int = 0,
) -> TauChoice:
    """Choose tau on a validation split by the error under the target prior, uniform by default.

    logits [n, C]. The error is the mean over classes of the error within the class, weighted by the target: with
    a uniform target that is the balanced error, which a long-tailed split gives too, only less surely (the
    interval shows how much). Classes absent from the split have no say. Of equal minima the one nearest 1 is taken.
    """
    f = np.asarray(logits, np.float64)
    num_classes = f.shape[1]
    target = np.zeros(num_classes) if log_target_prior is None else np.asarray(log_target_prior)
    totals = class_totals(labels, num_classes)
    present = totals > 0
    share = np.where(present, np.exp(target - target.max()), 0.0)
    share /= share.sum()
    wrong = np.empty((len(grid), len(f)))
    for row, tau in enumerate(grid):
        adjusted = adjust_logits(
            f,
            log_source_prior=log_source_prior,
            log_target_prior=target,
            tau=tau,
            temperature=temperature,
        )
        wrong[row] = adjusted.argmax(axis=1) != labels
    curve = wrong @ (share / np.maximum(totals, 1))[labels]
    resampled = _resampled_curves(wrong, labels, share, resamples=resamples, seed=seed)
    choices = np.array([_lowest(one, grid) for one in resampled])
    return TauChoice(
        chosen=_lowest(curve, grid),
        curve=tuple(zip(grid, curve.tolist(), strict=True)),
        interval=percentile_interval(choices),
        bands=tuple(percentile_interval(column) for column in resampled.T),
        n=len(f),
    )


def _resampled_curves(
    wrong: Vector, labels: NDArray[np.integer], share: Vector, *, resamples: int, seed: int
) -> Vector:
    """[resamples, G] curves, drawing the examples of each class with replacement; the same draw for every tau."""
    rng = bootstrap_rng(seed)
    curves = np.zeros((resamples, len(wrong)))
    for label in np.flatnonzero(share):
        own = np.flatnonzero(labels == label)
        draws = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
        curves += (share[label] / len(own)) * (draws @ wrong[:, own].T)
    return curves


def _lowest(curve: Vector, grid: tuple[float, ...]) -> float:
    """The tau of the lowest error; of equals (to rounding), the one nearest 1."""
    tied = [tau for tau, value in zip(grid, curve, strict=True) if value <= curve.min() + 1e-12]
    return min(tied, key=lambda tau: abs(tau - 1))
