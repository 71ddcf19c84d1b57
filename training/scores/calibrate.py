"""Fits a temperature, a bias per class and tau to validation logits, with NumPy and SciPy only.

None of these functions is given the test split.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize

from service.contract.adjustment import Vector, adjust_logits, log_softmax
from service.contract.adjustment import log_target_prior as log_target_prior_of
from service.contract.scores import (
    Z_95,
    Interval,
    class_totals,
    mean_error_interval,
    paired_standard_errors,
)
from training.faults import BadData

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
LOG_TEMPERATURE_SD = math.log(2)
"""Prior of the temperature: log T ~ N(0, (log 2)^2), so about 2/3 of its mass is in 0.5 … 2."""
WIDE_TEMPERATURE = 3.0
"""An interval of T whose ends differ by more than this factor deserves a warning."""
RIDGE = 4.0
"""Prior precision of each bias, in validation rows: N(0, 1/4)."""
LIKELIHOOD_DROP = Z_95**2 / 2
"""Another T is plausible within this many nats of the likeliest: a likelihood ratio test at 5 %."""
TAU_GRID = tuple(round(0.1 * step, 1) for step in range(41))
TAU_STANDARD_ERRORS = 2.0
"""Tau stays 1 unless another tau's validation error is lower by more standard errors than this."""
BEST_STANDARD_ERRORS = 1.645
"""The interval holds each tau whose error is at most this many standard errors above the lowest."""

_LEAST_INFORMATION = 1e-9
"""With a smaller value, rounding errors of the slope would decide about the score."""


class CalibrationRefused(BadData):
    """The validation split does not support the fit; the message says why."""


def log_validation_prior_of(labels: NDArray[np.integer], num_classes: int) -> Vector:
    """Return the log class frequencies [C] of labels [n]; LOG_ZERO for absent classes."""
    return log_target_prior_of(class_totals(labels, num_classes))


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature with its 95 % interval."""

    value: float
    interval: Interval
    """95 % interval from the rows alone, without the prior, within MIN_TEMPERATURE …
    MAX_TEMPERATURE.
    """
    why_one: str | None = None
    """Why `value` stays 1, as a clause; None if T was fitted."""

    @property
    def is_wide(self) -> bool:
        """Whether the ends of the interval differ by more than WIDE_TEMPERATURE."""
        low, high = self.interval
        return high > WIDE_TEMPERATURE * low


@dataclass(frozen=True)
class SplitLikelihood:
    """The negative log likelihood of a labelled split as a function of 1 / T and a bias per class.

    It scores softmax(f / T + b + log pi_val - log sigma), because softmax(f / T) is a posterior
    under the source prior sigma while the labels follow the split's own prior pi_val.
    """

    logits: Vector
    """[n, C], shifted so that the largest of each row is 0."""
    labels: NDArray[np.integer]
    offset: Vector
    """[C] log pi_val - log sigma."""
    weights: Vector
    """[n]; their sum is the number of rows that the likelihood counts as."""
    own: float
    """Weighted sum of the labels' logits."""
    totals: Vector
    """[C] weighted number of rows of each class."""

    @classmethod
    def of(
        cls,
        logits: ArrayLike,
        labels: NDArray[np.integer],
        *,
        log_source_prior: ArrayLike,
        log_validation_prior: ArrayLike,
        weights: Vector | None = None,
    ) -> Self:
        """Build it from logits [n, C], labels [n] and priors [C]; weights [n] are 1 by default."""
        f = np.asarray(logits, np.float64)
        f = f - f.max(axis=1, keepdims=True)
        w = np.ones(len(f)) if weights is None else weights
        return cls(
            logits=f,
            labels=labels,
            offset=np.asarray(log_validation_prior) - np.asarray(log_source_prior),
            weights=w,
            own=float(w @ f[np.arange(len(f)), labels]),
            totals=class_totals(labels, f.shape[1], w),
        )

    def log_probabilities(self, inverse: float, bias: Vector | float = 0.0) -> Vector:
        """Return [n, C] log probabilities at 1 / T = inverse, with a bias [C]."""
        return log_softmax(self.logits * inverse + bias + self.offset)

    def value(self, inverse: float) -> float:
        """Return the weighted sum over the rows, in nats, at 1 / T = inverse without a bias."""
        own = self.log_probabilities(inverse)[np.arange(len(self.labels)), self.labels]
        return -float(self.weights @ own)

    def slope(self, inverse: float) -> float:
        """Return the derivative of `value` with respect to 1 / T."""
        p = np.exp(self.log_probabilities(inverse))
        return float(self.weights @ np.einsum("nc,nc->n", p, self.logits)) - self.own

    def score(self, inverse: float) -> float:
        """Return `slope` in its own standard deviations, were 1 / T = inverse the truth.

        It is Rao's score statistic (Rao, Mathematical Proceedings of the Cambridge Philosophical
        Society 44, 1948): about standard normal at the true T, and positive above it in 1 / T.
        """
        p = np.exp(self.log_probabilities(inverse))
        mean = np.einsum("nc,nc->n", p, self.logits)
        variance = np.einsum("nc,nc->n", p, self.logits**2) - mean**2
        slope, information = float(self.weights @ mean) - self.own, float(self.weights @ variance)
        return slope / math.sqrt(max(information, _LEAST_INFORMATION))

    def penalised(self, parameters: Vector, ridge: float) -> tuple[float, Vector]:
        """Return (value, gradient [1 + C]) of the likelihood with the priors of T and of the bias.

        parameters: [1 + C], 1 / T and then the bias. ridge: the prior precision of each bias.
        """
        inverse, bias = float(parameters[0]), parameters[1:]
        log_p = self.log_probabilities(inverse, bias)
        p = np.exp(log_p)
        own = log_p[np.arange(len(self.labels)), self.labels]
        height, tilt = _log_prior(inverse)
        value = -float(self.weights @ own) + height + ridge / 2 * float(bias @ bias)
        slope = float(self.weights @ np.einsum("nc,nc->n", p, self.logits)) - self.own + tilt
        return value, np.concatenate([[slope], self.weights @ p - self.totals + ridge * bias])


