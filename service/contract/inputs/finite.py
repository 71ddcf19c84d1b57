"""Numbers that a model takes: neither NaN nor infinity."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_finite(array: NDArray[Any]) -> bool:
    """Whether all numbers are finite. The sum of squares shows NaN and infinity, and is faster."""
    if array.dtype == np.float32:
        flat = array.ravel()
        if math.isfinite(flat.dot(flat)):
            return True
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def rows_not_finite(array: NDArray[Any]) -> list[int]:
    """Positions of the rows that hold NaN or infinity."""
    rows: list[int] = np.flatnonzero(
        ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    ).tolist()
    return rows


def not_finite(dtype: np.dtype[Any]) -> str:
    """The message for a row that holds NaN or infinity, without its number."""
    return f"holds NaN or infinity in {dtype}; expected finite numbers"
