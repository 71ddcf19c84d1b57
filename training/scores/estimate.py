"""The target prior of unlabelled data, by four estimators, from logits. NumPy only.

The held-out split is labelled; its own class mix becomes the prior of the posteriors, softmax(f / T + log pi_val -
log sigma), so that the estimators' source prior can be measured rather than assumed: the mean calibrated posterior.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar, nnls

from service.contract.adjustment import Vector, softmax
from service.contract.label_shift import (
    NotConverged,
    PriorEstimate,
    estimate_prior,
    with_intervals,
)
from service.contract.scores import bootstrap_rng, class_totals
from training.faults import BadData
from training.scores.calibrate import (
    CalibrationRefused,
    fit_bcts,
    fit_temperature,
    log_validation_prior_of,
)

Labels: TypeAlias = NDArray[np.integer]

METHODS = ("em", "em-bcts", "bbse", "rlls")
MIN_EXAMPLES_PER_CLASS = 10
"""Unlabelled examples a class, on average: fewer, and the estimate is its own noise."""
MAX_CONDITION = 100.0
"""Of the confusion matrix's columns, P(predicted | class): beyond it, an error in the rates grows a hundredfold."""
RLLS_ALPHA = 0.01
RLLS_DELTA = 0.05


class EstimateRefused(BadData):
    """An estimator that these data cannot carry; the message says why."""


@dataclass(frozen=True)
class HeldOut:
    """The labelled split that calibrates the estimators."""

    logits: Vector
    """[m, C] raw logits."""
    labels: Labels
    log_source_prior: Vector
    """[C] log sigma of the model."""

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[1])

    @property
    def log_prior(self) -> Vector:
        """[C] log pi_val, LOG_ZERO for an absent class."""
        return log_validation_prior_of(self.labels, self.num_classes)


