"""Fits the last linear layer of a network whose other layers are fixed: a convex problem.

L-BFGS minimises the summed loss of the rows + penalty / 2 · ‖W‖²; the bias has no penalty. A
`penalty` of 1 equals scikit-learn's LogisticRegression with C = 1. If none is given, penalties are
tried from strong to weak, and the one with the lowest validation NLL at the uniform target wins.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from torch import nn

from service.contract.adjustment import Vector
from training.data.dataset import Dataset, Labels, Split
from training.data.text import Encoded
from training.faults import WrongUse, say
from training.learning.losses import Objective
from training.learning.tfidf import TfIdf
from training.loop.last_layer import features_of, head_of
from training.scores.choose import uniform_nll
from training.scores.posthoc import LastLayer

PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
WITHOUT_VALIDATION = 1.0
WORSE = 2
"""The search stops after this many penalties in a row that are worse than the best one."""
MAX_ITERATIONS = 300
MOST_IN_SPAN = 8_000
"""The most training rows for which `Span` is used: its matrix takes 8 bytes per pair of rows."""
DENSE_SPEED = 15
"""So many multiplications of dense rows take the time of one multiplication of sparse rows."""
ROUNDING = 1e-7
PRODUCTS_A_THREAD = 20_000_000

Features: TypeAlias = "NDArray[np.float32] | csr_matrix"


@dataclass(frozen=True)
class Penalised:
    """A fitted layer, its penalty, and the validation curve that chose the penalty."""

    layer: LastLayer
    penalty: float
    curve: tuple[tuple[float, float], ...] = ()
    """(penalty, validation NLL at the uniform target) of each penalty tried; empty if given."""


def fit_last_layer(
    network: nn.Module,
    data: Dataset,
    objective: Objective,
    *,
    log_source_prior: Vector,
    penalty: float | None,
    device: torch.device,
) -> Penalised:
    """Fit the network's last linear layer in place, on the outputs of the layers before it.

    log_source_prior: [C], for the validation NLL. penalty: the strength of the L2 penalty; None
    chooses it on the validation split, or takes WITHOUT_VALIDATION if there is none. Raises
    WrongUse when an earlier layer has parameters to train: only the last layer is fitted.
    """
    _, head = head_of(network)
    own = {id(parameter) for parameter in head.parameters()}
    if any(id(p) not in own and p.requires_grad for p in network.parameters()):
        raise WrongUse(
            "--optimiser lbfgs fits a linear layer on fixed features (networks linear and tfidf); "
            "this network has parameters before its last layer; use --optimiser sgd or adamw"
        )
    train = _features(network, data, data.train, device)
    val = None if data.val is None else _features(network, data, data.val, device)
    span = Span.of(train) if isinstance(train, csr_matrix) and _is_dense(train) else None
    if span is not None:
        train, val = span.rows, None if val is None else span.coordinates(val)
    objective = objective.at(1.0)
    layer = LastLayer(np.zeros((head.out_features, train.shape[1])), np.zeros(head.out_features))
    if penalty is not None or val is None or data.val is None:
        used = WITHOUT_VALIDATION if penalty is None else penalty
        found = Penalised(_fitted(train, data.train.labels, objective, layer, used), used)
    else:
        found = _chosen(
            (train, data.train.labels), (val, data.val.labels), objective, layer, log_source_prior
        )
    if span is not None:
        found = replace(found, layer=LastLayer(span.weights(found.layer.weight), found.layer.bias))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(found.layer.weight))
        head.bias.copy_(torch.from_numpy(found.layer.bias))
    return found


@dataclass(frozen=True)
class Span:
    """The span of the n training rows X; a layer fitted with a penalty has its weights in it.

    With X Xᵀ = L Lᵀ and the orthonormal basis Q = L⁻¹ X, the rows have the coordinates L. Lengths,
    and so the penalty, do not change. Each row is then n numbers instead of thousands of features.
    """

    features: csr_matrix
    """X [n, D], float64"""
    factor: torch.Tensor
    """L [n, n], float64"""

    @classmethod
    def of(cls, features: csr_matrix) -> "Span":
        """Compute the span; the Gram matrix gets a tiny ridge, because rows may be equal."""
        wide = features.astype(np.float64)
        gram = torch.from_numpy((wide @ wide.T).toarray())
        gram.diagonal().add_(ROUNDING * float(gram.diagonal().max()))
        return cls(wide, torch.linalg.cholesky(gram))

    @property
    def rows(self) -> NDArray[np.float32]:
        """The coordinates [n, n] of the training rows in the basis."""
        return self.factor.float().numpy()

    def coordinates(self, features: csr_matrix) -> NDArray[np.float32]:
        """Project other rows [m, D] onto the span, and return their coordinates [m, n]."""
        gram = torch.from_numpy((self.features @ features.astype(np.float64).T).toarray())
        found = torch.linalg.solve_triangular(self.factor, gram, upper=False)
        coordinates: NDArray[np.float32] = found.T.contiguous().float().numpy()
        return coordinates

    def weights(self, weight: Vector) -> Vector:
        """Convert weights [C, n] for coordinates into weights [C, D] for features: w L⁻¹ X."""
        turned = torch.linalg.solve_triangular(
            self.factor.T, torch.from_numpy(weight.T.copy()), upper=True
        )
        found: Vector = (self.features.T @ turned.numpy()).T
        return found


def _is_dense(features: csr_matrix) -> bool:
    """Return whether n coordinates per row multiply faster than the row's non-zero features."""
    rows = features.shape[0]
    return bool(rows <= MOST_IN_SPAN and rows * rows < DENSE_SPEED * features.nnz)


