"""Vectors as objects by class name and back, in slices.

One call for all of a million classes would keep the interpreter for 300 ms, and meanwhile no other
thread could run, the event loop's among them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLICE = 4096
"""Entries that are handled in one call, in about a millisecond."""


def by_class(
    class_names: Sequence[str], values: Sequence[float] | NDArray[np.floating]
) -> dict[str, float]:
    """The values [C], by class name. Raises ValueError for another number of values."""
    found: dict[str, float] = {}
    for at in range(0, max(len(class_names), len(values)), SLICE):
        part = values[at : at + SLICE]
        numbers = part.tolist() if isinstance(part, np.ndarray) else part
        found.update(zip(class_names[at : at + SLICE], numbers, strict=True))
    return found


def vector_of(values: Sequence[float]) -> NDArray[np.float64]:
    """Numbers as an array [C]."""
    if len(values) <= SLICE:
        return np.array(values, np.float64)
    slices = range(0, len(values), SLICE)
    return np.concatenate([np.array(values[at : at + SLICE], np.float64) for at in slices])


def set_of(names: Sequence[str]) -> set[str]:
    """The names as a set."""
    found: set[str] = set()
    for at in range(0, len(names), SLICE):
        found.update(names[at : at + SLICE])
    return found


def are_equal(
    one: Sequence[float] | dict[str, float], other: Sequence[float] | dict[str, float]
) -> bool:
    """Whether two vectors have the same form, and the same values in it."""
    if type(one) is not type(other) or len(one) != len(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return all(other.get(name) == value for name, value in one.items())
    return all(a == b for a, b in zip(one, other, strict=True))
