"""Reads CSV or Parquet tables: a label column with numbers and categories, or with one text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.contract.nearest import did_you_mean
from training.data.columns import float_type, is_number
from training.data.dataset import PARTS, Dataset, Known, Split
from training.data.sources.digest import files_digest
from training.data.sources.table_file import (
    DATE_CURE,
    DATES,
    TIMES,
    TableFile,
    categories,
    column_names,
    disguised,
    is_category,
    numbers,
    read_table,
)
from training.data.sources.written import lost_digits, merged
from training.data.splits import stratified
from training.faults import BadData, WrongUse, absent, instead, nearest_class, say

TEST_SHARE = 0.2
SPLITS = ("train", "val", "test")
NAMES_OF_SPLITS = frozenset(name for names in PARTS.values() for name in names)
LISTS = ("without", "category")
"""The options that a specification may give several times."""
FORM = (
    "table:FILE.csv|parquet?label=COLUMN[&text=COLUMN][&split=COLUMN][&without=COLUMN]"
    "[&category=COLUMN][&encoding=NAME]"
)
MANY_VALUES = 0.5
"""A label column whose distinct values exceed this share of its rows is not a class list."""
FEWEST_MEASURES = 20
"""Up to this many different numbers may be classes, however few rows there are."""
MANY_CATEGORIES = 50
"""A string column with more distinct values than this may be free text or an id."""
SHOWN = 20
"""The most column names that a message lists."""


@dataclass(frozen=True)
class _Wanted:
    """A parsed specification."""

    path: Path
    label: str | None
    text: str | None
    split: str | None
    without: tuple[str, ...]
    category: tuple[str, ...]
    encoding: str

    @property
    def special(self) -> tuple[str, ...]:
        """The columns to read as strings."""
        return tuple(name for name in (self.label, self.text, self.split) if name)


def load(spec: str, place: str, *, seed: int, known: Known | None = None) -> Dataset:
    """Load a table; without a split column, a fifth of each class is drawn for test.

    known: what the published model that will score the rows states. Its columns are then taken by
    name, other classes than its own are refused, and labels and training rows may be missing.
    """
    wanted = _parsed(spec, place, label_needed=known is None)
    wanted = _existing(wanted, label_needed=known is None)
    if known is not None and known.text and wanted.text is None:
        raise WrongUse(
            f"{spec}: the model takes one text a row; name its column with &text=COLUMN, such as "
            f"{_first(_free(column_names(wanted.path, encoding=wanted.encoding), wanted))}"
        )
    several = known.inputs if known is not None else ()
    forced = frozenset(wanted.category)
    strings = [each.name for each in several if each.dtype == "string"]
    texts = (*wanted.special, *sorted({*forced, *strings}))
    table = read_table(wanted.path, texts=texts, encoding=wanted.encoding)
    notes: list[str] = []
    features = _features(table, wanted, known, notes)
    inputs: NDArray[Any]
    if several:
        inputs = _records(table, several)
    elif wanted.text:
        inputs = _texts(table, wanted.text)
    else:
        inputs = _inputs(table, features, known, forced, notes)
    rows = _split_rows(table, wanted.split, train_needed=known is None)
    written = None if wanted.label is None else _labels(table, wanted.label)
    names = known.class_names if known else _class_names(written, rows["train"], table, wanted)
    labels = _indices(table, written, names, known)
    whole = Split(inputs, labels)
    drawn = wanted.split is None
    if drawn and written is not None:
        rows["train"], rows["test"] = stratified(labels, share=TEST_SHARE, seed=seed)
    return Dataset(
        spec=spec,
        kind="text" if wanted.text else "tensor" if inputs.dtype.names is None else "columns",
        class_names=names,
        train=whole.take(rows.get("train", np.empty(0, np.int64))),
        val=whole.take(rows["val"]) if "val" in rows else None,
        test=whole.take(rows["test"]) if len(rows.get("test", ())) else None,
        whole=whole if drawn else None,
        labelled=written is not None,
        reproducible_split=False,
        notes=tuple(notes),
        origin={
            "file": wanted.path.name,
            "sha256": files_digest([wanted.path]),
            "columns": [wanted.text] if wanted.text else features,
        },
    )


def _parsed(spec: str, place: str, *, label_needed: bool) -> _Wanted:
    file, _, query = place.partition("?")
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    once = {key: value for key, value in pairs if key not in LISTS}
    repeated = len(once) != sum(key not in LISTS for key, _ in pairs)
    unknown = set(once) - {"label", "text", "split", "encoding"}
    if unknown or repeated or (label_needed and not once.get("label")):
        raise WrongUse(f"{spec}: expected {FORM}")
    path = Path(file)
    if not path.is_file():
        raise WrongUse(absent(path))
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise WrongUse(
            f"{path}: expected a name that ends in .csv or .parquet{instead(path)}; save the table "
            "as CSV with commas, or as Parquet"
        )
    columns = {key: unquote(value) for key, value in once.items() if value}
    encoding = columns.pop("encoding", "utf-8")
    if len(set(columns.values())) != len(columns):
        raise WrongUse(f"{spec}: label, text and split must be different columns")
    without, category = (
        tuple(unquote(value) for key, value in pairs if key == one) for one in LISTS
    )
    label, text, split = (columns.get(part) for part in ("label", "text", "split"))
    return _Wanted(path, label, text, split, without, category, encoding)


def _existing(wanted: _Wanted, *, label_needed: bool) -> _Wanted:
    """Return the specification with real column names: a + may mean a space, as in a URL."""
    names = column_names(wanted.path, encoding=wanted.encoding)
    found: dict[str, Any] = {}
    for part in ("label", "text", "split"):
        name = getattr(wanted, part)
        if name is None or name in names:
            continue
        if name.replace("+", " ") in names:
            found[part] = name.replace("+", " ")
        elif part == "label" and not label_needed:
            say(f"{wanted.path}: has no column '{name}', so its rows are taken without labels")
            found[part] = None
        else:
            listed = _first(names)
            hint = did_you_mean(name, names)
            if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
                hint = "; the columns of a CSV file are separated by commas"
            elif wanted.path.suffix.lower() != ".parquet" and (
                any(map(is_number, names)) or len(names) == 1 or not all(names)
            ):
                hint = "; the first line of the file must hold the names of its columns"
            hint += instead(wanted.path)
            raise WrongUse(
                f"{wanted.path}: has no column '{name}' (for {part}); it has {listed}{hint}"
            )
    for part in LISTS:
        absent = [name for name in getattr(wanted, part) if name not in names]
        if absent and label_needed:
            raise WrongUse(
                f"{wanted.path}: has no column '{absent[0]}' (for {part})"
                f"{did_you_mean(absent[0], names) or f'; it has {_first(names)}'}"
            )
    return replace(wanted, **found)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _features(
    table: TableFile, wanted: _Wanted, known: Known | None, notes: list[str]
) -> list[str]:
    """Return the input columns: the known model's, or all that have no other use."""
    if wanted.text:
        return [wanted.text]
    free = _free(table.names, wanted)
    if known is not None and known.columns is not None:
        missing = [name for name in known.columns if name not in table.names]
        extra = [name for name in free if name not in known.columns]
        if missing:
            more = f"; columns the model does not know: {', '.join(extra[:10])}" if extra else ""
            raise WrongUse(
                f"{table.path}: lacks {len(missing)} of the model's {len(known.columns)} columns: "
                f"{', '.join(missing[:10])}{more}; rename or add them"
            )
        if extra:
            shown = ", ".join(name or "one without a name" for name in extra[:10])
            notes.append(f"columns the model does not use are left out: {shown}")
        return list(known.columns)
    index = [name for name in free if table.is_index(name)]
    notes.extend(
        f"column '{name}' numbers or names the rows, as pandas' index does; it is left out"
        for name in index
    )
    return _named(table, [name for name in free if name not in index], notes)