def _chosen(
    train: tuple[Features, Labels],
    val: tuple[Features, Labels],
    objective: Objective,
    layer: LastLayer,
    log_source_prior: Vector,
) -> Penalised:
    """Fit with penalties from strong to weak, each from the fit before it, and keep the best."""
    best: Penalised | None = None
    curve: list[tuple[float, float]] = []
    for penalty in PENALTIES:
        layer = _fitted(*train, objective, layer, penalty)
        logits = np.asarray(val[0] @ layer.weight.T) + layer.bias
        curve.append((penalty, uniform_nll(logits, val[1], log_source_prior=log_source_prior)))
        if best is None or curve[-1][1] < min(nll for _, nll in curve[:-1]):
            best = Penalised(layer, penalty)
        elif all(nll > dict(curve)[best.penalty] for _, nll in curve[-WORSE:]):
            break
    assert best is not None
    return Penalised(best.layer, best.penalty, tuple(curve))


def _fitted(
    features: Features, labels: Labels, objective: Objective, start: LastLayer, penalty: float
) -> LastLayer:
    classes, size = start.weight.shape
    rows = len(labels)
    targets = torch.from_numpy(labels)
    times, turned = _products(features)

    def value(parameters: Vector) -> tuple[float, Vector]:
        weight = parameters[: classes * size].reshape(classes, size)
        logits = times(weight.T.astype(np.float32)).astype(np.float64)
        scored = torch.from_numpy(logits + parameters[classes * size :]).requires_grad_()
        loss = objective(scored, targets)
        (slope,) = torch.autograd.grad(loss, scored)
        g = slope.numpy()
        own = turned(g.astype(np.float32)).T.astype(np.float64)
        own += penalty / rows * weight
        total = float(loss.detach()) + penalty / 2 / rows * float(np.vdot(weight, weight))
        return total, np.concatenate([own.ravel(), g.sum(axis=0)])

    first = np.concatenate([start.weight.ravel(), start.bias])
    options: dict[str, Any] = {"maxiter": MAX_ITERATIONS, "ftol": 1e-8, "gtol": 1e-6}
    with _threads(rows * size * classes):
        result = minimize(value, first, jac=True, method="L-BFGS-B", options=options)
    if not np.isfinite(result.fun):
        raise WrongUse(
            "the loss is not finite; scale down extreme features, or choose milder loss options"
        )
    if result.nit >= MAX_ITERATIONS:
        say(f"penalty {penalty:g}: stopped after {MAX_ITERATIONS} iterations, near the minimum")
    found = result.x[: classes * size].reshape(classes, size)
    return LastLayer(found, result.x[classes * size :])


Product: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _products(features: Features) -> tuple[Product, Product]:
    """Return two functions of M: features @ M, and features.T @ M.

    torch multiplies dense features. NumPy's BLAS starts threads even for small products, which
    takes thirty times as long on a busy machine.
    """
    if isinstance(features, csr_matrix):
        turned = features.T.tocsr()
        return lambda m: features @ m, lambda m: turned @ m
    x = torch.from_numpy(features)
    return (
        lambda m: (x @ torch.from_numpy(m)).numpy(),
        lambda m: (x.T @ torch.from_numpy(m)).numpy(),
    )


@contextmanager
def _threads(products: int) -> Iterator[None]:
    """Limit torch to one thread if a pass has too few products for more threads to help."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if products < PRODUCTS_A_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _features(network: nn.Module, data: Dataset, split: Split, device: torch.device) -> Features:
    """Return the inputs of the last layer [n, D]; TF-IDF features as a sparse matrix."""
    weigher = next((m for m in network.modules() if isinstance(m, TfIdf)), None)
    if weigher is not None and data.vocabulary is not None:
        texts = Encoded.of(list(np.asarray(split.inputs)), data.vocabulary)
        return weigher.sparse(texts.numbers, texts.starts)
    return features_of(network, data, split, device=device)
