"""Runs the paper's synthetic experiment (Fig. 2): two Gaussians and an affine classifier.

x | y ~ N(y (1, 1), I) for y = -1, +1 and P(y = +1) = 5 %. A classifier is a half-space,
w . x + b > 0, so its balanced error has a closed form, and no test set is needed. The Bayes error
is Phi(-sqrt 2) = 7.865 %. The losses are those of training, fitted to (w, b) in float64.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from service.contract.adjustment import Vector
from training.learning.losses import Objective, make_loss

RARE = 0.05
BAYES = float(norm.cdf(-math.sqrt(2)))
FITTED: dict[str, tuple[str, float]] = {
    "erm": ("erm", 1.0),
    "adaptive": ("adaptive", 1.0),
    "equalised": ("equalised", 1.0),
    "logit-adjusted": ("logit-adjusted", 1.0),
    "weighted-logit-adjusted (τ = 0.5)": ("weighted-logit-adjusted", 0.5),
    "balanced": ("balanced", 1.0),
    "focal": ("focal", 1.0),
    "logit-adjusted+adaptive": ("logit-adjusted+adaptive", 1.0),
}
"""Maps a name in the table to the loss and its loss_tau. Class 0, y = -1, is the common one."""
STARTS = 20
"""Random starts of the two weight vectors per trial."""
_POSTERIOR = np.array([2.0, 2.0, math.log(RARE / (1 - RARE))])
"""The half-space of the true posterior, where every fit starts. All losses but focal are convex, so
the start affects only the time.
"""
TAUS = tuple(round(0.05 * step, 2) for step in range(61))


@dataclass(frozen=True)
class Results:
    """The results of the experiment. Errors are analytic balanced errors, 0 … 1."""

    n_train: int
    trials: int
    errors: dict[str, Vector]
    """The error in each trial, [trials], by method."""
    half_spaces: dict[str, Vector]
    """The fitted (w, b) of each trial, [trials, 3], by method."""
    tau_sweep: Vector
    """The errors of ERM after post-hoc adjustment, [len(TAUS), trials]."""
    norm_sweep: Vector
    """The errors of ERM with two weight vectors after weight normalisation, [len(TAUS), trials];
    means over STARTS random starts.
    """
    negative_share: Vector
    """For these weight vectors, the share of each class's points with a negative logit for their
    own class, [trials, 2].
    """


def run(*, n_train: int = 10_000, trials: int = 100, seed: int = 0) -> Results:
    """Fit every loss to a new training set of n_train points in each trial.

    torch uses one thread, because the arrays are small.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(n_train, trials, seed)
    finally:
        torch.set_num_threads(threads)


def _run(n_train: int, trials: int, seed: int) -> Results:
    halves: dict[str, list[Vector]] = {name: [] for name in FITTED}
    tau_sweep, norm_sweep, negative = [], [], []
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial])
        x, labels = draw(n_train, rng)
        counts = np.bincount(labels, minlength=2)
        for name, (loss, loss_tau) in FITTED.items():
            halves[name].append(
                fit_half_space(make_loss(loss, counts, loss_tau=loss_tau), x, labels)
            )
        erm = halves["erm"][-1]
        halves.setdefault("post-hoc", []).append(adjusted(erm, counts, tau=1.0))
        tau_sweep.append([exact_balanced_error(adjusted(erm, counts, tau=tau)) for tau in TAUS])
        pairs = two_weight_vectors(erm, rng, STARTS)
        norm_sweep.append([exact_balanced_error(normalised(pairs, tau=t)).mean() for t in TAUS])
        negative.append(negative_share(pairs).mean(axis=0))
    spaces = {name: np.array(found) for name, found in halves.items()}
    return Results(
        n_train,
        trials,
        {name: exact_balanced_error(found) for name, found in spaces.items()},
        spaces,
        np.array(tau_sweep).T,
        np.array(norm_sweep).T,
        np.array(negative),
    )


def draw(n: int, rng: np.random.Generator) -> tuple[Vector, NDArray[np.int64]]:
    """Draw points [n, 2] and labels [n]; label 1 is the rare class."""
    labels = (rng.random(n) < RARE).astype(np.int64)
    x: Vector = rng.normal(size=(n, 2)) + (2 * labels - 1)[:, None]
    return x, labels


