"""Tables, CSV or Parquet: a label column, and numbers or one column of text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Split, check_labels
from training.data.sources.digest import files_digest
from training.data.splits import stratified
from training.faults import BadData, WrongUse

if TYPE_CHECKING:
    import pyarrow as pa

TEST_SHARE = 0.2
SPLITS = ("train", "val", "test")
PARAMETERS = ("label", "text", "split")


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: "pa.Table"

    def where(self, row: int) -> str:
        """A row as people find it: counted from 0, and the line of a CSV file."""
        line = f" (line {row + 2})" if self.path.suffix.lower() != ".parquet" else ""
        return f"{self.path}, row {row}{line}"

    def values(self, name: str) -> NDArray[Any]:
        """A column as an array without gaps. Raises BadData naming the first row that has no value."""
        column = self.columns.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise BadData(
                f"{self.where(row)}, column '{name}': has no value ({column.null_count} rows like it)"
            )
        if hasattr(column.type, "value_type") and hasattr(
            column.type, "index_type"
        ):  # a dictionary, pandas' category
            column = column.cast(column.type.value_type)
        return np.asarray(column.to_numpy())


def load(spec: str, place: str, *, seed: int) -> Dataset:
    """FILE.csv|parquet?label=COL[&text=COL][&split=COL]; without a split column a fifth of each class is drawn for test."""
    path, wanted = _parsed(spec, place)
    table = _read(path)
    for parameter, column in wanted.items():
        if column not in table.columns.column_names:
            listed = ", ".join(table.columns.column_names[:20])
            raise WrongUse(f"{path}: has no column '{column}' (for {parameter}); it has {listed}")
    rows = _split_rows(table, wanted.get("split"))
    labels = _labels(table, wanted["label"])
    text = wanted.get("text")
    names = _class_names(labels, rows["train"])
    features = [name for name in table.columns.column_names if name not in wanted.values()]
    inputs = _texts(table, text) if text else _numbers(table, features)
    checked = _checked(table, labels, names)
    whole = Split(inputs, checked)
    if "split" not in wanted:
        rows["train"], rows["test"] = stratified(checked, share=TEST_SHARE, seed=seed)
    return Dataset(
        spec=spec,
        kind="text" if text else "tensor",
        class_names=names,
        train=whole.take(rows["train"]),
        val=whole.take(rows["val"]) if "val" in rows else None,
        test=whole.take(rows["test"]) if "test" in rows else None,
        reproducible_split=False,
        origin={
            "file": path.name,
            "sha256": files_digest([path]),
            "columns": [text] if text else features,
        },
    )


def _parsed(spec: str, place: str) -> tuple[Path, dict[str, str]]:
    file, _, query = place.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    wanted = dict(pairs)
    unknown = [name for name in wanted if name not in PARAMETERS]
    if unknown or len(pairs) != len(wanted) or not wanted.get("label"):
        raise WrongUse(
            f"{spec}: expected table:FILE.csv|parquet?label=COLUMN[&text=COLUMN][&split=COLUMN]"
        )
    path = Path(file)
    if not path.is_file():
        raise WrongUse(f"{path}: no such file")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise WrongUse(f"{path}: expected a name that ends in .csv or .parquet")
    if len(set(wanted.values())) != len(wanted):
        raise WrongUse(f"{spec}: label, text and split are different columns")
    return path, wanted


def _read(path: Path) -> _Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            found = parquet.read_table(path)
        else:
            found = csv.read_csv(
                path,
                # in order, so that an error can count the rows
                read_options=csv.ReadOptions(use_threads=False),
                parse_options=csv.ParseOptions(newlines_in_values=True),
            )
    except (pa.ArrowException, OSError) as error:
        raise BadData(f"{path}: cannot be read: {error}") from error
    repeated = [name for name in found.column_names if found.column_names.count(name) > 1]
    if repeated:
        raise BadData(f"{path}: has two columns named '{repeated[0]}'")
    if not found.num_rows:
        raise BadData(f"{path}: has no rows")
    return _Table(path, found)


def _split_rows(table: _Table, column: str | None) -> dict[str, NDArray[np.int64]]:
    """Rows of each split; all are training rows while no column says otherwise."""
    if column is None:
        return {"train": np.arange(table.columns.num_rows)}
    values = np.array([str(value) for value in table.values(column)])
    wrong = np.flatnonzero(~np.isin(values, SPLITS))
    if wrong.size:
        raise BadData(
            f"{table.where(int(wrong[0]))}, column '{column}': '{values[wrong[0]]}'; expected {', '.join(SPLITS)}"
        )
    rows = {name: np.flatnonzero(values == name) for name in SPLITS if (values == name).any()}
    if "train" not in rows:
        raise BadData(f"{table.path}, column '{column}': no row says train")
    return rows


def _labels(table: _Table, column: str) -> NDArray[Any]:
    values = table.values(column)
    empty = np.flatnonzero(values == "") if values.dtype == object else np.empty(0, np.int64)
    if empty.size:
        raise BadData(f"{table.where(int(empty[0]))}, column '{column}': has no value ''")
    if values.dtype.kind == "f":
        if not (values == np.floor(values)).all():
            row = int(np.flatnonzero(values != np.floor(values))[0])
            raise BadData(
                f"{table.where(row)}, column '{column}': {values[row]} is no class; expected names or whole numbers"
            )
        values = values.astype(np.int64)
    return values


def _class_names(labels: NDArray[Any], train: NDArray[np.int64]) -> tuple[str, ...]:
    """The classes of the training rows, numbers in their order, names in alphabetical order."""
    return tuple(str(name) for name in np.unique(labels[train]))


def _checked(table: _Table, labels: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.int64]:
    try:
        return check_labels(labels.astype(str).astype(object), names, where="")
    except BadData:
        known = np.isin(labels.astype(str), names)
        row = int(np.flatnonzero(~known)[0])
        raise BadData(f"{table.where(row)}: class '{labels[row]}' has no training row") from None


def _texts(table: _Table, column: str) -> NDArray[np.object_]:
    values = table.values(column)
    row = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if row is not None:
        raise BadData(f"{table.where(row)}, column '{column}': {values[row]!r} is no text")
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts


def _numbers(table: _Table, columns: list[str]) -> NDArray[np.float32]:
    if not columns:
        raise BadData(f"{table.path}: has no column of numbers beside the label")
    return np.stack([_column(table, name) for name in columns], axis=1)


def _column(table: _Table, name: str) -> NDArray[np.float32]:
    values = table.values(name)
    row = None
    if values.dtype.kind not in "iufb":
        row = next((row for row, value in enumerate(values) if not _is_number(value)), None)
    if row is not None:
        raise BadData(
            f"{table.where(row)}, column '{name}': {str(values[row])[:60]!r} is no number "
            "(every column but label, text and split must be; leave others out)"
        )
    numbers = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise BadData(
            f"{table.where(int(bad[0]))}, column '{name}': {values[bad[0]]} ({bad.size} rows like it)"
        )
    return numbers


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