def estimate(
    logits: ArrayLike, held_out: HeldOut, *, resamples: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Every estimator on unlabelled logits [n, C]: the object of `training estimate --json`.

    A refused estimator has `refused` with the reason in place of its numbers. `recommended` is `em`, unless it was
    refused: the safest default that was measured; `em-bcts` is sharper where held-out data are many.
    """
    unlabelled = np.asarray(logits, np.float64)
    methods: dict[str, Any] = {}
    for name in METHODS:
        try:
            check_size(len(unlabelled), held_out)
            found = _ESTIMATORS[name](unlabelled, held_out, resamples, seed)
        except (EstimateRefused, CalibrationRefused, NotConverged) as error:
            methods[name] = {"refused": str(error)}
        else:
            methods[name] = {
                "prior": found.prior.tolist(),
                "interval": np.stack([found.low, found.high], axis=1).tolist(),
                "effective_n": found.effective_n,
            }
    usable = [name for name in METHODS if "prior" in methods[name]]
    return {
        "n": len(unlabelled),
        "n_held_out": len(held_out.labels),
        "methods": methods,
        "recommended": usable[0] if usable else None,
    }


def check_size(n: int, held_out: HeldOut) -> None:
    """Raise EstimateRefused unless there are enough examples, and every class is in the held-out split."""
    wanted = MIN_EXAMPLES_PER_CLASS * held_out.num_classes
    if n < wanted:
        raise EstimateRefused(
            f"{n} unlabelled examples; {held_out.num_classes} classes need at least {wanted}"
        )
    absent = np.flatnonzero(class_totals(held_out.labels, held_out.num_classes) == 0)
    if len(absent):
        raise EstimateRefused(
            f"{len(absent)} of {held_out.num_classes} classes (the first is class {absent[0]}) have no "
            "held-out example, so nothing says how the model sees them"
        )


def posteriors(logits: Vector, held_out: HeldOut, *, bcts: bool = False) -> tuple[Vector, Vector]:
    """Calibrated posteriors under the held-out split's class mix: of the logits [n, C], and of the split's [m, C].

    Raises CalibrationRefused when bcts is asked for and the split is too small for it.
    """
    priors = {
        "log_source_prior": held_out.log_source_prior,
        "log_validation_prior": held_out.log_prior,
    }
    shift = held_out.log_prior - held_out.log_source_prior
    if bcts:
        fitted = fit_bcts(held_out.logits, held_out.labels, **priors)
        return softmax(fitted.logits(logits) + shift), softmax(
            fitted.logits(held_out.logits) + shift
        )
    temperature = fit_temperature(held_out.logits, held_out.labels, **priors)
    return softmax(logits / temperature + shift), softmax(held_out.logits / temperature + shift)


def by_em(
    logits: Vector, held_out: HeldOut, *, bcts: bool = False, resamples: int = 200, seed: int = 0
) -> PriorEstimate:
    """Expectation maximisation (Saerens et al., 2002; Alexandari et al., 2020, for the calibration).

    The source prior is the mean calibrated posterior of the held-out split: what a calibrated model would find there.
    """
    p, p_held_out = posteriors(logits, held_out, bcts=bcts)
    return estimate_prior(p, source_prior=p_held_out.mean(axis=0), resamples=resamples, seed=seed)


def by_confusion(
    logits: Vector,
    held_out: HeldOut,
    *,
    solve: Callable[[Vector, Vector, int, int], Vector],
    resamples: int = 200,
    seed: int = 0,
) -> PriorEstimate:
    """Black-box shift estimation: from how often each class is predicted, here and in the held-out split.

    solve(C, mu, m, n) gives w = rho / pi_val from the joint confusion matrix C[i, j] = P(predicted i, class j), of m
    examples, and mu[i] = P(predicted i), of n. The bootstrap draws both again.
    """
    classes = held_out.num_classes
    p, p_held_out = posteriors(logits, held_out)
    cells = class_totals(p_held_out.argmax(axis=1) * classes + held_out.labels, classes**2)
    predicted = class_totals(p.argmax(axis=1), classes)
    m, n = len(held_out.labels), len(logits)

    def prior(joint: Vector, rates: Vector) -> Vector:
        confusion = joint.reshape(classes, classes)
        weighted = solve(confusion, rates, m, n) * confusion.sum(axis=0)
        shares: Vector = weighted / weighted.sum()
        return shares

    refuse_ill_conditioned(cells.reshape(classes, classes))
    rng = bootstrap_rng(seed)
    draws = [
        prior(rng.multinomial(m, cells / m) / m, rng.multinomial(n, predicted / n) / n)
        for _ in range(resamples)
    ]
    return with_intervals(prior(cells / m, predicted / n), np.array(draws), n=n)


def refuse_ill_conditioned(confusion: Vector) -> None:
    """Raise EstimateRefused when the classes' prediction rates [C, C] hardly differ from one another."""
    rates = confusion / confusion.sum(axis=0)
    condition = float(np.linalg.cond(rates))
    if not condition <= MAX_CONDITION:
        never = np.flatnonzero(rates.diagonal() == 0)
        told = f"; {len(never)} classes are never predicted right" if len(never) else ""
        raise EstimateRefused(
            f"the confusion matrix is ill-conditioned ({condition:.3g}, at most {MAX_CONDITION:g}){told}"
        )


def solve_bbse(confusion: Vector, rates: Vector, m: int, n: int) -> Vector:
    """BBSE (Lipton et al., ICML 2018): C w = mu, by least squares with w >= 0 in place of an inverse and a clip."""
    del m, n
    return _non_negative(confusion, rates)


def solve_rlls(confusion: Vector, rates: Vector, m: int, n: int) -> Vector:
    """RLLS (Azizzadenesheli et al., ICLR 2019): min |C (1 + theta) - mu| + strength * |theta|, theta >= -1.

    strength = alpha * (3 * (2 log(2C/delta) / (3m) + sqrt(2 log(2C/delta) / m))), plus the like for n, as the
    authors' code has it. Neither norm is squared, so a weak penalty gives way altogether: where C w = mu has a solution
    without negative weights, that is the minimum as long as strength * |C^-T theta| <= |theta|, and the result is BBSE's
    (a classifier of ten classes needs to be bad, or the data few, for more). A minimum of the sum of two norms is one of the sum of their squares for some ratio
    of the two, so a search over that ratio, with non-negative least squares inside, finds it.
    """
    classes = len(rates)
    log_term = np.log(2 * classes / RLLS_DELTA)
    strength = RLLS_ALPHA * sum(
        3 * (2 * log_term / (3 * size) + np.sqrt(2 * log_term / size)) for size in (m, n)
    )
    target = rates - confusion.sum(axis=1)

    def weights(log_ridge: float) -> Vector:
        root = np.exp(log_ridge / 2)
        design = np.concatenate([confusion, root * np.eye(classes)])
        return _non_negative(design, np.concatenate([rates, np.full(classes, root)]))

    def objective(log_ridge: float) -> float:
        theta = weights(log_ridge) - 1
        misfit = np.linalg.norm(confusion @ theta - target)
        return float(misfit + strength * np.linalg.norm(theta))

    best = minimize_scalar(objective, bounds=(-30, 10), method="bounded", options={"xatol": 0.05})
    return weights(float(best.x))


def _non_negative(design: Vector, target: Vector) -> Vector:
    solution: Vector = nnls(design, target)[0]
    return solution


_ESTIMATORS: dict[str, Callable[[Vector, HeldOut, int, int], PriorEstimate]] = {
    "em": lambda f, held, r, s: by_em(f, held, resamples=r, seed=s),
    "em-bcts": lambda f, held, r, s: by_em(f, held, bcts=True, resamples=r, seed=s),
    "bbse": lambda f, held, r, s: by_confusion(f, held, solve=solve_bbse, resamples=r, seed=s),
    "rlls": lambda f, held, r, s: by_confusion(f, held, solve=solve_rlls, resamples=r, seed=s),
}