def fit_half_space(objective: Objective, x: Vector, labels: NDArray[np.int64]) -> Vector:
    """Return the (w, b) [3] that minimises the mean loss of the logits (0, w . x + b)."""
    design = torch.from_numpy(np.column_stack([x, np.ones(len(x))]))
    targets = torch.from_numpy(labels)
    loss = objective.example_loss.double()

    def value(parameters: Vector) -> tuple[float, Vector]:
        theta = torch.from_numpy(parameters).requires_grad_()
        score = design @ theta
        mean = loss(torch.stack([torch.zeros_like(score), score], dim=1), targets).mean()
        (gradient,) = torch.autograd.grad(mean, theta)
        return mean.item(), gradient.numpy()

    options = {"ftol": 1e-12, "gtol": 1e-7, "maxiter": 500}
    found: Vector = minimize(value, _POSTERIOR, jac=True, method="L-BFGS-B", options=options).x
    return found


def exact_balanced_error(half_space: Vector) -> Vector:
    """Return the balanced error of half-spaces w . x + b > 0, given as (w, b) [..., 3].

    It is the mean of Phi(-(sum w + b) / |w|) and Phi(-(sum w - b) / |w|).
    """
    w, b = half_space[..., :2], half_space[..., 2]
    length = np.linalg.norm(w, axis=-1)
    rare, common = -(w.sum(axis=-1) + b) / length, -(w.sum(axis=-1) - b) / length
    errors: Vector = (norm.cdf(rare) + norm.cdf(common)) / 2
    return errors


def adjusted(half_space: Vector, counts: NDArray[np.integer], *, tau: float) -> Vector:
    """Adjust a half-space (w, b) post hoc: b becomes b - tau * log(pi_1 / pi_0)."""
    moved: Vector = half_space - np.array([0, 0, tau * math.log(counts[1] / counts[0])])
    return moved


def two_weight_vectors(erm: Vector, rng: np.random.Generator, starts: int) -> Vector:
    """Return the pairs of rows (w_y, b_y), [starts, 2, 3], that ERM reaches from random pairs.

    The two gradients are opposite, so gradient descent moves the difference of the rows to the ERM
    solution `erm` [3] and leaves their mean at its start. The start is standard normal, and the
    bias counts as the weight of a constant feature.
    """
    mean = rng.normal(size=(starts, 2, 3)).mean(axis=1, keepdims=True)
    pairs: Vector = np.concatenate([mean - erm / 2, mean + erm / 2], axis=1)
    return pairs


def normalised(pairs: Vector, *, tau: float) -> Vector:
    """Return half-spaces [starts, 3] after weight normalisation of pairs [starts, 2, 3].

    Each row is divided by its norm ** tau.
    """
    scaled = pairs / np.linalg.norm(pairs, axis=2, keepdims=True) ** tau
    difference: Vector = scaled[:, 1] - scaled[:, 0]
    return difference


def negative_share(pairs: Vector) -> Vector:
    """Return the share of each class's points with a negative logit for their class, [starts, 2].

    No positive divisor can make that class win at such a point.
    """
    means = np.array([-1, 1]) * pairs[:, :, :2].sum(axis=2) + pairs[:, :, 2]
    share: Vector = norm.cdf(-means / np.linalg.norm(pairs[:, :, :2], axis=2))
    return share


def summary(results: Results) -> dict[str, Any]:
    """Return the object that `training synthetic --json` prints."""
    return {
        "n_train": results.n_train,
        "trials": results.trials,
        "bayes": BAYES,
        "balanced_error": {
            name: {"mean": float(errors.mean()), "sd": _sd(errors)}
            for name, errors in results.errors.items()
        },
        "tau_sweep": _curve(results.tau_sweep),
        "weight_norm": {
            "tau_sweep": _curve(results.norm_sweep),
            "negative_share": {
                "common": float(results.negative_share[:, 0].mean()),
                "rare": float(results.negative_share[:, 1].mean()),
            },
        },
    }


def _curve(sweep: Vector) -> list[list[float]]:
    return [[tau, float(row.mean())] for tau, row in zip(TAUS, sweep, strict=True)]


def _sd(values: Vector) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