def _log_prior(inverse: float) -> tuple[float, float]:
    """Return the penalty (log T)^2 / (2 sd^2) at 1 / T = inverse, and its derivative in 1 / T."""
    log_inverse = math.log(inverse)
    variance = LOG_TEMPERATURE_SD**2
    return log_inverse**2 / (2 * variance), log_inverse / (variance * inverse)


def fit_temperature(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    log_validation_prior: ArrayLike,
) -> float:
    """Return the value of `calibrate_temperature` without its interval."""
    return calibrate_temperature(
        logits,
        labels,
        log_source_prior=log_source_prior,
        log_validation_prior=log_validation_prior,
    ).value


def calibrate_temperature(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    log_validation_prior: ArrayLike,
    weights: Vector | None = None,
) -> Temperature:
    """Return the most probable T for logits [n, C], under the prior log T ~ N(0, (log 2)^2).

    labels and weights are [n], the priors [C]. The interval holds each T that a score test does not
    reject: unlike that of the likelihood ratio, it also covers where the rows have few errors.

    T stays 1, with the reason in `why_one`, where the split cannot decide: T = 1 is within
    LIKELIHOOD_DROP of the likeliest T, and so is MIN_TEMPERATURE or MAX_TEMPERATURE. That happens
    without a validation error (the smaller T, the likelier) or with a single class (every T is
    equally likely).
    """
    split = SplitLikelihood.of(
        logits,
        labels,
        log_source_prior=log_source_prior,
        log_validation_prior=log_validation_prior,
        weights=weights,
    )
    least, most = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    best = _zero_of(split.slope, least, most)
    interval = (
        1 / _zero_of(lambda a: split.score(a) - Z_95, best, most),
        1 / _zero_of(lambda a: split.score(a) + Z_95, least, best),
    )
    ceiling = split.value(best) + LIKELIHOOD_DROP
    if split.value(1.0) <= ceiling and min(map(split.value, (least, most))) <= ceiling:
        return Temperature(1.0, interval, why_one=_why_one(split))
    found = _zero_of(lambda a: split.slope(a) + _log_prior(a)[1], least, most)
    return Temperature(1 / found, interval)


def _zero_of(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return the zero of an increasing function in low … high, or the end nearest to its zero."""
    if rising(low) >= 0:
        return low
    if rising(high) <= 0:
        return high
    return float(brentq(rising, low, high, xtol=1e-7))


def _why_one(split: SplitLikelihood) -> str:
    if np.count_nonzero(split.totals) < 2:
        return (
            "the validation rows are all of one class, so no temperature is likelier than another"
        )
    right = split.log_probabilities(1.0).argmax(axis=1) == split.labels
    if right.all():
        return (
            f"none of the {len(right)} validation rows is wrong, so they set no lower limit for it"
        )
    return f"the {len(right)} validation rows fit temperatures from one bound to 1 equally well"


def fit_divided_share(
    logits: ArrayLike, labels: NDArray[np.integer], *, log_label_frequencies: ArrayLike
) -> float:
    """Return the loss_tau in 0 … 1 under which these validation logits [n, C] are likeliest.

    For a classifier whose training does not determine its source prior. The result s is the
    exponent of the label frequencies pi [C] that it has divided out. s and T minimise the NLL of
    softmax(f / T + log pi_val - (1 - s) log pi), which is convex in (1 / T, s).
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
    """A temperature and a bias per class (BCTS): calibrated logits are f / temperature + bias."""

    temperature: float
    bias: Vector
    """[C], mean 0."""

    def logits(self, logits: ArrayLike) -> Vector:
        """Calibrate logits [n, C]. The result is still under the model's source prior."""
        calibrated: Vector = np.asarray(logits, np.float64) / self.temperature + self.bias
        return calibrated


def fit_bcts(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    log_validation_prior: ArrayLike,
    weights: Vector | None = None,
    ridge: float = RIDGE,
) -> BiasCorrected:
    """Bias-corrected temperature scaling (Alexandari et al., ICML 2020), with a ridge on the bias.

    Returns the most probable (1 / T, bias) under the prior of `calibrate_temperature` and
    N(0, 1 / ridge) for each bias, which keeps the bias of a class with few rows small. weights:
    [n], 1 by default. Raises CalibrationRefused when the split lacks a class, or the fit does not
    converge.
    """
    split = SplitLikelihood.of(
        logits,
        labels,
        log_source_prior=log_source_prior,
        log_validation_prior=log_validation_prior,
        weights=weights,
    )
    _refuse_absent(labels, len(split.totals))
    start = np.zeros(len(split.totals) + 1)
    start[0] = 1.0
    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(None, None)] * len(split.totals)]
    options: dict[str, Any] = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-6 * len(labels)}
    result = minimize(
        split.penalised,
        start,
        args=(ridge,),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options=options,
    )
    if not result.success:
        raise CalibrationRefused(
            "the fit of a temperature with a bias per class did not converge "
            f"({result.message}); give more validation rows, or only a temperature"
        )
    bias = result.x[1:]
    return BiasCorrected(float(1 / result.x[0]), bias - bias.mean())


