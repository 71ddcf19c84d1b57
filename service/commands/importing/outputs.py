"""The outputs of a foreign model: which one scores the classes, its form, and its kind.

Every conclusion is tested on random rows: the form by the shapes, the kind by the numbers, and a
label output, where there is one, against the largest score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.commands.importing.refusal import ImportRefused
from service.contract.adjustment import softmax

Array = NDArray[Any]
Form: TypeAlias = Literal["table", "flatten", "column", "columns"]
_SUM_TOLERANCE = 5e-3
"""Allowed distance of a row's sum from 1: half-precision probabilities sum to 1 only roughly."""
_ROUNDED_TOLERANCE = 0.1
"""Such a distance shows probabilities of 8 bits, since independent scores have any sum."""
_NEGATIVE_TOLERANCE = 1e-6
"""Trees of two classes give 1 minus a sum in single precision, which may be a little below 0."""
_LABELS_TOLERANCE = 0.25
"""The largest share of random rows whose label may differ from the largest score.

Ties and rounding are rare; an SVC chooses its label by votes and not by its probabilities.
"""

LOGITS_ADVICE = (
    "Give --output-kind logits if its softmax is the posterior (as of a multinomial logistic "
    "regression's raw scores, or of XGBoost's multi:softmax)"
)
CALIBRATE_ADVICE = (
    "--output-kind scores --calibrate DATA.npz fits probabilities to labelled rows; or export "
    "predict_proba instead of the decision function"
)


_NO_POSTERIOR = (
    "is not a posterior of the class that the file answers. An SVC's own probabilities contradict "
    "its labels: train it in CalibratedClassifierCV(SVC()) and export that"
)
_DECISION_SCORES = f"holds decision scores and not log posteriors. {CALIBRATE_ADVICE}"


@dataclass(frozen=True)
class Output:
    """The output that scores the classes, as found by running random rows.

    name: the output's name, or that of the first of several. form: "table" [batch, C]; "flatten",
    such as [batch, C, 1, 1]; "column", one number per row for the second of two classes; "columns",
    one output per class. kind: "logits", "probabilities", "percent" or "scores". values: float64
    [n, C].
    """

    name: str
    form: Form
    kind: str
    values: Array = field(repr=False)
    members: tuple[str, ...] = ()

    @property
    def columns(self) -> int:
        """The number of classes, C."""
        return int(self.values.shape[1])

    def probabilities(self) -> Array:
        """float64 [n, C]. For scores this is their softmax, which means nothing until they are
        calibrated.
        """
        if self.kind in {"logits", "scores"}:
            return softmax(self.values)
        sums: Array = self.values.sum(axis=1, keepdims=True)
        return np.asarray(self.values / sums)


@dataclass(frozen=True)
class _Table:
    form: Form
    values: Array
    members: tuple[str, ...] = ()


def choose_output(
    outputs: Mapping[str, Any],
    *,
    rows: int,
    wanted: str | None,
    kind: str | None,
    classes: int | None,
) -> Output:
    """Find the output that scores the classes among the outputs for random rows. Raises
    ImportRefused.

    rows: how many were fed. wanted, kind: `--output` and `--output-kind`, None where they were not
    given. classes: the number of class names, None where it is unknown. Logits are preferred to
    their softmax if the file has both.
    """
    if wanted is not None and wanted not in outputs:
        raise ImportRefused(
            f"--output: the file has no output '{wanted}'; choose one of {', '.join(outputs)}"
        )
    candidates = {k: v for k, v in outputs.items() if wanted in {None, k}}
    tables = _tables(candidates, rows, classes)
    if not tables:
        raise ImportRefused(_why_none(outputs, rows, classes))
    name = _the_one(tables)
    table = tables[name]
    found = _kind_of(name, table, kind)
    return Output(name, table.form, found, _as_probabilities(table, found), table.members)


