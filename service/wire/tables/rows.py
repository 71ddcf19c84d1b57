"""Named columns of a table → the model's input tensor. A fault names the column and the row."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.wire.arrays import fitted, text_array, texts_per_row
from service.wire.columns import wrong_names
from service.wire.faults import InvalidInput
from service.wire.shown import shape_words, short

Array = NDArray[Any]
Column: TypeAlias = Array | list[str | None]
"""Numbers [n, …] or texts; a missing value is NaN among numbers and None among texts."""
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def expected_names(spec: InputSpec, names: Sequence[str] | None, *, model: str) -> list[str] | None:
    """The columns that a table must have, in the model's order; None for one of any name.

    names: the column names of a model with a single input, where its model.json has them. Raises
    InvalidInput for a model that cannot take a table.
    """
    if spec.columns:
        return [column.name for column in spec.columns]
    if spec.kind == "image" or len(spec.shape) > 2:
        raise InvalidInput(
            f"the body is a table; model '{model}' takes {spec.kind}s in the shape "
            f"{shape_words(spec.shape)}: send a .npy array"
        )
    width = texts_per_row(spec) if None not in spec.shape[1:] else None
    if names is not None and width in {None, len(names)}:
        return list(names)
    if width == 1:
        return None
    raise InvalidInput(
        f"model '{model}' does not name its columns, so a table's cannot be put in order: "
        "import it with --column-names, send text/csv;header=absent with the columns in "
        "the model's order, or send a .npy array"
    )


def without_index(found: Sequence[str], expected: Sequence[str] | None) -> list[str]:
    """The names of a table's columns without those in which pandas keeps an index without a name.

    pandas writes the index of a frame whose rows were filtered or sorted into Arrow and Parquet.
    """
    return [n for n in found if n in (expected or ()) or not _PANDAS_INDEX.fullmatch(n)]


def check_names(found: Sequence[str], expected: Sequence[str] | None) -> None:
    """Raise InvalidInput for columns that are missing, unknown, unnamed or duplicated."""
    if "" in found:
        raise InvalidInput(
            "the table has a column without a name; if it is an index, leave it out "
            "(pandas: index=False)"
        )
    if len(set(found)) != len(found):
        twice = next(name for at, name in enumerate(found) if name in found[:at])
        raise InvalidInput(f"the table has the column {short(twice)} twice; keep one of them")
    if expected is None:
        if len(found) != 1:
            raise InvalidInput(
                f"the table has {len(found)} columns; the model takes one: send that column only"
            )
    elif set(found) != set(expected):
        raise InvalidInput(f"the table {wrong_names(dict.fromkeys(found), expected)}")


def table_rows(table: Mapping[str, Column], spec: InputSpec, order: Sequence[str] | None) -> Array:
    """The model's input of a table whose names were checked. Raises InvalidInput or TooLarge.

    order: the names of the columns in the model's order; None: there is one column.
    """
    if not len(next(iter(table.values()))):
        raise InvalidInput("the table has no rows; expected at least one")
    if spec.columns:
        return records({each.name: column_tensor(table[each.name], each) for each in spec.columns})
    columns = [(name, table[name]) for name in order or table]
    if spec.kind == "text":
        texts = [_texts(values, name, spec) for name, values in columns]
        return text_array([text for row in zip(*texts, strict=True) for text in row], spec)
    numbers = [_numbers(values, name, spec) for name, values in columns]
    for (name, _), values in zip(columns, numbers, strict=True):
        if values.ndim != 1:
            raise InvalidInput(f"column {short(name)} holds lists; expected one number a row")
    stacked = np.column_stack(numbers)
    return fitted(stacked.ravel() if len(spec.shape) == 1 else stacked, spec)


def column_tensor(values: Column, spec: InputSpec) -> Array:
    """The tensor [n, …] of one input of a model that has several."""
    if spec.kind == "text":
        return text_array(_texts(values, spec.name, spec), spec)
    found = _numbers(values, spec.name, spec)
    if found.ndim == 1 and len(spec.shape) == 2:
        found = found[:, np.newaxis]
    try:
        array = fitted(found, spec)
    except InvalidInput as error:
        raise InvalidInput(f"column {short(spec.name)}: {error}") from None
    return array if array.dtype.names is None else array[spec.name]


def _texts(values: Column, name: str, spec: InputSpec) -> list[str]:
    """The texts of a column. A missing one is empty where the model takes it, else InvalidInput."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind != "U" or math.prod(values.shape[1:]) != 1:
            raise InvalidInput(f"column {short(name)} holds {values.dtype}; expected texts")
        values = values.ravel().tolist()
    if spec.missing:
        return ["" if text is None else text for text in values]
    for row, text in enumerate(values):
        if text is None:
            raise InvalidInput(f"column {short(name)}, instance {row} is empty; expected a text")
    return values  # type: ignore[return-value]


