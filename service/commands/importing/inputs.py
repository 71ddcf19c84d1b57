"""The inputs of a foreign model: their description in model.json, and random rows that the model
accepts.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.preprocessing import image_fields
from service.commands.importing.refusal import ImportRefused
from service.contract.inputs.columns import fields
from service.contract.inputs.spec import RECORD, InputSpec
from service.graph.reasons import first_line, remedy_of_rows
from service.graph.trial import random_rows

Array = NDArray[Any]
Run: TypeAlias = Callable[[Array], dict[str, Any]]
FREE_SIZES = (8, 32, 224, 1)
"""Sizes tried in turn for a dimension that the graph leaves free."""


_MISSING_TRIED = 64
"""The most columns in which a missing value is tried."""
_FREE_REMEDY = (
    f". Sizes of {', '.join(map(str, sorted(FREE_SIZES)))} were tried where the graph leaves one "
    "free: if it accepts one size only, export it with that size fixed, or with an exporter that "
    "keeps sizes free (torch.onnx.export(dynamo=True))"
)


@dataclass(frozen=True)
class Trial:
    """Random rows that the model accepts, and its outputs for them.

    rows: [n, …]. outputs: by name. free: the size of free dimensions in the rows. one_at_a_time:
    the model accepts only one row at a time, although its graph declares a free batch axis; n is
    then 1.
    """

    rows: Array
    outputs: dict[str, Any]
    free: int
    one_at_a_time: bool = False


def input_fields(found: Sequence[GraphInput], flags: argparse.Namespace) -> dict[str, Any]:
    """The members `input` and, for several inputs, `inputs` of model.json. Raises ImportRefused."""
    if len(found) == 1:
        spec = _plain(found[0])
        return {"input": {**spec, **image_fields(found[0], flags)}}
    if flags.image:
        names = ", ".join(each.name for each in found)
        raise ImportRefused(f"--image: the graph has {len(found)} inputs ({names}); expected one")
    image_fields(found[0], flags)
    firsts = {each.shape[0] for each in found}
    if len(firsts) > 1:
        shapes = ", ".join(f"{each.name} {each.shape}" for each in found)
        if None in firsts and firsts <= {None, 1}:
            raise ImportRefused(
                f"the inputs have different batch axes ({shapes}). Those of 1 seem to be constants "
                'of the model, as model.export(…, format="onnx") of Keras writes those of a '
                'Normalization layer. Call model.export("DIR", format="tf_saved_model") instead, '
                "and convert that: python -m tf2onnx.convert --saved-model DIR --output model.onnx"
            )
        raise ImportRefused(
            f"the inputs have different batch axes ({shapes}): export the model with one batch "
            "axis, first in every input"
        )
    record = {"name": "columns", "kind": "columns", "shape": [firsts.pop()], "dtype": RECORD}
    return {"input": record, "inputs": [_plain(each) for each in found]}


def feeder(names: Sequence[str], run: Callable[[dict[str, Array]], dict[str, Any]]) -> Run:
    """A function from rows (records if there are several inputs) to all outputs by name."""
    if len(names) == 1:
        return lambda rows: run({names[0]: rows})
    return lambda rows: run(fields(rows))


def try_rows(run: Run, spec: InputSpec) -> Trial:
    """Random rows that the model takes, and its outputs for them. Raises ImportRefused.

    Several kinds of rows are tried. The first whose outputs are all finite is used, else the first
    that runs. If a batch does not run, or gives one row for many, a single row is tried.
    """
    runs: Trial | None = None
    why = ""
    for free in FREE_SIZES if _is_free(spec) else (1,):
        for rows in random_rows(spec, _batch(spec, free), free=free):
            try:
                trial = _tried(run, rows, free, fixed=spec.shape[0] is not None)
            except Exception as error:  # noqa: BLE001 - whatever the runtime says of unsuitable rows
                why = why or first_line(error)
                continue
            if all(_finite(value) for value in trial.outputs.values()):
                return trial
            runs = runs or trial
    if runs is None:
        raise ImportRefused(
            f"the model accepts none of the random rows that were tried: {why.rstrip('.')}"
            + (_FREE_REMEDY if _is_free(spec) else f". {remedy_of_rows(why)}")
        )
    return runs


def check_repeats(run: Run, trial: Trial) -> None:
    """Run the same rows a second time. Raises ImportRefused when the answers differ."""
    again = run(trial.rows)
    for name, value in trial.outputs.items():
        first, second = _numbers(value), _numbers(again[name])
        if first is None or second is None or first.shape != second.shape:
            continue
        difference = np.abs(first - second)
        largest = float(difference[np.isfinite(difference)].max(initial=0.0))
        if largest > 1e-3 * max(1.0, float(np.abs(first[np.isfinite(first)]).max(initial=0.0))):
            raise ImportRefused(
                f"output '{name}' differs by {largest:.2g} between two runs on the same rows, so "
                "the model is not deterministic: export it in evaluation mode (model.eval()), with "
                "dropout and noise off"
            )


def columns_taking_missing(run: Run, trial: Trial, spec: InputSpec, output: str) -> list[str]:
    """The names of the inputs for which NaN gives finite numbers, each tried by itself."""
    if not spec.columns:
        return [spec.name] if takes_missing(run, trial, output) else []
    found = []
    for column in spec.columns:
        if not column.dtype.startswith("float"):
            continue
        rows = trial.rows.copy()
        rows[column.name] = np.nan
        if _gives_numbers(run, rows, output):
            found.append(column.name)
    return found


def takes_missing(run: Run, trial: Trial, output: str) -> bool:
    """Whether rows with NaN in some column give finite numbers.

    An imputer may serve one column only, and a nearest-neighbour imputer cannot complete a row
    without any number. The service then refuses such a row when a request sends it.
    """
    if trial.rows.dtype.kind != "f":
        return False
    columns = trial.rows.reshape(len(trial.rows), -1).shape[1]
    for at in range(min(columns, _MISSING_TRIED)):
        rows = trial.rows.copy()
        rows.reshape(len(rows), -1)[:, at] = np.nan
        if _gives_numbers(run, rows, output):
            return True
    return False


def _gives_numbers(run: Run, rows: Array, output: str) -> bool:
    try:
        found = run(rows)[output]
    except Exception:  # noqa: BLE001 - a refusal is an answer
        return False
    return _finite(found)


def _plain(found: GraphInput) -> dict[str, Any]:
    kind = "text" if found.dtype == "string" else "tensor"
    made = {"name": found.name, "kind": kind, "shape": found.shape, "dtype": found.dtype}
    return made if found.categories is None else {**made, "categories": found.categories}


def _tried(run: Run, rows: Array, free: int, *, fixed: bool) -> Trial:
    try:
        outputs = run(rows)
    except Exception:
        if fixed or len(rows) == 1:
            raise
        return Trial(rows[:1], run(rows[:1]), free, one_at_a_time=True)
    if fixed or any(rows_of(value) == len(rows) for value in outputs.values()):
        return Trial(rows, outputs, free)
    try:
        single = run(rows[:1])
    except Exception:  # noqa: BLE001 - then only the whole batch can be tried
        return Trial(rows, outputs, free)
    if any(rows_of(value) == 1 for value in single.values()):
        return Trial(rows[:1], single, free, one_at_a_time=True)
    return Trial(rows, outputs, free)


def rows_of(value: Any) -> int | None:
    """The rows of an output; None where it has no axis."""
    if isinstance(value, list):
        return len(value)
    return len(value) if value.ndim else None


def _is_free(spec: InputSpec) -> bool:
    return any(None in each.shape[1:] and each.dtype != "string" for each in spec.columns or [spec])


def _batch(spec: InputSpec, free: int) -> int:
    """How many rows to try at once: few if a row is large."""
    sizes = [
        np.prod([free if n is None else n for n in each.shape[1:]])
        for each in spec.columns or [spec]
    ]
    return spec.shape[0] or (32 if sum(sizes) < 10_000 else 4)


def _numbers(value: Any) -> NDArray[np.float64] | None:
    if isinstance(value, list):  # ZipMap's
        if not all(isinstance(row, dict) for row in value):
            return None
        return np.array([list(row.values()) for row in value], np.float64)
    return value.astype(np.float64) if value.dtype.kind == "f" else None


def _finite(value: Any) -> bool:
    numbers = _numbers(value)
    return numbers is None or bool(np.isfinite(numbers).all())