def check_labels(output: Output, outputs: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Compare the label output with the largest score of each row. Raises ImportRefused.

    A label output holds one class per row, as its name or its index. Other outputs may look like
    one (the leaf of a tree), so one that agrees is enough.
    """
    largest = output.values.argmax(axis=1)
    sure = _margin(output.values) > 1e-6
    known = {name: index for index, name in enumerate(class_names)}
    differ: dict[str, float] = {}
    for name, value in outputs.items():
        labels = _labels(value, len(largest), known, output.columns)
        if labels is not None and sure.any():
            differ[name] = float((labels != largest)[sure].mean())
    if not differ or min(differ.values()) <= _LABELS_TOLERANCE:
        return
    name = next(iter(differ))
    raise ImportRefused(
        f"output '{name}', the file's own label, differs from the largest value of "
        f"'{output.name}' for {differ[name]:.0%} of random rows, so that output "
        + (_DECISION_SCORES if output.kind == "logits" else _NO_POSTERIOR)
    )


def _tables(outputs: Mapping[str, Any], rows: int, classes: int | None) -> dict[str, _Table]:
    """Every output that could hold the scores of the classes, by name."""
    wide = {name: t for name, v in outputs.items() if (t := _table(v, rows)) is not None}
    wide = {n: t for n, t in wide.items() if classes in {None, t.values.shape[1]}}
    if wide:
        return wide
    columns = {n: c for n, v in outputs.items() if (c := _column(v, rows)) is not None}
    joined = len(columns) > 1 and classes in {None, len(columns)}
    if joined:
        values = np.stack(list(columns.values()), axis=1)
        if _is_probabilities(values):
            return {next(iter(columns)): _Table("columns", values, tuple(columns))}
    if classes in {None, 2}:
        return {n: _Table("column", c[:, np.newaxis]) for n, c in columns.items()}
    return {}


def _table(value: Any, rows: int) -> _Table | None:
    """An output with several columns and one row for each row fed; None for other outputs."""
    if isinstance(value, list):
        if len(value) != rows or not all(isinstance(row, dict) for row in value):
            return None
        return _Table("table", np.array([list(row.values()) for row in value], np.float64))
    if not _is_floats(value) or value.ndim < 2 or len(value) != rows:
        return None
    wide = [size for size in value.shape[1:] if size != 1]
    if len(wide) != 1:
        return None
    form: Form = "table" if value.ndim == 2 else "flatten"
    return _Table(form, value.reshape(rows, -1).astype(np.float64))


def _column(value: Any, rows: int) -> Array | None:
    """An output with one number for each row fed; None for other outputs."""
    if not _is_floats(value) or value.size != rows or not value.ndim or len(value) != rows:
        return None
    return np.asarray(value.reshape(rows), np.float64)


def _is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _why_none(outputs: Mapping[str, Any], rows: int, classes: int | None) -> str:
    shown = ", ".join(f"{name} {_shape_of(value)}" for name, value in outputs.items())
    floats = [v for v in outputs.values() if _is_floats(v) and v.ndim]
    counts = {len(v) for v in floats}
    if floats and rows not in counts:
        return (
            f"for {rows} rows the file gives {shown}: one row of output for each row of input was "
            "expected. Export the model with the batch as the first axis of input and output "
            "(torch.nn.LSTM: batch_first=True), and one answer a row instead of one a token"
        )
    width = "C > 1" if classes is None else str(classes)
    return (
        f"no output holds floats [batch, {width}]; for random rows the file gives {shown}. "
        "Export the model with its logits or predict_proba as an output"
        + ("" if classes is None else ", or correct --class-names")
    )


def _the_one(tables: Mapping[str, _Table]) -> str:
    if len(tables) == 1:
        return next(iter(tables))
    for name, table in tables.items():
        if _is_probabilities(table.values):
            continue
        own = softmax(table.values)
        others = (
            t.values if _is_probabilities(t.values) else softmax(t.values) for t in tables.values()
        )
        if all(o.shape == own.shape and np.allclose(o, own, atol=1e-3) for o in others):
            return name
    raise ImportRefused(
        f"several outputs could be meant: {', '.join(tables)}; choose one with --output"
    )


def _kind_of(name: str, table: _Table, given: str | None) -> str:
    """The kind of an output. Raises ImportRefused if it is not a posterior, unless a kind was
    given.
    """
    values = table.values
    if given is not None:
        return given
    if not np.isfinite(values).all():
        raise ImportRefused(
            f"output '{name}' holds NaN or infinity for random rows, which do not show what kind "
            "of output it is; name the kind with --output-kind"
        )
    between = _not_negative(values) and _not_negative(1 - values)
    if table.form == "column":
        if between:
            return "probabilities"
        _refuse_named_probabilities(name, values)
        return "logits"
    if _is_probabilities(values):
        return "probabilities"
    if _is_probabilities(values / 100):
        return "percent"
    if between and np.abs(values.sum(axis=1) - 1).max() <= _ROUNDED_TOLERANCE:
        raise ImportRefused(
            f"output '{name}' is between 0 and 1, and its rows sum to 1 only roughly: rounded "
            "probabilities, as of a quantised softmax. Leave the softmax out of the quantisation "
            "(nodes_to_exclude), or give --output-kind probabilities"
        )
    if between:
        raise ImportRefused(
            f"output '{name}' is between 0 and 1, but its rows do not sum to 1: "
            "independent scores per class are not a posterior. Give --output-kind if they are "
            f"logits or probabilities nevertheless, or {CALIBRATE_ADVICE}"
        )
    if values.shape[1] == 2 and np.allclose(values[:, 0], -values[:, 1], rtol=1e-5, atol=1e-7):
        raise ImportRefused(
            f"output '{name}' holds [-s, s]: the decision scores of a binary classifier. If "
            "sigmoid(s) is the probability of the second class (logistic regression), give "
            f"--output-kind logits --temperature 2. For a margin (SVM, ridge): {CALIBRATE_ADVICE}"
        )
    _refuse_named_probabilities(name, values)
    return "logits"


def _refuse_named_probabilities(name: str, values: Array) -> None:
    """Refuse scores that are named like probabilities, as scikit-learn's converter names them."""
    if "prob" in name.lower():
        raise ImportRefused(
            f"output '{name}' is named as probabilities but holds {values.min():.3g} to "
            f"{values.max():.3g}: decision scores. {LOGITS_ADVICE}. For margins (SVM, ridge, "
            f"perceptron): {CALIBRATE_ADVICE}"
        )


def _as_probabilities(table: _Table, kind: str) -> Array:
    """[n, C] probabilities of a table; one column becomes two classes."""
    values = table.values / 100 if kind == "percent" else table.values
    if table.form != "column":
        return values
    first = 1 - values if kind == "probabilities" else np.zeros_like(values)
    return np.concatenate([first, values], axis=1)


def _labels(value: Any, rows: int, known: Mapping[str, int], classes: int) -> Array | None:
    """[n] class indices of a label output; None for any other output."""
    if not isinstance(value, np.ndarray) or value.size != rows or value.dtype.kind not in "iuOUS":
        return None
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel().tolist()]
    if all(text in known for text in texts):
        return np.array([known[text] for text in texts])
    if value.dtype.kind in "iu" and ((value >= 0) & (value < classes)).all():
        return value.ravel().astype(np.int64)
    return None


def _margin(values: Array) -> Array:
    """[n] the difference between the largest and the second largest value of each row."""
    ordered = np.sort(values, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def _is_probabilities(table: Array) -> bool:
    return _not_negative(table) and bool(np.abs(table.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def _not_negative(values: Array) -> bool:
    return bool((values >= -_NEGATIVE_TOLERANCE).all())


def _shape_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def scores_of(output: Output, outputs: Mapping[str, Any]) -> Array:
    """float64 [n, C] of an output in the form that was found, for any rows."""
    rows = _rows(outputs[output.name])
    if output.form == "columns":
        return np.stack([np.ravel(outputs[name]) for name in output.members], axis=1)
    if output.form == "column":
        column = np.asarray(outputs[output.name], np.float64).reshape(rows, 1)
        return np.concatenate([np.zeros_like(column), column], axis=1)
    table = _table(outputs[output.name], rows)
    assert table is not None
    return table.values


def _rows(value: Any) -> int:
    return len(value)
