"""Rows of a model with several inputs: one record per row, with a field for each input of the
graph.

A NumPy structured array is cut, joined and counted row by row like any other array. The queue and
the batches therefore need not know how many inputs a model has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import InputSpec


def records(columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """[n] records of columns [n, …] by name; strings stay Python objects."""
    rows = len(next(iter(columns.values())))
    dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in columns.items()])
    found = np.empty(rows, dtype)
    for name, array in columns.items():
        found[name] = array
    return found


def fields(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of records by name, each contiguous, as the graph's inputs."""
    assert rows.dtype.names is not None
    return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}


def float_names(spec: InputSpec) -> tuple[str, ...]:
    """The float columns of an input, or its own name."""
    return tuple(c.name for c in spec.columns or (spec,) if c.dtype.startswith("float"))


def float_rows(rows: NDArray[Any], names: Sequence[str]) -> NDArray[Any]:
    """Rows [n, …] of numbers: the rows themselves, or the named fields of records."""
    if rows.dtype.names is None:
        return rows
    found = [rows[name] for name in names]
    if len(found) == 1:
        return found[0]
    return np.concatenate([values.reshape(len(values), -1) for values in found], axis=1)


def empty_values(spec: InputSpec, shape: Sequence[int]) -> NDArray[Any]:
    """[1, …] values that an input accepts: zeros, empty texts, or each column's first category.

    shape: the shape of the result; its first axis is 1.
    """
    values: NDArray[Any] = np.full(
        shape,
        "" if spec.dtype == "string" else 0,
        object if spec.dtype == "string" else spec.dtype,
    )
    if spec.categories:
        flat = values.reshape(-1)
        for at in range(len(flat)):
            if known := spec.categories_of(at):
                flat[at] = known[0]
    return values


def empty_record(columns: Sequence[InputSpec], *, free: int) -> NDArray[Any]:
    """[1] record that the model accepts: zeros, empty strings, or each column's first category.

    free: the size to use for dimensions that the model leaves free.
    """
    made = {}
    for column in columns:
        shape = (1, *(free if n is None else n for n in column.shape[1:]))
        made[column.name] = empty_values(column, shape)
    return records(made)