def _refuse_absent(labels: NDArray[np.integer], num_classes: int) -> None:
    absent = np.flatnonzero(class_totals(labels, num_classes) == 0)
    if len(absent):
        raise CalibrationRefused(
            "a bias per class needs a validation row of each class; "
            f"{len(absent)} of {num_classes} classes have none (the first is class {absent[0]}): "
            "hold out rows of them"
        )


@dataclass(frozen=True)
class TauChoice:
    """The tau chosen on the validation split, with its uncertainty."""

    chosen: float
    """1, unless the error of `lowest` is lower by more than TAU_STANDARD_ERRORS standard errors."""
    lowest: float
    """The tau with the lowest validation error; on a tie, the one nearest 1."""
    curve: tuple[tuple[float, float], ...]
    """(tau, error) for each tau of the grid; with a uniform target, the balanced error."""
    interval: Interval
    """The smallest and the largest tau that are not clearly worse than `lowest`. In at least 95 of
    100 splits, the interval contains the classifier's best tau."""
    bands: tuple[Interval, ...]
    """The 95 % interval of the error at each tau of `curve`."""
    n: int
    """The number of validation rows."""


def choose_tau(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperature: float = 1.0,
    log_target_prior: ArrayLike | None = None,
    grid: tuple[float, ...] = TAU_GRID,
) -> TauChoice:
    """Choose tau on a validation split by the error under the target prior, uniform by default.

    logits: [n, C]; labels: [n]; priors: [C] logs. The error is the mean of the errors within each
    class, weighted by the target; with a uniform target that is the balanced error. A long-tailed
    split estimates it too, with a wider interval. Two values of tau are compared by paired
    differences, because both answer the same rows.

    Classes absent from the split do not count in the errors. They are usually rare, and a lower tau
    predicts rare classes less often. So before a tau below 1 is chosen, or a higher one left out of
    the interval, the lower one is charged as if it got every row of the absent classes wrong.
    """
    f = np.asarray(logits, np.float64)
    num_classes = f.shape[1]
    target = np.zeros(num_classes) if log_target_prior is None else np.asarray(log_target_prior)
    totals = class_totals(labels, num_classes)
    wanted = np.exp(target - target.max())
    share = np.where(totals > 0, wanted, 0.0)
    unseen = (
        float(wanted.sum() / share.sum()) - 1
    )  # target mass of the absent classes, relative to the others
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
    lowest = _lowest(curve, grid)
    one = min(range(len(grid)), key=lambda row: abs(grid[row] - 1))
    doubt = paired_standard_errors(wrong - wrong[one], labels, share)
    at_risk = unseen if grid[lowest] < grid[one] else 0.0
    leaves = curve[one] - curve[lowest] - at_risk > TAU_STANDARD_ERRORS * doubt[lowest]
    spread = paired_standard_errors(wrong - wrong[lowest], labels, share)
    owed = np.where(np.asarray(grid) > grid[lowest], unseen, 0.0)
    good = np.flatnonzero(curve - curve[lowest] - owed <= BEST_STANDARD_ERRORS * spread)
    return TauChoice(
        chosen=grid[lowest if leaves else one],
        lowest=grid[lowest],
        curve=tuple(zip(grid, curve.tolist(), strict=True)),
        interval=(grid[good[0]], grid[good[-1]]),
        bands=tuple(_bands(wrong, labels, share)),
        n=len(f),
    )


def _bands(wrong: Vector, labels: NDArray[np.integer], share: Vector) -> list[Interval]:
    totals = class_totals(labels, len(share))
    return [
        mean_error_interval(
            class_totals(labels, len(share), row) / np.maximum(totals, 1),
            np.where(share > 0, totals, 0.0),
            shares=share,
        )
        for row in wrong
    ]


def _lowest(curve: Vector, grid: tuple[float, ...]) -> int:
    """Return the index of the lowest error; on a tie (to rounding), that of the tau nearest 1."""
    tied = np.flatnonzero(curve <= curve.min() + 1e-12)
    return int(min(tied, key=lambda row: abs(grid[row] - 1)))