def _free(names: Sequence[str], wanted: _Wanted) -> list[str]:
    """Return the columns that have no other use than as inputs."""
    return [name for name in names if name not in wanted.special and name not in wanted.without]


def _named(table: TableFile, columns: list[str], notes: list[str]) -> list[str]:
    """Return the columns that have a name: a row by column name could not give the others."""
    if "" not in columns:
        return columns
    if not table.is_empty(""):
        raise BadData(
            f"{table.path}: column {table.names.index('') + 1} has no name; give it one, or leave "
            "it out with &without="
        )
    notes.append("a column with neither name nor values is left out")
    return [name for name in columns if name]


def _split_rows(
    table: TableFile, column: str | None, *, train_needed: bool
) -> dict[str, NDArray[np.int64]]:
    """Return the row numbers of each split; without a split column, all are training rows."""
    if column is None:
        return {"train": np.arange(len(table))}
    values = np.array([str(value) for value in table.values(column)])
    wrong = np.flatnonzero(~np.isin(values, SPLITS))
    if wrong.size:
        raise BadData(
            f"{table.where(int(wrong[0]))}, column '{column}': '{values[wrong[0]]}'; "
            f"expected {', '.join(SPLITS)}"
        )
    rows = {name: np.flatnonzero(values == name) for name in SPLITS if (values == name).any()}
    if train_needed and "train" not in rows:
        raise BadData(
            f"{table.path}, column '{column}': has no row with the value train; expected some"
        )
    return rows


