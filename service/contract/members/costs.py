"""Costs beside a target: what each wrong decision costs, and the decision that costs least.

    d = argmin_k Σ_y p_y · L[y, k]        p: the adjusted posterior; L[y, k]: deciding k, truth y

L[y, k] is 0 for y = k and `miss` of y otherwise (1 unless given); an entry of `pairs` overrides it.
`matrix` gives every entry of L instead. `reject` is the cost of leaving a row undecided: a row is
rejected when every decision is expected to cost more (Chow 1970; Elkan, IJCAI 2001, eq. 1). The
posterior itself is not changed by costs.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.contract.adjustment import Vector
from service.contract.members.named import places_of
from service.contract.strict import Strict

MAX_PAIRS = 100_000
"""Pairs of classes with a cost of their own in one prior."""
MAX_MATRIX_CLASSES = 1_000
"""Classes up to which a prior can give the whole matrix of costs."""
MAX_COST = 1e12
"""Largest cost: sums of costs times probabilities stay exact to a few digits."""
MIN_LARGEST_COST = 1e-12
"""The largest cost of a prior is at least this: products with small probabilities stay above 0."""
MAX_RATIO = 1e8
"""Where one cost is more than this many times another, differences of sums would lose digits."""
REJECTED = -1
"""The index of a decision to leave a row undecided."""

Fault: TypeAlias = tuple[str, str]
_CHUNK_CELLS = 1_000_000
_DENSE_SHARE = 4


class CostsBody(Strict):
    """The form of `costs` in a prior's JSON (docs/priors.md)."""

    miss: dict[str, float] | list[float] | None = None
    pairs: Annotated[list[list[str | float]], Field(max_length=MAX_PAIRS)] = Field(
        default_factory=list
    )
    matrix: Annotated[list[list[float]], Field(max_length=MAX_MATRIX_CLASSES)] | None = None
    reject: Annotated[float, Field(ge=0, le=MAX_COST)] | None = None


@dataclass(frozen=True)
class Decisions:
    """For each of n rows, the index of the decided class (or REJECTED) and its expected cost."""

    index: NDArray[np.int64]  # [n]
    expected_cost: Vector  # [n]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of classes, and how much each costs beyond `miss` of the true class."""

    true: NDArray[np.int64]  # [P], sorted by the class decided
    more: Vector  # [P]
    starts: NDArray[np.int64]  # [U], where each decided class begins
    decided: NDArray[np.int64]  # [U]


