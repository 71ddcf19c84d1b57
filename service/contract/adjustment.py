"""Logit adjustment: the one formula of the project, in float64, written once.

    z = f / T + tau * (log rho - log sigma)        p = softmax(z)

f are a network's logits, T its temperature, sigma the source prior (the prior under which
softmax(f) is a posterior) and rho the target prior (the class prior of the place of use). With a
uniform rho and tau = 1 this is post-hoc logit adjustment (Menon et al., ICLR 2021, eq. 9); with any
rho it is Bayes' rule for label shift (Saerens et al., 2002). The ONNX head of the service and the
torch losses are other forms of this module and are tested against it.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector: TypeAlias = NDArray[np.float64]

MIN_TAU = 1e-6
MAX_TAU = 10.0
"""Default cap of tau; a service may set another."""

LOG_ZERO = -1e30
"""Stands for log 0 of a target prior: finite, so that 0 * LOG_ZERO is 0 and not NaN, and so low
that exp(tau * LOG_ZERO) is exactly 0 for every tau >= MIN_TAU, in float32 too."""


class InvalidTau(ValueError):
    """A tau that is not 0 and not in [MIN_TAU, cap]."""


def check_tau(tau: float, *, cap: float = MAX_TAU) -> float:
    """Return tau as a float. Raises InvalidTau unless it is 0 or within [MIN_TAU, cap]."""
    if isinstance(tau, bool) or not isinstance(tau, (int, float, np.floating, np.integer)):
        raise InvalidTau(f"tau is {tau!r}; expected a number")
    if tau == 0 or MIN_TAU <= tau <= cap:  # NaN compares false to everything
        return float(tau) + 0.0  # -0.0 is shown as 0
    raise InvalidTau(f"tau is {tau}; expected 0 or a number from {MIN_TAU:g} to {cap:g}")


def log_normalise(log_weights: ArrayLike) -> Vector:
    """Subtract the log of the sum of exp: the exponentials then sum to 1 ([..., C] -> [..., C])."""
    weights = np.asarray(log_weights, np.float64)
    peak = weights.max(axis=-1, keepdims=True)
    total: Vector = weights - (peak + np.log(np.exp(weights - peak).sum(axis=-1, keepdims=True)))
    return total


log_softmax = log_normalise


def softmax(logits: ArrayLike) -> Vector:
    """Probabilities of logits over the last axis ([..., C] -> [..., C])."""
    probabilities: Vector = np.exp(log_softmax(logits))
    return probabilities


def log_source_prior(label_frequencies: ArrayLike, *, loss_tau: float) -> Vector:
    """The log of sigma [C], with sigma proportional to label_frequencies ** (1 - loss_tau).

    label_frequencies [C]: counts or probabilities, each > 0 and finite (only ratios matter).
    loss_tau: the share of the label frequencies that training has already divided out; 0 for plain
    cross-entropy, 1 for balanced training, where sigma is uniform whatever the frequencies.
    """
    frequencies = np.asarray(label_frequencies, np.float64)
    if not (np.isfinite(frequencies).all() and (frequencies > 0).all()):
        raise ValueError("label frequencies must be finite and greater than 0")
    return log_normalise((1.0 - loss_tau) * np.log(frequencies))


def log_target_prior(target: ArrayLike) -> Vector:
    """The log of rho [C], of finite counts or probabilities >= 0; LOG_ZERO where an entry is 0."""
    weights = np.asarray(target, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()):
        raise ValueError("a target prior must be finite, at least 0, and not all zeros")
    possible = weights > 0
    log_target = np.full(weights.shape, LOG_ZERO)
    log_target[possible] = log_normalise(np.log(weights[possible]))
    return log_target


def adjust_logits(
    logits: ArrayLike,
    *,
    log_source_prior: ArrayLike,
    log_target_prior: ArrayLike,
    tau: ArrayLike,
    temperature: float = 1.0,
) -> Vector:
    """Adjusted logits z [..., C] of logits [..., C].

    The priors are [C] or broadcast; tau is a scalar or [..., 1]. tau = 0 gives
    logits / temperature exactly. softmax(z) are the adjusted probabilities.
    """
    offset = np.asarray(log_target_prior, np.float64) - np.asarray(log_source_prior, np.float64)
    adjusted: Vector = np.asarray(logits, np.float64) / temperature + np.asarray(tau) * offset
    return adjusted