def _labels(table: TableFile, column: str) -> NDArray[np.object_]:
    """Return the labels as strings; whole numbers stored as floats lose their .0."""
    values = table.values(column)
    if len(values) and isinstance(values[0], (np.ndarray, list, dict)):
        raise BadData(
            f"{table.path}, column '{column}': holds lists; expected one class for each row"
        )
    if any(isinstance(value, bytes) for value in values[:1]):
        values = _decoded(table, column, values)
    absent = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    if values.dtype.kind == "f" and (values == np.floor(values))[~absent].all():
        values = np.where(absent, 0, values).astype(np.int64)
    written = np.array([str(value) for value in values], dtype=object)
    written[absent] = ""
    empty = np.flatnonzero([not name.strip() for name in written])
    if empty.size:
        raise BadData(
            f"{table.where(int(empty[0]))}, column '{column}': has no label "
            f"({empty.size} rows like it); label these rows, or leave them out"
        )
    return written


def _decoded(table: TableFile, column: str, values: NDArray[Any]) -> NDArray[np.object_]:
    """Return bytes as the strings that they spell in UTF-8."""
    texts = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        try:
            texts[row] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadData(
                f"{table.where(row)}, column '{column}': holds bytes that are not UTF-8: {error}; "
                "write the labels as strings"
            ) from None
    return texts


def _class_names(
    written: NDArray[np.object_] | None, train: NDArray[np.int64], table: TableFile, wanted: _Wanted
) -> tuple[str, ...]:
    """Return the classes of the training rows: numbers in ascending order, names alphabetically."""
    assert written is not None  # the caller has checked that there is a label column
    names = sorted(set(written[train]))
    if len(names) > max(2, MANY_VALUES * len(train)) and len(names) == len(train):
        raise BadData(
            f"{table.path}, column '{wanted.label}': each of the {len(names)} rows has a class of "
            "its own, so nothing can be learnt or held out; check the label column"
        )
    many = len(names) > max(FEWEST_MEASURES, MANY_VALUES * len(train))
    if many and "." in "".join(names) and all(map(_is_decimal, names)):
        raise BadData(
            f"{table.path}, column '{wanted.label}': has {len(names)} different numbers in "
            f"{len(train)} rows, so it looks measured; expected a class for each row"
        )
    if all(name.lstrip("-").isdecimal() and str(int(name)) == name for name in names):
        names.sort(key=int)
    return tuple(names)


def _is_decimal(name: str) -> bool:
    whole, point, fraction = name.lstrip("-").partition(".")
    return whole.isdecimal() and (not point or fraction.isdecimal())


def _indices(
    table: TableFile,
    written: NDArray[np.object_] | None,
    names: tuple[str, ...],
    known: Known | None,
) -> NDArray[np.int64]:
    if written is None:
        return np.zeros(len(table), np.int64)
    index = {name: position for position, name in enumerate(names)}
    found = np.fromiter((index.get(name, -1) for name in written), np.int64, len(written))
    wrong = np.flatnonzero(found < 0)
    if wrong.size and known is not None:
        raise WrongUse(
            f"{table.path}: class '{written[wrong[0]]}' is not one of the model's "
            f"({len(set(written[wrong]))} like it)"
            f"{nearest_class(str(written[wrong[0]]), names)}"
        )
    if wrong.size:
        row = int(wrong[0])
        raise BadData(
            f"{table.where(row)}: class '{written[row]}' has no training row; "
            "add one, or leave this row out"
        )
    return found


def _texts(table: TableFile, column: str) -> NDArray[np.object_]:
    values = table.values(column)
    row = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if row is not None:
        raise BadData(
            f"{table.where(row)}, column '{column}': {values[row]!r} is not a text; expected a "
            "text in every row, which may be empty"
        )
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts


