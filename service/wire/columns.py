"""JSON rows of a model with several inputs → records with a field for each input.

A row is an object by column name, or a list in the order of the model's inputs. A fault names the
row and the column.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.shown import short

Array = NDArray[Any]


def record_rows(
    instances: Sequence[Any],
    spec: InputSpec,
    *,
    array_of: Callable[[Sequence[Any], InputSpec], Array],
    first_row: int = 0,
) -> Array:
    """[n] records of JSON rows. Raises InvalidInput.

    array_of: makes the tensor of one column. first_row: the number of the first row, for messages.
    """
    names = [column.name for column in spec.columns]
    values: dict[str, list[Any]] = {name: [] for name in names}
    for row, item in enumerate(instances, first_row):
        if isinstance(item, dict):
            if item.keys() != values.keys():
                raise InvalidInput(f"instance {row} {wrong_names(item, names)}")
            for name in names:
                values[name].append(item[name])
        elif isinstance(item, list) and len(item) == len(names):
            for name, value in zip(names, item, strict=True):
                values[name].append(value)
        else:
            raise InvalidInput(
                f"instance {row} is {short(item)}; expected an object or a list of "
                f"{', '.join(names)}"
            )
    return records({c.name: _column(values[c.name], c, array_of) for c in spec.columns})


def rows_of_columns(columns: Any, *, max_rows: int) -> list[dict[str, Any]]:
    """The rows of {"column": [value of each row, …], …}. Raises Malformed or TooLarge."""
    if not isinstance(columns, dict) or not columns:
        raise Malformed(f"inputs is {short(columns)}; expected an object of lists by column name")
    for name, values in columns.items():
        if not isinstance(values, list):
            raise Malformed(f"inputs: column '{name[:60]}' is {short(values)}; expected a list")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        shown = ", ".join(f"{name[:40]}: {len(v)}" for name, v in list(columns.items())[:8])
        raise Malformed(
            f"inputs has columns of different lengths ({shown}); expected lists of one length"
        )
    if max(lengths) > max_rows:
        raise TooLarge(
            f"the columns have more than {max_rows} rows, the most that can wait: send fewer"
        )
    by_row = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in by_row]


def ordered_rows(
    instances: Sequence[Any], names: Sequence[str], *, first_row: int = 0
) -> list[list[Any]]:
    """Rows that are objects by column name, as lists in the order of `names`.

    Raises InvalidInput that names the row and the column.
    """
    found, wanted = [], set(names)
    for row, item in enumerate(instances, first_row):
        if not isinstance(item, dict):
            raise InvalidInput(
                f"instance {row} is {short(item)}; expected an object of {', '.join(names)}"
            )
        if item.keys() != wanted:
            raise InvalidInput(f"instance {row} {wrong_names(item, names)}")
        found.append([item[name] for name in names])
    return found


def with_missing(values: Any) -> Any:
    """Nested lists of numbers with NaN for every null."""
    if isinstance(values, list):
        return [with_missing(each) for each in values]
    return np.nan if values is None else values


def check_finite_or_missing(array: Array, *, first_row: int = 0) -> None:
    """Raise InvalidInput naming the row that holds infinity; NaN is a missing value."""
    rows = np.flatnonzero(np.isinf(array).reshape(len(array), -1).any(axis=1))
    if len(rows):
        raise InvalidInput(
            f"instance {first_row + int(rows[0])} holds infinity; expected finite numbers, or NaN "
            "for a missing value"
        )


def _column(
    values: list[Any], spec: InputSpec, array_of: Callable[[Sequence[Any], InputSpec], Array]
) -> Array:
    """The tensor [n, …] of one column; a single number per row need not be in a list."""
    if len(spec.shape) == 2 and spec.shape[1] in {1, None} and spec.kind != "text":
        values = [value if isinstance(value, list) else [value] for value in values]
    elif len(spec.shape) == 2 and spec.shape[1] == 1:
        values = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]
    try:
        found = array_of(values, spec)
    except InvalidInput as error:
        raise InvalidInput(f"column '{spec.name}': {error}") from None
    return found if found.dtype.names is None else found[spec.name]


def wrong_names(item: Mapping[str, Any], names: Sequence[str]) -> str:
    """What is wrong with the names of a row's columns, and the nearest right name."""
    missing = [name for name in names if name not in item]
    unknown = [name for name in item if name not in names]
    if not unknown:
        return f"lacks column '{missing[0]}'; the model takes {', '.join(names)}"
    near = difflib.get_close_matches(unknown[0][:60], missing or names, n=1)
    meant = f"; did you mean '{near[0]}'?" if near else f"; the model takes {', '.join(names)}"
    return f"has an unknown column '{unknown[0][:60]}'{meant}"
