"""The outputs of a foreign model: which one holds one column a class, and whether they are logits or probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import softmax

Array = NDArray[Any]
_SUM_TOLERANCE = 5e-3
"""Half-precision probabilities of many classes sum to 1 only roughly."""


class NoSuchOutput(ValueError):
    """No output, or more than one, could be the classifier's; the message lists what there is."""


@dataclass(frozen=True)
class Output:
    """The output that holds one column a class, and what it holds."""

    name: str
    kind: str
    columns: int


def choose_output(
    outputs: dict[str, Any], *, wanted: str | None, kind: str | None, classes: int | None
) -> Output:
    """The output with one column a class, of the outputs for some random rows. Raises NoSuchOutput.

    wanted and kind are what the caller said, classes the number of class names, None where it is not known. Of several outputs that
    say the same, logits are preferred to their softmax.
    """
    if wanted is not None and wanted not in outputs:
        raise NoSuchOutput(f"no output '{wanted}'; the file has {', '.join(outputs)}")
    tables = {
        name: table
        for name, value in outputs.items()
        if wanted in {None, name}
        and (table := as_table(value)) is not None
        and classes in {None, table.shape[1]}
    }
    if not tables:
        width = "C > 1" if classes is None else str(classes)
        shown = ", ".join(f"{name} {_shape_of(value)}" for name, value in outputs.items())
        raise NoSuchOutput(
            f"no output holds floats [batch, {width}]; for random rows the file gives {shown}"
        )
    name = _the_one(tables)
    table = tables[name]
    return Output(name, kind or _kind_of(name, table), table.shape[1])


def as_table(value: Any) -> Array | None:
    """An output as float64 [rows, C] with C > 1, ZipMap's list of dictionaries included; None for others."""
    if isinstance(value, list):
        if not value or not all(isinstance(row, dict) for row in value):
            return None
        value = np.array([list(row.values()) for row in value])
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != 2:
        return None
    return value.astype(np.float64) if value.shape[1] > 1 else None


def probabilities(value: Any, kind: str) -> Array:
    """float64 [rows, C] probabilities of an output of the kind."""
    table = as_table(value)
    assert table is not None
    return softmax(table) if kind == "logits" else table / table.sum(axis=1, keepdims=True)


def _the_one(tables: dict[str, Array]) -> str:
    if len(tables) == 1:
        return next(iter(tables))
    for name, table in tables.items():
        if _is_probabilities(table):
            continue
        own = softmax(table)
        others = (t if _is_probabilities(t) else softmax(t) for t in tables.values())
        if all(o.shape == own.shape and np.allclose(o, own, atol=1e-3) for o in others):
            return name
    raise NoSuchOutput(
        f"several outputs could be meant: {', '.join(tables)}; choose one with --output"
    )


def _kind_of(name: str, table: Array) -> str:
    if not np.isfinite(table).all():
        raise NoSuchOutput(
            f"output '{name}' holds NaN or infinity for random rows, so that its kind cannot be found: give --output-kind"
        )
    if _is_probabilities(table):
        return "probabilities"
    if (table >= 0).all() and (table <= 1).all():
        raise NoSuchOutput(
            f"output '{name}' lies between 0 and 1 and its rows do not sum to 1: scores of each class on its own are no posterior. "
            "Give --output-kind where they are logits or probabilities all the same"
        )
    return "logits"


def _is_probabilities(table: Array) -> bool:
    return bool((table >= 0).all() and np.abs(table.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def _shape_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
