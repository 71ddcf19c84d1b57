"""Vectors over a class list that have one value for all classes but a few: kept in O(k) memory.

A prior of a million classes that names a hundred of them is such a vector. Code that needs all
values makes the dense vector for the moment of use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import LOG_ZERO, Vector

SPARSE_FROM = 1000
"""The smallest class list whose priors are kept sparse. For fewer classes it would save nothing."""
_MOST = 16
"""At most one class in this many has a value of its own; beyond that, a dense vector is as good."""


@dataclass(frozen=True)
class Sparse:
    """A vector [size] of `base`, but for `values` [k] at the classes `at` [k], in ascending order.

    Of a list with k = size, base has no meaning.
    """

    size: int
    base: float
    at: NDArray[np.int64]
    values: Vector

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.at.nbytes + self.values.nbytes

    def dense(self) -> Vector:
        """The vector [size] as an array of its own."""
        whole = np.full(self.size, self.base)
        whole[self.at] = self.values
        return whole

    def __getitem__(self, classes: NDArray[np.int64]) -> Vector:
        """The values of some classes, in the shape of `classes`."""
        found = np.full(classes.shape, self.base)
        if len(self.at):
            place = np.minimum(np.searchsorted(self.at, classes), len(self.at) - 1)
            named = self.at[place] == classes
            found[named] = self.values[place[named]]
        return found

    def plus(self, amount: float) -> "Sparse":
        """The vector with an amount added to every value."""
        return Sparse(self.size, self.base + amount, self.at, self.values + amount)

    def normalised(self) -> "Sparse":
        """Weights of at least 0, not all 0, divided by their sum."""
        peak = max(self.base, self.values.max(initial=0.0))  # so that the sum cannot overflow
        base, values = self.base / peak, self.values / peak
        total = (self.size - len(values)) * base + values.sum()
        return Sparse(self.size, base / total, self.at, values / total)

    def log(self, power: float = 1.0) -> "Sparse":
        """The log of weights ** power, normalised; LOG_ZERO where a weight is 0.

        Weights are at least 0 and not all 0.
        """
        every = np.append(self.values, self.base)
        possible = every > 0
        logs = np.full(every.shape, LOG_ZERO)
        logs[possible] = power * np.log(every[possible])
        counts = np.append(np.ones(len(self.values)), self.size - len(self.values))
        peak = logs.max()
        total = peak + np.log((counts * np.exp(logs - peak)).sum())
        logs[possible] -= total
        return Sparse(self.size, float(logs[-1]), self.at, logs[:-1])


@dataclass(frozen=True)
class Shared:
    """A vector [C] that many priors of a model share, so that none of them counts its memory."""

    vector: Vector
    nbytes: int = 0

    def dense(self) -> Vector:
        """The shared array, which must not be written to."""
        return self.vector

    def __getitem__(self, classes: NDArray[np.int64]) -> Vector:
        """The values of some classes, in the shape of `classes`."""
        return self.vector[classes]


Held: TypeAlias = Vector | Sparse | Shared


def dense(held: Held) -> Vector:
    """The vector [C] as an array, not to be written to."""
    return held if isinstance(held, np.ndarray) else held.dense()


@dataclass(frozen=True)
class SparseOffset:
    """log σ − log ρ [C] in float32, of a prior whose log ρ is sparse.

    NumPy accepts it in place of an array; each use makes the dense array again.
    """

    log_source: Held
    log_target: Sparse

    @property
    def nbytes(self) -> int:
        """Memory that this object adds to that of the prior: none."""
        return 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        """[C] in float32, or as another type; always a new array."""
        whole = (dense(self.log_source) - self.log_target.dense()).astype(np.float32)
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """The offsets of some classes, in the shape of `classes`."""
        return (self.log_source[classes] - self.log_target[classes]).astype(np.float32)


def sparse_weights(
    spec: Mapping[str, float], others: float | None, class_names: Sequence[str]
) -> Sparse | None:
    """Weights by class name as a sparse vector; None where they are not sparse or not valid.

    others: the weight of each class that is not named.
    """
    if others is None or len(spec) * _MOST > len(class_names):
        return None
    named = [(place, spec[name]) for place, name in enumerate(class_names) if name in spec]
    if len(named) < len(spec):
        return None
    at = np.fromiter((place for place, _ in named), np.int64, len(named))
    values = np.fromiter((value for _, value in named), np.float64, len(named))
    if not (np.isfinite(values).all() and (values >= 0).all() and (others > 0 or values.any())):
        return None
    return Sparse(len(class_names), float(others), at, values)
