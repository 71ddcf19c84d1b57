"""Rows of a model with several inputs: one record a row, a field for each input of the graph.

A NumPy structured array is cut, joined and counted row by row like any other array, so that the
queue and the batches need not know how many inputs a model has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import InputSpec


def records(columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """[n] records of columns [n, …] by name; strings stay Python objects."""
    rows = len(next(iter(columns.values())))
    dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in columns.items()])
    found = np.empty(rows, dtype)
    for name, array in columns.items():
        found[name] = array
    return found


def fields(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of records, each contiguous: what the graph is fed."""
    assert rows.dtype.names is not None
    return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}


def empty_record(columns: Sequence[InputSpec], *, free: int) -> NDArray[Any]:
    """[1] record of zeros and empty strings; `free` is the size of dimensions left free."""
    made = {}
    for column in columns:
        shape = (1, *(free if n is None else n for n in column.shape[1:]))
        text = column.dtype == "string"
        made[column.name] = np.full(shape, "", object) if text else np.zeros(shape, column.dtype)
    return records(made)