@dataclass(frozen=True)
class Costs:
    """Checked costs of one class list. Either `miss` with `pairs`, or the whole `matrix` [C, C]."""

    reject: float | None
    miss: Vector | None = field(default=None, repr=False)
    pairs: _Pairs | None = field(default=None, repr=False)
    matrix: Vector | None = field(default=None, repr=False)
    is_wide: bool = False
    """Whether costs without pairs or a matrix differ by more than MAX_RATIO."""

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return sum(array.nbytes for array in self._arrays())

    def digest(self) -> bytes:
        """Identifies the costs: equal where the arrays and the cost of rejection are."""
        found = hashlib.sha256(repr(self.reject).encode())
        for array in self._arrays():
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
        return found.digest()

    def _arrays(self) -> list[NDArray[Any]]:
        pairs = self.pairs
        of_pairs = () if pairs is None else (pairs.true, pairs.more, pairs.starts, pairs.decided)
        return [array for array in (self.miss, self.matrix, *of_pairs) if array is not None]

    def expected(self, probabilities: NDArray[Any]) -> Vector:
        """The expected cost [n, C] of deciding each class, of posteriors [n, C]."""
        posterior = np.asarray(probabilities, np.float64)
        if self.matrix is not None:
            product: Vector = posterior @ self.matrix
            return product
        assert self.miss is not None
        missed = posterior * self.miss
        expected: Vector = missed.sum(axis=1, keepdims=True) - missed
        if self.is_wide:  # the largest entry hides the others in the sum: that one leaves it out
            largest = missed.argmax(axis=1)[:, None]
            np.put_along_axis(missed, largest, 0.0, axis=1)
            np.put_along_axis(expected, largest, missed.sum(axis=1, keepdims=True), axis=1)
        pairs = self.pairs
        if pairs is not None:
            step = max(1, _CHUNK_CELLS // len(pairs.true))
            for start in range(0, len(expected), step):
                rows = slice(start, start + step)
                more = posterior[rows][:, pairs.true] * pairs.more
                expected[rows, pairs.decided] += np.add.reduceat(more, pairs.starts, axis=1)
        return expected

    def decide(self, probabilities: NDArray[Any]) -> Decisions:
        """The cheapest decision of each row of posteriors [n, C]; ties go to the lower index.

        A row is rejected only where that is expected to cost less than every class.
        """
        expected = self.expected(probabilities)
        index: NDArray[np.int64] = expected.argmin(axis=1)
        cost: Vector = np.take_along_axis(expected, index[:, None], axis=1)[:, 0]
        if self.reject is not None:
            rejected = self.reject < cost
            index[rejected], cost[rejected] = REJECTED, self.reject
        return Decisions(index, np.maximum(cost, 0.0))  # a difference may come out below 0

    def of_decisions(self, probabilities: NDArray[Any], index: NDArray[np.int64]) -> Vector:
        """The expected cost [n] of given decisions [n] under posteriors [n, C]."""
        expected = self.expected(probabilities)
        taken = np.take_along_axis(expected, np.maximum(index, 0)[:, None], axis=1)[:, 0]
        rejected = 0.0 if self.reject is None else self.reject
        found: Vector = np.where(index == REJECTED, rejected, taken)
        return found


def form_faults(value: object) -> list[Fault]:
    """What is wrong with the form of `costs`, each fault under its field; empty where nothing is.

    It reads at most a few faults, whatever the size of the value.
    """
    if value is None:
        return []
    if not isinstance(value, dict):
        return [
            ("costs", f"expected an object with miss, pairs or matrix, and reject; {_got(value)}")
        ]
    faults = [
        (f"costs.{name}"[:80], "unknown member")
        for name in value
        if name not in CostsBody.model_fields
    ]
    faults += _miss_faults(value.get("miss"))
    faults += _pair_faults(value.get("pairs", []))
    faults += _matrix_faults(value.get("matrix"))
    reject = value.get("reject")
    if reject is not None and not _is_cost(reject):
        faults.append(("costs.reject", _expected(reject)))
    if value.get("matrix") is not None and (value.get("miss") is not None or value.get("pairs")):
        faults.append(("costs.matrix", "gives every cost; leave out miss and pairs"))
    if not any(value.get(name) for name in ("miss", "pairs", "matrix")) and reject is None:
        faults.append(("costs", "is empty; give miss, pairs, matrix or reject"))
    return faults


def resolve_costs(body: CostsBody, class_names: Sequence[str], faults: list[Fault]) -> Costs | None:
    """The costs of a class list; None, with what is wrong added to `faults`."""
    before = len(faults)
    if body.matrix is not None:
        return _whole(body.matrix, body.reject, len(class_names), faults)
    named = set(body.miss) if isinstance(body.miss, dict) else set()
    named.update(str(name) for true, decided, _ in body.pairs for name in (true, decided))
    places = places_of(named, class_names)
    miss = _miss(body.miss, class_names, places, faults)
    found: dict[tuple[int, int], float] = {}
    for number, (true, decided, cost) in enumerate(body.pairs):
        unknown = [str(name) for name in (true, decided) if name not in places]
        if unknown:
            faults.append((f"costs.pairs.{number}", f"unknown class '{unknown[0][:60]}'"))
            continue
        pair = places[str(true)], places[str(decided)]
        if pair[0] == pair[1]:
            faults.append((f"costs.pairs.{number}", f"'{true}' twice; expected two classes"))
        elif pair in found:
            faults.append(
                (f"costs.pairs.{number}", f"'{true}', '{decided}' occurs twice; keep one")
            )
        else:
            found[pair] = float(cost)
    if len(faults) > before:
        return None
    if _too_small(max(float(miss.max()), *found.values(), 0.0), faults):
        return None
    is_wide = _is_wide([*miss[miss > 0].tolist(), *found.values(), body.reject or 0.0])
    if is_wide and found and len(class_names) > MAX_MATRIX_CLASSES:
        much = f"the largest cost is more than {MAX_RATIO:g} times the smallest above 0"
        where = f"too much beside pairs of more than {MAX_MATRIX_CLASSES} classes"
        faults.append(("costs.pairs", f"{much}, {where}; raise the smallest, or make it 0"))
        return None
    return _of_pairs(miss, found, body.reject, is_wide=is_wide)


def _is_wide(costs: list[float]) -> bool:
    """Whether one cost is more than MAX_RATIO times another that is above 0."""
    positive = [cost for cost in costs if cost > 0]
    return max(positive) > MAX_RATIO * min(positive)


def _too_small(largest: float, faults: list[Fault]) -> bool:
    """Whether no cost is large enough to decide by; the fault is then added to `faults`."""
    if largest >= MIN_LARGEST_COST:
        return False
    came = f"the largest cost is {largest:g}" if largest else "every decision costs 0"
    wanted = (
        f"expected a cost of at least {MIN_LARGEST_COST:g}"
        if largest
        else ("expected a cost above 0")
    )
    faults.append(("costs", f"{came}; {wanted}"))
    return True


def _whole(
    rows: list[list[float]], reject: float | None, classes: int, faults: list[Fault]
) -> Costs | None:
    if classes > MAX_MATRIX_CLASSES:
        most = f"a matrix may have at most {MAX_MATRIX_CLASSES}; use pairs"
        faults.append(("costs.matrix", f"the model has {classes} classes; {most}"))
    elif len(rows) != classes or any(len(row) != classes for row in rows):
        widths = sorted({len(row) for row in rows})[:3]
        came = f"has {len(rows)} rows of {', '.join(map(str, widths)) or 0} costs"
        wanted = f"the model has {classes} classes: a row for each true one, a column for each"
        faults.append(("costs.matrix", f"{came}; {wanted} decision"))
    else:
        matrix = np.array(rows, np.float64)
        if _too_small(matrix.max(), faults):
            return None
        return Costs(reject, matrix=matrix)
    return None


def _miss(
    spec: Mapping[str, float] | list[float] | None,
    class_names: Sequence[str],
    places: Mapping[str, int],
    faults: list[Fault],
) -> Vector:
    miss = np.ones(len(class_names))
    if isinstance(spec, list):
        if len(spec) == len(class_names):
            return np.array(spec, np.float64)
        faults.append(
            (
                "costs.miss",
                f"has {len(spec)} entries; expected {len(class_names)}, one for each class",
            )
        )
        return miss
    for name, cost in (spec or {}).items():
        if name in places:
            miss[places[name]] = cost
        else:
            faults.append((f"costs.miss.{name}"[:80], f"unknown class '{name[:60]}'"))
    return miss


def _of_pairs(
    miss: Vector,
    found: Mapping[tuple[int, int], float],
    reject: float | None,
    *,
    is_wide: bool,
) -> Costs:
    """The costs of misses and pairs. is_wide: as `_is_wide` says; a matrix then loses no digits."""
    classes = len(miss)
    if not found:
        return Costs(reject, miss=miss, is_wide=is_wide)
    true, decided = np.array(list(found), np.int64).T
    cost = np.fromiter(found.values(), np.float64, len(found))
    if classes <= MAX_MATRIX_CLASSES and (is_wide or len(found) > _DENSE_SHARE * classes):
        matrix = np.repeat(miss[:, None], classes, axis=1)
        np.fill_diagonal(matrix, 0.0)
        matrix[true, decided] = cost
        return Costs(reject, matrix=matrix)
    order = np.argsort(decided, kind="stable")
    true, decided, more = true[order], decided[order], (cost - miss[true])[order]
    each, starts = np.unique(decided, return_index=True)
    return Costs(reject, miss=miss, pairs=_Pairs(true, more, starts.astype(np.int64), each))


_MOST_FAULTS = 51
"""The most faults that are read: one more than an answer lists, so that it can say that there are
more.
"""


def _miss_faults(miss: object) -> list[Fault]:
    if miss is None:
        return []
    if not isinstance(miss, (dict, list)):
        return [("costs.miss", f"expected costs by class name, or a list; {_got(miss)}")]
    entries = miss.items() if isinstance(miss, dict) else enumerate(miss)
    return _first(
        (f"costs.miss.{key}"[:80], _expected(cost)) for key, cost in entries if not _is_cost(cost)
    )


def _pair_faults(pairs: object) -> list[Fault]:
    if not isinstance(pairs, list):
        return [("costs.pairs", f'expected a list of ["true", "decided", cost]; {_got(pairs)}')]
    if len(pairs) > MAX_PAIRS:
        return [("costs.pairs", f"has {len(pairs)} pairs; at most {MAX_PAIRS} are allowed")]
    return _first(
        (f"costs.pairs.{number}", f'expected ["true", "decided", cost]; {_got(pair)}')
        for number, pair in enumerate(pairs)
        if not (
            isinstance(pair, list)
            and len(pair) == 3
            and isinstance(pair[0], str)
            and isinstance(pair[1], str)
            and _is_cost(pair[2])
        )
    )


def _matrix_faults(matrix: object) -> list[Fault]:
    if matrix is None:
        return []
    if not isinstance(matrix, list) or not all(isinstance(row, list) for row in matrix):
        return [("costs.matrix", f"expected a list of rows of costs; {_got(matrix)}")]
    if len(matrix) > MAX_MATRIX_CLASSES:
        return [
            (
                "costs.matrix",
                f"has {len(matrix)} rows; at most {MAX_MATRIX_CLASSES} are allowed; use pairs",
            )
        ]
    return _first(
        (f"costs.matrix.{y}.{k}", _expected(cost))
        for y, row in enumerate(matrix)
        for k, cost in enumerate(row)
        if not _is_cost(cost)
    )


def _first(faults: Any) -> list[Fault]:
    return [fault for _, fault in zip(range(_MOST_FAULTS), faults, strict=False)]


def _is_cost(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= MAX_COST and math.isfinite(value)


def _expected(value: object) -> str:
    return f"expected a cost from 0 to {MAX_COST:g}; {_got(value)}"


def _got(value: object) -> str:
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"got a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return "got " + (text if len(text) <= 60 else text[:59] + "…")
