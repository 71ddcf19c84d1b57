"""Encodes columns of numbers and categories as rows of numbers, in a way that a graph can repeat.

A row is a record with a field per column: a number or a string. A category becomes the number of
its value, 1 … K, or 0 for a value unseen in training. A missing category is the empty string, which
counts as a value like any other; a missing number is NaN.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 1_000
"""The most values of a column that get a number: its most frequent ones."""
FEW_VALUES = 20
"""If a column has more values than this, those that occur in one training row get no number."""
KEPT = 0.99
"""float32 is used if it keeps at least this share of a column's distinct numbers apart."""


@dataclass(frozen=True)
class Column:
    """One column of a table: numbers if `values` is None, else a category with these values."""

    name: str
    dtype: str
    """The dtype of the graph's input: a float type, bool or string."""
    values: tuple[str, ...] | None = None
    missing: bool = False
    """Whether the column accepts NaN."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table of numbers and categories, in input order."""

    columns: tuple[Column, ...]

    @classmethod
    def learnt(cls, rows: NDArray[Any], *others: NDArray[Any]) -> "Columns":
        """Fit to the records of the training rows.

        others: the records of the other splits, where only missing numbers are looked for.
        """
        assert rows.dtype.names is not None
        return cls(tuple(_column(name, rows, others) for name in rows.dtype.names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """For each column, the number of its category's values; 0 for a numeric column."""
        return tuple(len(column.values or ()) for column in self.columns)

    def encode(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Encode records [n] as numbers [n, columns]."""
        found = np.empty((len(rows), len(self.columns)))
        for place, column in enumerate(self.columns):
            values = rows[column.name].reshape(-1)
            if column.values is None:
                found[:, place] = values
            else:
                code = {value: number for number, value in enumerate(column.values, 1)}
                found[:, place] = [code.get(value, 0) for value in values]
        return found


def written(value: Any) -> str:
    """Return a category as JSON and CSV write it: booleans in lower case, a missing one as ''."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_number(value: Any) -> bool:
    """Whether a cell is a number, or a text that is one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def has_missing(*arrays: NDArray[Any]) -> bool:
    """Return whether any of the arrays contains NaN."""
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in arrays)


def _column(name: str, rows: NDArray[Any], others: Sequence[NDArray[Any]]) -> Column:
    values = rows[name].reshape(-1)
    if values.dtype != object:
        missing = has_missing(values, *(other[name] for other in others))
        return Column(name, values.dtype.name, missing=missing)
    counts = Counter(values)
    fewest = 1 if len(counts) <= FEW_VALUES else 2
    ranked = sorted((v for v, n in counts.items() if n >= fewest), key=lambda v: (-counts[v], v))
    return Column(name, "string", tuple(ranked[:MAX_VALUES]))


def float_type(values: NDArray[np.float64]) -> type[np.floating[Any]]:
    """Return float32, or float64 if float32 would merge different values, as for Unix times."""
    there = values[~np.isnan(values)]
    kept = len(np.unique(there.astype(np.float32)))
    return np.float64 if kept < KEPT * len(np.unique(there)) else np.float32
