"""Vectors as objects by class name and back, in slices.

One call for all of a million classes would hold the interpreter lock for 300 ms, during which no
other thread could run, not even the event loop.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

SLICE = 4096
"""Entries that are handled in one call, in about a millisecond."""
VAST = 100_000
"""The most entries of a dict or set that is made here. A larger one is copied as it grows, in one
call: for 700,000 entries this takes 70 ms, and freeing them 20 ms.
"""


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


def short_form(
    class_names: Sequence[str], values: Sequence[float] | NDArray[np.floating]
) -> dict[str, float] | list[float]:
    """The values [C] by class name, or of more than VAST classes in class order."""
    return by_class(class_names, values) if len(class_names) <= VAST else list_of(values)


def list_of(values: Sequence[float] | NDArray[np.floating]) -> list[float]:
    """Numbers as a list."""
    found: list[float] = []
    for at in range(0, len(values), SLICE):
        part = values[at : at + SLICE]
        found += part.tolist() if isinstance(part, np.ndarray) else part
    return found


def vector_of(values: Sequence[float]) -> NDArray[np.float64]:
    """Numbers as an array [C]."""
    if len(values) <= SLICE:
        return np.array(values, np.float64)
    slices = range(0, len(values), SLICE)
    return np.concatenate([np.array(values[at : at + SLICE], np.float64) for at in slices])


def places_of(wanted: Collection[str], class_names: Sequence[str]) -> dict[str, int]:
    """The index of each wanted name that a class has. wanted: a set or the keys of a dict."""
    return {name: place for place, name in enumerate(class_names) if name in wanted}


def are_equal(
    one: Sequence[float] | dict[str, float],
    other: Sequence[float] | dict[str, float],
    class_names: Sequence[str] | None = None,
) -> bool:
    """Whether two vectors have the same values.

    A list in class order may equal a dict by class name only where class_names are given.
    """
    if len(one) != len(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return all(other.get(name) == value for name, value in one.items())
    if isinstance(other, dict):
        one, other = other, one
    if isinstance(one, dict):
        if class_names is None or len(class_names) != len(other):
            return False
        return all(one.get(name) == b for name, b in zip(class_names, other, strict=True))
    return all(a == b for a, b in zip(one, other, strict=True))