def _numbers(values: Column, name: str, spec: InputSpec) -> Array:
    """The numbers of a column; NaN stays where the model takes it as a missing value."""
    if isinstance(values, list):
        values = _parsed(values, name, spec)
    if values.dtype.kind not in "biuf":
        raise InvalidInput(f"column {short(name)} holds {values.dtype}; expected numbers")
    if values.dtype.kind == "f":
        wrong = ~np.isfinite(values)
        if spec.missing:
            wrong &= ~np.isnan(values)
        if wrong.any():
            row = int(np.flatnonzero(wrong.reshape(len(values), -1).any(axis=1))[0])
            raise InvalidInput(_not_a_number(name, row, values[row], spec))
    if values.dtype.kind == "f" and np.dtype(spec.dtype).kind in "iu":
        values = _whole(values, name, spec)
    return values


def _not_a_number(name: str, row: int, value: Any, spec: InputSpec) -> str:
    missing = not np.isinf(value).any()
    held = "is empty" if missing else "is infinite"
    wanted = "a finite number"
    if missing and not spec.missing:
        wanted = "a number: the model takes no missing value there"
    return f"column {short(name)}, instance {row} {held}; expected {wanted}"


def _whole(values: Array, name: str, spec: InputSpec) -> Array:
    """Integers from floats that hold whole numbers, as pandas stores integers with missing ones."""
    odd = np.flatnonzero((values != np.floor(values)) | (np.abs(values) >= 2**53))
    if len(odd):
        raise InvalidInput(
            f"column {short(name)}, instance {int(odd[0])} is {values[odd[0]]:g}; "
            f"expected {spec.dtype}"
        )
    return values.astype(np.int64)


def _parsed(cells: list[str | None], name: str, spec: InputSpec) -> Array:
    """Numbers parsed from the texts of cells; an empty cell is a missing value."""
    found: list[float | int | bool] = []
    whole = np.dtype(spec.dtype).kind in "iu"
    for row, cell in enumerate(cells):
        try:
            found.append(_number(cell or "", spec, whole=whole))
        except ValueError:
            raise InvalidInput(
                f"column {short(name)}, instance {row} is {short(cell)}; expected {spec.dtype}"
            ) from None
    array = np.array(found)
    if array.dtype.kind == "O":
        raise InvalidInput(
            f"column {short(name)} holds a number beyond 64 bits; expected {spec.dtype}"
        )
    return array


def _number(cell: str, spec: InputSpec, *, whole: bool) -> float | int | bool:
    """One number. Raises ValueError."""
    text = cell.strip()
    if (
        not cell.isascii() or "_" in text or len(text) > 400
    ):  # float() takes other alphabets' digits
        raise ValueError
    if not text:
        return math.nan
    if spec.dtype == "bool":
        if text.lower() not in _TRUTHS:
            raise ValueError
        return _TRUTHS[text.lower()]
    if whole:
        try:
            return int(text)
        except ValueError:
            pass
    return float(text)