def _records(table: TableFile, inputs: Sequence[InputSpec]) -> NDArray[Any]:
    """Return records [n] with one field per input of a published model, by name."""
    found = {}
    for each in inputs:
        if each.dtype == "string":
            values: NDArray[Any] = categories(table, each.name)
        else:
            cells = numbers(table, each.name, missing=each.missing, published=True)
            values = cells.astype(each.dtype)
        found[each.name] = values.reshape(
            len(table), *(-1 if n is None else n for n in each.shape[1:])
        )
    return records(found)


def _inputs(
    table: TableFile,
    columns: list[str],
    known: Known | None,
    forced: frozenset[str],
    notes: list[str],
) -> NDArray[Any]:
    """Return numbers [n, columns]; or records [n] if some of the columns are categories."""
    if not columns:
        raise BadData(
            f"{table.path}: has no column besides the label that could be an input; add one"
        )
    strings: set[str] = set()
    if known is None:
        strings = {name for name in columns if name in forced or is_category(table, name)}
        notes.extend(lost_digits(table, [name for name in columns if name not in strings]))
    found: dict[str, NDArray[Any]] = {}
    for name in columns:
        if name in strings:
            values = categories(table, name)
            spelt = None if name in forced else disguised(values)
            if spelt:
                what, example = spelt
                cure = DATE_CURE if what in (DATES, TIMES) else "write numbers as 1234.5"
                raise BadData(
                    f"{table.path}, column '{name}': holds {what}, such as {example!r}; "
                    f"{cure}, leave the column out with &without={name}, or take it as strings "
                    f"with &category={name}"
                )
            found[name] = values[:, None]
            _note_values(name, found[name], notes)
            continue
        found[name] = _numbers(table, name, known, notes)
    lists = [name for name, values in found.items() if values.shape[1] != 1]
    if strings and lists:
        raise BadData(
            f"{table.path}, column '{lists[0]}': lists of numbers cannot be combined "
            "with columns of strings; give each number a column, or leave the lists out with "
            f"&without={lists[0]}"
        )
    truths = [name for name, values in found.items() if values.dtype == np.bool_]
    if strings or (truths and not lists):
        return records(found)
    notes.extend(_as_numbers(name, "lists are beside them") for name in truths)
    return np.concatenate(list(found.values()), axis=1)


def _numbers(
    table: TableFile, name: str, known: Known | None, notes: list[str]
) -> NDArray[np.floating[Any]] | NDArray[np.bool_]:
    """Return a column [n, width]: booleans without gaps as such, else numbers."""
    if known is not None:  # a model states its own dtypes; narrowing could lose digits it needs
        return numbers(table, name, missing=known.missing, published=True)
    wide = numbers(table, name, missing=True)
    if table.is_boolean(name):
        if not np.isnan(wide).any():
            return wide.astype(np.bool_)
        notes.append(_as_numbers(name, "some are missing"))
    kind = float_type(wide)
    _note_merged(table, name, kind, notes)
    return wide.astype(kind)


def _as_numbers(name: str, reason: str) -> str:
    return (
        f"column '{name}': true and false are taken as the numbers 1 and 0, because {reason}; "
        "give the service these numbers"
    )


def _note_merged(
    table: TableFile, name: str, kind: type[np.floating[Any]], notes: list[str]
) -> None:
    """Note what becomes of numbers with more digits than a float32, or a float64, has."""
    if table.float64_merges(name):
        notes.append(merged(name))
    elif kind is np.float64:
        notes.append(
            f"column '{name}': float32 would merge its numbers, so the model takes float64"
        )


def _note_values(name: str, values: NDArray[Any], notes: list[str]) -> None:
    """Note what looks odd about a column of strings [n, 1] as categories."""
    different = set(values[:, 0])
    if len(different) > 1 and {value.strip().lower() for value in different} <= NAMES_OF_SPLITS:
        notes.append(
            f"column '{name}' holds {', '.join(sorted(different))} as a category; if it says which "
            f"split a row is of, add &split={name}"
        )
    distinct = len(different)
    if distinct > max(MANY_CATEGORIES, MANY_VALUES * len(values)):
        notes.append(
            f"column '{name}': {distinct:,} different strings in {len(values):,} rows say little "
            f"as categories; is it text (&text={name}) or an id (&without={name})?"
        )
