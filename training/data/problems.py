"""Finds likely faults in data that can be read, and describes them to the user."""

import csv
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import MAX_TEXT_CHARACTERS
from training.data.columns import is_number
from training.data.dataset import Dataset, Split
from training.data.image_files import ImageFiles
from training.data.text import words
from training.faults import BadData

csv.field_size_limit(2**31 - 1)  # by default, a cell of more than 128 KB is an error
MAX_ROWS = 200_000  # the most rows of a column or split that are examined; more are sampled
LEAK_ROWS = 30  # with fewer, a column may tell the classes apart by chance
LISTED = 5
MAX_TEXTS = 2_000
LONG_WORD = 16  # characters; languages with spaces have 4 to 8
MARKS_OF_MISSING = ("na", "n/a", "#n/a", "nan", "null", "none", "<na>", "?", "-")
"""Texts that tables hold for a missing value; as a label, each may also be a class, such as
Namibia's.
"""


def check_quotes(path: Path, encoding: str = "utf-8") -> None:
    """Raise BadData that names the first row of a CSV file whose quotation marks do not pair.

    A reader would take the following rows into one cell. Only files with an odd number of marks are
    read row by row.
    """
    if path.suffix.lower() != ".csv":
        return
    with path.open("rb") as file:
        marks = sum(piece.count(b'"') for piece in iter(lambda: file.read(2**20), b""))
    if marks % 2 == 0:
        return
    begun = 1
    with path.open(encoding=encoding, errors="replace", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            for _ in rows:
                begun = rows.line_num + 1
        except csv.Error as error:
            ends = "unexpected end" in str(error)
            fault = "has no end" if ends else "is followed by more than a comma"
            raise BadData(
                f"{path}: a quoted cell of the row in line {begun} {fault}; close its "
                'quotation mark ("), or write a mark within a cell twice ("")'
            ) from None


def check_held_out(data: Dataset) -> None:
    """Raise BadData if no row can be held out: T, tau and the error could then not be measured."""
    if data.val is None and data.test is None and int(data.class_counts.max()) == 1:
        raise BadData(
            f"{data.spec}: each of its {data.num_classes} classes has a single row, so nothing can "
            "be held out; check the label, or give validation and test rows"
        )


def problems(data: Dataset) -> list[str]:
    """Return all problems of a data set as phrases; its reader's notes come first."""
    return [
        *data.notes,
        *_class_names(data.class_names),
        *_small_classes(data),
        *_columns(data),
        *_shared_rows(data),
        *_equal_texts(data),
        *_long_texts(data),
        *_unspaced(data),
    ]


def _class_names(names: Sequence[str]) -> Iterator[str]:
    """Yield the classes whose names look alike, mark a missing label or have control characters."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_reduced(name), name)
        if other != name:
            yield f"classes {other!r} and {name!r} differ only in {_difference(other, name)}"
    for name in names:
        if name.strip().casefold() in MARKS_OF_MISSING:
            yield (
                f"class '{name}' may stand for rows without a label; if it does, leave these rows "
                "out"
            )
    for name in names:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            yield f"the name of class {name!r} has control characters; is the file damaged?"


def _reduced(name: str) -> str:
    """Return a name without outer spaces and case, and with one form for each number and accent."""
    found = unicodedata.normalize("NFKC", name).strip().casefold()
    if found.isdecimal():  # as a float, long numbers would lose digits
        return str(int(found))
    return f"{float(found):.17g}" if is_number(found) else found


def _difference(one: str, other: str) -> str:
    if one.strip().casefold() == other.strip().casefold():
        return "spaces or case"
    return "how a number is written" if is_number(one) else "how letters are encoded"


def _small_classes(data: Dataset) -> Iterator[str]:
    if data.val is not None:
        held = np.bincount(data.val.labels, minlength=data.num_classes)
        absent = [data.class_names[index] for index in np.flatnonzero(held == 0)]
        if absent:
            yield f"classes without a validation row, which T and tau ignore: {_listed(absent)}"
        thin = [
            data.class_names[index]
            for index in np.flatnonzero((data.class_counts == 1) & (held > 1))
        ]
        if thin:
            yield (
                f"classes with one training row and more in validation: {_listed(thin)}; "
                "lower --validation-per-class"
            )
    else:
        alone = [data.class_names[index] for index in np.flatnonzero(data.class_counts == 1)]
        if alone:
            yield f"classes with one training row, never drawn for validation: {_listed(alone)}"
    if data.test is not None:
        tested = np.bincount(data.test.labels, minlength=data.num_classes)
        absent = [data.class_names[index] for index in np.flatnonzero(tested == 0)]
        if absent:
            yield f"classes without a test row, left out of every test score: {_listed(absent)}"


def _columns(data: Dataset) -> Iterator[str]:
    """Yield numeric columns that are constant, equal another one, or determine the class alone."""
    columns = data.origin.get("columns") if data.kind in {"tensor", "columns"} else None
    if not columns:
        return
    found = columns_of(data.train.inputs, columns)
    labels = data.train.labels[:MAX_ROWS]
    distinct = {name: _distinct(column) for name, column in found.items()}
    constant = [name for name, n in distinct.items() if n <= 1]
    if constant:
        yield f"columns with one value in all training rows: {_listed(constant)}"
    seen: dict[bytes, str] = {}
    for name, column in found.items():
        content = "\0".join(column) if column.dtype == object else column.tobytes()
        digest = hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()
        other = seen.setdefault(digest, name)
        if other != name and name not in constant:
            yield f"columns '{other}' and '{name}' are equal in all training rows"
    leaking = [
        name
        for name, column in found.items()
        if name not in constant and _tells_the_class(column, labels)
    ]
    if leaking:
        yield (
            f"columns that alone determine the class of every training row: {_listed(leaking)}; "
            "are they known when the model is used?"
        )


def columns_of(inputs: Any, columns: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    """Return a table's columns by name, at most MAX_ROWS rows each; {} for other data."""
    rows = np.asarray(inputs[:MAX_ROWS])
    if rows.dtype.names is not None:
        return {name: np.ascontiguousarray(rows[name].reshape(-1)) for name in rows.dtype.names}
    if not columns or rows.ndim != 2 or rows.shape[1] != len(columns) or rows.dtype == object:
        return {}
    return {n: np.ascontiguousarray(column) for n, column in zip(columns, rows.T, strict=True)}


def _distinct(column: NDArray[Any]) -> int:
    if column.dtype == object:
        return len(set(column))
    return len(np.unique(column[~np.isnan(column)])) + int(np.isnan(column).any())


def _tells_the_class(column: NDArray[Any], labels: NDArray[np.int64]) -> bool:
    """Return whether a column determines the class of every row.

    For numbers: whether each class has an interval of its own. For categories: whether there are
    as many as classes, and each occurs in only one class.
    """
    if len(labels) < LEAK_ROWS:
        return False
    if column.dtype == object:
        pairs = set(zip(column, labels.tolist(), strict=True))
        return len(pairs) == len(set(column)) == len(np.unique(labels))
    there = ~np.isnan(column)
    column, labels = column[there], labels[there]
    if not len(labels):
        return False
    order = np.lexsort((labels, column))
    values, sorted_labels = column[order], labels[order]
    changes = np.flatnonzero(np.diff(sorted_labels))
    classes = len(np.unique(labels))
    return len(changes) == classes - 1 and bool((values[changes] < values[changes + 1]).all())


def _shared_rows(data: Dataset) -> Iterator[str]:
    """Yield how many rows of the other splits are also among the training rows."""
    splits = {"val": data.val, "test": data.test}
    train = set(_digests(data.train)) if any(split is not None for split in splits.values()) else ()
    for name, split in splits.items():
        if split is None:
            continue
        shared = sum(digest in train for digest in _digests(split))
        if shared:
            yield (
                f"{shared:,} of {min(len(split), MAX_ROWS):,} {name} rows are in the training rows "
                "as well: scores on them say little about new rows"
            )


def is_unspaced(data: Dataset) -> bool:
    """Return whether the texts have so few spaces that their words are whole sentences."""
    return _characters_a_word(data) > LONG_WORD


def is_one_word(data: Dataset) -> bool:
    """Whether no text has a space inside: names, codes, or short sentences without spaces."""
    sample = np.asarray(data.train.inputs[:MAX_TEXTS])
    return not any(" " in str(text).strip() for text in sample)


def _characters_a_word(data: Dataset) -> float:
    sample = [str(text) for text in np.asarray(data.train.inputs[:MAX_TEXTS])]
    return sum(map(len, sample)) / max(1, sum(len(words(text)) for text in sample))


def _unspaced(data: Dataset) -> Iterator[str]:
    if data.kind != "text" or (data.vocabulary and data.vocabulary.tokens != "words"):
        return
    if is_unspaced(data):
        yield (
            f"texts have {_characters_a_word(data):.0f} characters per word: for languages without "
            "spaces use --tokens characters"
        )


def _equal_texts(data: Dataset) -> Iterator[str]:
    if data.kind == "text" and len({str(text) for text in data.train.inputs[:MAX_ROWS]}) == 1:
        yield f"all training texts are equal: {str(data.train.inputs[0])[:40]!r}"


def _long_texts(data: Dataset) -> Iterator[str]:
    for name, split in {"training": data.train, "val": data.val, "test": data.test}.items():
        if split is not None:
            yield from long_texts(data.kind, name, split)


def long_texts(kind: str, name: str, split: Split) -> Iterator[str]:
    """Yield how many texts and categories of a split the service would refuse.

    kind: of the data. name: of the split, as the message calls it.
    """
    if kind not in {"text", "columns"}:
        return
    long, longest = 0, 0
    for column in _strings(split):
        lengths = np.fromiter(map(len, column), np.int64, len(column))
        long += int((lengths > MAX_TEXT_CHARACTERS).sum())
        longest = max(longest, int(lengths.max(initial=0)))
    if long:
        yield (
            f"{long:,} of {len(split):,} {name} texts have more than {MAX_TEXT_CHARACTERS:,} "
            f"characters, the longest {longest:,}: the service refuses such texts, so shorten "
            "these as you will shorten those"
        )


def _strings(split: Split) -> Iterator[NDArray[Any]]:
    """Yield the texts of a split, or each of its columns of categories."""
    rows = np.asarray(split.inputs)
    if rows.dtype.names is None:
        yield rows.reshape(-1)
        return
    for name in rows.dtype.names:
        if rows[name].dtype == object:
            yield rows[name].reshape(-1)


def _digests(split: Split) -> Iterator[bytes]:
    """Yield a digest of each row; for image files, of the file's content."""
    inputs = split.inputs
    if isinstance(inputs, ImageFiles):
        for path in inputs.paths[:MAX_ROWS]:
            with open(path, "rb") as file:  # noqa: PTH123 - paths are strings
                yield hashlib.file_digest(file, "blake2b").digest()
        return
    for start in range(0, min(len(split), MAX_ROWS), 1024):
        for row in np.asarray(inputs[start : start + 1024]):
            data = _bytes_of(row)
            yield hashlib.blake2b(data, digest_size=16).digest()


def _bytes_of(row: Any) -> bytes:
    if isinstance(row, str):
        return row.encode()
    if isinstance(
        row, np.void
    ):  # a record of a table: its bytes hold pointers to the strings, not the strings
        return repr(row.tolist()).encode()
    return np.ascontiguousarray(row).tobytes()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:LISTED]) + more
