"""Measures a model's `estimation` block (service.contract.shift.estimation) on a labelled split.

The split may have any class mix. The result is deterministic.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from service.contract.adjustment import (
    Vector,
    log_normalise,
    log_softmax,
    log_target_prior,
    softmax,
)
from service.contract.scores import Z_95, bootstrap_rng, class_totals
from service.contract.shift.estimation import MAX_CONFUSION_CLASSES, Estimation, Replicates
from training.scores.calibrate import (
    LOG_TEMPERATURE_SD,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    RIDGE,
    Temperature,
    calibrate_temperature,
    fit_bcts,
    log_validation_prior_of,
)
from training.scores.self_test import self_test
from training.scores.sketching import Labels, rounded, sketch, validation_rows

Kind = Literal["none", "temperature", "bias"]

FOLDS = 5
REPLICATES = 20
MAX_CLASSES_WITH_REPLICATES = 1000
_MOST_CELLS = 4_000_000  # the most logits that are used where a fit is repeated


@dataclass(frozen=True)
class Measured:
    """A fitted temperature, bias and source prior."""

    kind: Kind
    temperature: Temperature
    bias: Vector
    """[C], mean 0."""
    log_source_prior: Vector
    """[C] log of the measured source prior sigma*, normalised."""

    @property
    def log_source(self) -> Vector:
        """[C] log sigma* - bias: subtracted from logits / T when they are adjusted."""
        return log_normalise(self.log_source_prior - self.bias)

    def posteriors(self, logits: ArrayLike) -> Vector:
        """Return calibrated posteriors [n, C] of logits [n, C], under the measured source prior."""
        f = np.asarray(logits, np.float64)
        return softmax(f / self.temperature.value + self.bias)


def measure(
    logits: ArrayLike,
    labels: Labels,
    *,
    log_source_prior: ArrayLike,
    class_frequencies: ArrayLike | None = None,
    probabilities: bool = False,
) -> tuple[Estimation, Temperature]:
    """Return a model's block and its temperature, from logits [n, C] and labels [n].

    log_source_prior: [C] log sigma, as training implies it. class_frequencies: [C] of training; by
    default those that sigma implies. probabilities: whether the model's output is probabilities.
    """
    f, log_sigma = np.asarray(logits, np.float64), np.asarray(log_source_prior, np.float64)
    classes = f.shape[1]
    mix = np.exp(log_sigma) if class_frequencies is None else np.asarray(class_frequencies)
    found = calibrate(f, labels, log_source_prior=log_sigma)
    if found.kind == "bias":
        found = replace(found, temperature=_with_joint_interval(f, labels, found, log_sigma))
    temperature = float(f"{found.temperature.value:.9g}")
    block = Estimation(
        calibration=found.kind,
        temperature=temperature,
        temperature_interval=rounded(np.array(found.temperature.interval)),
        bias=rounded(found.bias),
        source_prior=rounded(np.exp(found.log_source_prior)),
        validation=validation_rows(f, labels),
        sketch=sketch(f, labels, temperature=temperature, probabilities=probabilities),
        replicates=_replicates(f, labels, found, log_source_prior=log_sigma),
        confusion=_confusion(f, labels) if classes <= MAX_CONFUSION_CLASSES else None,
    )
    block_of = partial(_half_block, log_source_prior=log_sigma, probabilities=probabilities)
    test = self_test(f, labels, block_of=block_of, class_frequencies=mix)
    return block.model_copy(update={"self_test": test}), found.temperature


def calibrate(f: Vector, labels: Labels, *, log_source_prior: Vector) -> Measured:
    """Fit a temperature and, if it helps, a bias per class; then measure the source prior.

    f: logits [n, C]. A bias helps if it lowers the cross-validated NLL by more than a standard
    error, at the uniform target or at the source prior.
    """
    biased = _bias_helps(f, labels, log_source_prior)
    return _fitted(f, labels, log_source_prior, biased=biased)


def row_weights(labels: Labels, log_source_prior: Vector) -> Vector:
    """Return the [n] weights of the rows in a calibration.

    They change the split's class mix to the mean of the source prior and the uniform one. Weights
    above the mean are cut to it, so that no single row of a rare class decides its bias. They are
    then scaled to sum to Kish's effective number of rows.
    """
    log_pi = log_validation_prior_of(labels, len(log_source_prior))
    wanted = (np.exp(log_source_prior) + 1 / len(log_source_prior)) / 2
    weights: Vector = (wanted / np.exp(log_pi.clip(-700)))[labels]
    weights = np.minimum(weights / weights.mean(), 1.0)
    scaled: Vector = weights * weights.sum() / (weights**2).sum()
    return scaled


def _half_block(
    f: Vector, labels: Labels, *, log_source_prior: Vector, probabilities: bool
) -> Estimation:
    """Return a block without a self-test, as its halves have."""
    found = calibrate(f, labels, log_source_prior=log_source_prior)
    temperature = found.temperature.value
    return Estimation(
        calibration=found.kind,
        temperature=temperature,
        bias=found.bias.tolist(),
        source_prior=np.exp(found.log_source_prior).tolist(),
        validation=validation_rows(f, labels),
        sketch=sketch(f, labels, temperature=temperature, probabilities=probabilities),
        replicates=_replicates(f, labels, found, log_source_prior=log_source_prior),
    )


def _fitted(f: Vector, labels: Labels, log_sigma: Vector, *, biased: bool) -> Measured:
    classes = len(log_sigma)
    weights = row_weights(labels, log_sigma)
    mix = log_target_prior(class_totals(labels, classes, weights))
    temperature = calibrate_temperature(
        f, labels, log_source_prior=log_sigma, log_validation_prior=mix, weights=weights
    )
    kind: Kind = "none" if temperature.why_one is not None else "temperature"
    bias = np.zeros(classes)
    if biased:
        joint = fit_bcts(
            f, labels, log_source_prior=log_sigma, log_validation_prior=mix, weights=weights
        )
        kind, bias = "bias", joint.bias
        temperature = replace(temperature, value=joint.temperature, why_one=None)
    log_star = _measured_source(f, labels, log_sigma, inverse=1 / temperature.value, bias=bias)
    return Measured(kind, temperature, bias, log_star)


def _measured_source(
    f: Vector,
    labels: Labels,
    log_sigma: Vector,
    *,
    inverse: float,
    bias: Vector,
    weights: Vector | None = None,
) -> Vector:
    """Return [C] log of sigma * mean posterior / split's prior, normalised.

    The posteriors are taken under the split's prior. A class that the split lacks keeps its sigma.
    """
    totals = class_totals(labels, len(log_sigma), weights)
    present = totals > 0
    shift = np.where(present, np.log(np.where(present, totals, 1.0)) - log_sigma, -1e30)
    p = softmax(f * inverse + bias + shift)
    mean = p.mean(axis=0) if weights is None else weights @ p / weights.sum()
    ratio = np.where(present, mean / np.where(present, totals / totals.sum(), 1.0), 1.0)
    return log_normalise(log_sigma + np.log(np.maximum(ratio, 1e-6)))


def _bias_helps(f: Vector, labels: Labels, log_sigma: Vector) -> bool:
    """Return whether a bias lowers the NLL of rows that the fit did not see."""
    step = max(1, f.size // _MOST_CELLS)
    some, own = f[::step], labels[::step]
    fold = np.arange(len(own)) % FOLDS
    targets = np.stack([np.zeros_like(log_sigma), log_sigma])
    losses = {biased: np.zeros((2, len(own))) for biased in (False, True)}
    for part in range(FOLDS):
        inside, outside = fold != part, fold == part
        if not outside.any() or class_totals(own[inside], len(log_sigma)).min() == 0:
            return False
        for biased, loss in losses.items():
            found = _fitted(some[inside], own[inside], log_sigma, biased=biased)
            scores = some[outside] / found.temperature.value - found.log_source
            for row, target in enumerate(targets):
                log_p = log_softmax(scores + target)
                loss[row, outside] = -log_p[np.arange(outside.sum()), own[outside]]
    weights = [_mix_weights(own, np.exp(target)) for target in targets]
    return any(_better(losses[False][row], losses[True][row], weights[row]) for row in (0, 1))


def _better(before: Vector, after: Vector, weights: Vector) -> bool:
    """Return whether the weighted mean loss falls by more than the standard error of the fall."""
    gain = before - after
    mean = float(np.average(gain, weights=weights))
    error = np.sqrt(np.square(weights * (gain - mean)).sum()) / weights.sum()
    return mean > float(error)


def _mix_weights(labels: Labels, target: Vector) -> Vector:
    totals = class_totals(labels, len(target))
    weights: Vector = (target / np.maximum(totals, 1))[labels]
    return weights


def _replicates(
    f: Vector, labels: Labels, found: Measured, *, log_source_prior: Vector
) -> Replicates | None:
    """Calibrate on REPLICATES reweighted copies of the split (Bayesian bootstrap by class).

    Each row gets an exponential weight, scaled within its class. For each copy, one Newton step
    from the fit gives the parameters; all copies use the fit's Hessian.
    """
    classes = len(log_source_prior)
    if classes > MAX_CLASSES_WITH_REPLICATES:
        return None
    rng = bootstrap_rng(2)
    base = row_weights(labels, log_source_prior)
    mix = log_target_prior(class_totals(labels, classes, base))
    inverse, bias = 1 / found.temperature.value, found.bias
    p = softmax(f * inverse + bias + mix - log_source_prior)
    gradients, hessian = _derivatives(f, labels, p, base, inverse, biased=found.kind == "bias")
    totals = class_totals(labels, classes)
    temperatures, sources = [], []
    for _ in range(REPLICATES):
        weights = rng.exponential(size=len(labels))
        weights *= (totals / np.maximum(class_totals(labels, classes, weights), 1e-300))[labels]
        move = np.zeros(classes + 1)
        move[: len(hessian)] = -np.linalg.solve(hessian, gradients.T @ (weights - 1))
        heat = float(np.clip(1 / max(inverse + move[0], 0.05), 0.05, 20.0))
        moved = bias + move[1:]
        log_star = _measured_source(
            f, labels, log_source_prior, inverse=1 / heat, bias=moved, weights=weights
        )
        temperatures.append(float(f"{heat:.6g}"))
        sources.append(rounded(log_normalise(log_star - moved), digits=6))
    return Replicates(temperature=temperatures, log_source=sources)


def _derivatives(
    f: Vector, labels: Labels, p: Vector, weights: Vector, inverse: float, *, biased: bool
) -> tuple[Vector, Vector]:
    """Return each row's gradient [n, P] and the penalised sum's Hessian [P, P], at the fit.

    The P parameters are 1 / T and, if one was fitted, the bias. A temperature that stays 1 is as
    uncertain as a fitted one, so the replicates vary it too.
    """
    rows = np.arange(len(f))
    centred = f - np.einsum("nc,nc->n", p, f)[:, None]
    slope = -weights * centred[rows, labels]
    curvature = float(weights @ np.einsum("nc,nc->n", p, centred**2))
    curvature += 1 / (LOG_TEMPERATURE_SD * inverse) ** 2
    if not biased:
        return slope[:, None], np.array([[curvature]])
    tilt = weights[:, None] * p
    tilt[rows, labels] -= weights
    hessian = np.empty((f.shape[1] + 1, f.shape[1] + 1))
    hessian[0, 0] = curvature
    hessian[0, 1:] = hessian[1:, 0] = weights @ (p * centred)
    hessian[1:, 1:] = np.diag(weights @ p + RIDGE) - (p * weights[:, None]).T @ p
    return np.concatenate([slope[:, None], tilt], axis=1), hessian


def _with_joint_interval(
    f: Vector, labels: Labels, found: Measured, log_sigma: Vector
) -> Temperature:
    """Return the temperature with its interval in the joint fit: 1 / T is close to normal."""
    weights = row_weights(labels, log_sigma)
    mix = log_target_prior(class_totals(labels, len(log_sigma), weights))
    inverse = 1 / found.temperature.value
    p = softmax(f * inverse + found.bias + mix - log_sigma)
    _, hessian = _derivatives(f, labels, p, weights, inverse, biased=True)
    half = Z_95 * float(np.sqrt(np.linalg.inv(hessian)[0, 0]))
    low = max(1 / (inverse + half), MIN_TEMPERATURE)
    high = min(1 / max(inverse - half, 1e-9), MAX_TEMPERATURE)
    return replace(found.temperature, interval=(low, high))


def _confusion(f: Vector, labels: Labels) -> list[list[int]]:
    classes = f.shape[1]
    cells = f.argmax(axis=1) * classes + labels
    counts = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return counts.tolist()
