"""Converts the columns of a table to the inputs of a model, and names the first cell that does not
fit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from training.data.columns import is_number, written
from training.data.streams.rows import Reading, Rows, as_texts, check_lengths, fitted, narrowed
from training.faults import BadData, WrongUse

if TYPE_CHECKING:
    import pyarrow as pa


def features(path: Path, table: "pa.Table", start: int, reading: Reading) -> Rows:
    """Return the rows of a table, of which `start` is the first one's number, as model inputs.

    Raises WrongUse when the columns do not fit the model, BadData for a cell that does not.
    """
    import pyarrow as pa

    names = feature_names(path, table.column_names, reading)
    if reading.spec.columns:
        found = {spec.name: _column(path, table, start, spec) for spec in reading.spec.columns}
        return records(found)
    if reading.spec.kind == "text":
        return _texts(path, table.column(names[0]), start, names[0], reading.spec)
    if len(names) == 1 and pa.types.is_nested(table.column(names[0]).type):
        return _lists(path, table.column(names[0]), start, names[0], reading)
    gaps = reading.spec.missing
    columns = [_numbers(path, table.column(name), start, name, missing=gaps) for name in names]
    return fitted(path, np.stack(columns, axis=1), start, reading)


def feature_names(path: Path, columns: Sequence[str], reading: Reading) -> tuple[str, ...]:
    """Return the features among the columns of a table. Raises WrongUse unless the model fits."""
    aside = {*reading.keep, *reading.leave_out}
    names = reading.columns or tuple(n for n in columns if n not in aside)
    missing = [name for name in names if name not in columns]
    if missing:
        raise WrongUse(
            f"{path}: has no column '{missing[0]}' ({len(missing)} missing), which the model "
            f"takes; it has {listed(columns)}{_of_commas(columns)}"
        )
    if not names:
        raise WrongUse(
            f"{path}: every column is kept or left out; name the features with --columns"
        )
    if reading.spec.kind == "text" and len(names) != 1 and not reading.spec.columns:
        raise WrongUse(
            f"{path}: the model takes one text; name its column with --columns, one of "
            f"{listed(columns)}"
        )
    return names


def _of_commas(names: Sequence[str]) -> str:
    wrong = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
    return "; the columns of a CSV file are separated by commas" if wrong else ""


def listed(columns: Sequence[str]) -> str:
    """Name the columns of a table for a message, at most the first 20."""
    more = len(columns) - 20
    return ", ".join(columns[:20]) + (f" and {more} more" if more > 0 else "")


def _texts(path: Path, column: Any, start: int, name: str, spec: InputSpec) -> Rows:
    values = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise BadData(
                f"{path}, row {start + row}, column '{name}': {value!r} is not a text; expected a "
                "text in every row, which may be empty"
            )
    return as_texts(values, spec, lambda row: f"{path}, row {start + row}, column '{name}'")


def _lists(path: Path, column: Any, start: int, name: str, reading: Reading) -> Rows:
    if not hasattr(column.type, "value_type"):
        raise BadData(
            f"{path}, rows from {start}, column '{name}': holds {column.type}; expected lists of "
            "numbers, or a column for each number"
        )
    lengths = {None if each.as_py() is None else len(each) for each in column}
    if len(lengths) != 1 or None in lengths:
        raise BadData(
            f"{path}, rows from {start}, column '{name}': lists of different lengths, or missing "
            "ones; expected lists of one length in every row"
        )
    (length,) = lengths
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "iufb":
        raise BadData(
            f"{path}, rows from {start}, column '{name}': lists of {column.type.value_type}; "
            "expected lists of numbers"
        )
    return fitted(path, flat.reshape(-1, length), start, reading)


def _column(path: Path, table: "pa.Table", start: int, spec: InputSpec) -> Rows:
    """Read one input of a model whose inputs are a table's columns, [n, 1]."""
    column = table.column(spec.name)
    if spec.dtype != "string":
        values = _numbers(path, column, start, spec.name, missing=spec.missing)
        return narrowed(path, values[:, None], start, spec)
    cells = column.to_pylist()
    row = next((row for row, cell in enumerate(cells) if isinstance(cell, bytes | list | dict)), -1)
    if row >= 0:
        raise BadData(
            f"{path}, row {start + row}, column '{spec.name}': holds {str(cells[row])[:60]}; "
            "expected one string"
        )
    texts = [written(cell) for cell in cells]
    check_lengths(texts, lambda row: f"{path}, row {start + row}, column '{spec.name}'")
    found = np.empty((len(column), 1), dtype=object)
    found[:, 0] = texts
    return found


def _numbers(path: Path, column: Any, start: int, name: str, *, missing: bool) -> Rows:
    import pyarrow as pa

    if column.null_count and not missing:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        times = column.null_count
        more = f" ({times} rows of this block like it)" if times > 1 else ""
        raise BadData(
            f"{path}, row {start + row}, column '{name}': has no value{more}; give one, or leave "
            "these rows out"
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values = np.asarray(column.to_numpy())
    if column.null_count == len(values):
        return np.full(len(values), np.nan)
    if values.dtype == object and column.null_count:  # booleans with missing values
        values = np.array([np.nan if value is None else value for value in values])
    if values.dtype.kind not in "iufb":
        row = next((row for row, value in enumerate(values) if not is_number(value)), 0)
        raise BadData(
            f"{path}, row {start + row}, column '{name}': holds {str(values[row])[:60]!r}; "
            "expected numbers (name the features with --columns, or the others with --leave-out)"
        )
    wide = values.astype(np.float64)
    bad = np.flatnonzero(np.isinf(wide) if missing else ~np.isfinite(wide))
    if bad.size:
        raise BadData(
            f"{path}, row {start + bad[0]}, column '{name}': holds {values[bad[0]]}; "
            "expected a finite number"
        )
    return values
