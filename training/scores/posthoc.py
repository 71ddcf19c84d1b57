"""Tau sweeps and weight normalisation, computed from logits or a classifier's last layer."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector, adjust_logits
from service.contract.scores import balanced_error

Labels: TypeAlias = NDArray[np.integer]
Curve: TypeAlias = tuple[tuple[float, float], ...]

NORM_GRID = tuple(round(0.1 * step, 1) for step in range(21))
"""The values of tau for weight normalisation (Kang et al., ICLR 2020): 0, 0.1, … 2."""


@dataclass(frozen=True)
class LastLayer:
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: Vector
    """[C, D]."""
    bias: Vector
    """[C]."""

    def logits(self, features: ArrayLike) -> Vector:
        """Return logits [n, C] for features [n, D]."""
        result: Vector = np.asarray(features, np.float64) @ self.weight.T + self.bias
        return result

    @property
    def norms(self) -> Vector:
        """[C] Euclidean norms of the classes' weight vectors."""
        lengths: Vector = np.linalg.norm(self.weight, axis=1)
        return lengths

    def normalised(self, tau: float) -> "LastLayer":
        """Return the layer with weights w_y / |w_y| ** tau and no bias (Kang et al., ICLR 2020).

        The norms are folded into the weights, so it exports like any other layer. A class whose
        weights are all 0 keeps them.
        """
        norms = np.where(self.norms > 0, self.norms, 1.0)
        return LastLayer(self.weight / norms[:, None] ** tau, np.zeros_like(self.bias))

    def scaled(self, scales: ArrayLike) -> "LastLayer":
        """Return the layer with scales [C] folded in: s_y * (w_y . x + b_y)."""
        factors = np.asarray(scales, np.float64)
        return LastLayer(self.weight * factors[:, None], self.bias * factors)


def adjustment_curve(
    logits: ArrayLike, labels: Labels, *, log_source_prior: ArrayLike, grid: tuple[float, ...]
) -> Curve:
    """Return (tau, balanced error) of argmax f - tau * log sigma (Menon, eq. 9) over the grid."""
    f = np.asarray(logits, np.float64)
    uniform = np.zeros(f.shape[1])

    def at(tau: float) -> float:
        z = adjust_logits(f, log_source_prior=log_source_prior, log_target_prior=uniform, tau=tau)
        return balanced_error(z.argmax(axis=1), labels, f.shape[1])

    return tuple((tau, at(tau)) for tau in grid)


def norm_curve(
    layer: LastLayer, features: ArrayLike, labels: Labels, *, grid: tuple[float, ...] = NORM_GRID
) -> Curve:
    """Return (tau, balanced error) of weight normalisation on features [n, D] over the grid."""
    classes = len(layer.bias)
    plain = np.asarray(features, np.float64) @ layer.weight.T
    norms = np.where(layer.norms > 0, layer.norms, 1.0)
    return tuple(
        (tau, balanced_error((plain / norms**tau).argmax(axis=1), labels, classes)) for tau in grid
    )


def best_tau(curve: Curve, *, near: float = 1.0) -> float:
    """Return the tau with the lowest error; on a tie, the one nearest `near`."""
    lowest = min(error for _, error in curve)
    return min(
        (tau for tau, error in curve if error <= lowest + 1e-12), key=lambda t: abs(t - near)
    )
