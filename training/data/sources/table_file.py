"""Reads CSV and Parquet files as columns, and locates a row in its file for messages."""

import codecs
import contextlib
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.columns import FEW_VALUES, is_number, written
from training.data.problems import MARKS_OF_MISSING, check_quotes
from training.faults import BadData, instead, readable

if TYPE_CHECKING:
    import pyarrow as pa

_INDEX = re.compile(r"__index_level_\d+__")
"""The names that pandas gives in Parquet to an index without a name."""
_MAYBE_INDEX = re.compile(r"(Unnamed: 0(\.\d+)*)?")
"""The names of an index without a name in CSV: none, and what pandas makes of that."""
DATES = "dates"
DATE_CURE = (
    "a graph cannot read them, so give what matters of them as numbers, such as year, month, "
    "weekday and hour"
)
TIMES = "times of day"
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?"
    r"|oct(ober)?|nov(ember)?|dec(ember)?)\.?"
)
_DAY = r"\d{1,2}(st|nd|rd|th)?"
_YEAR = r"(19|20)\d\d"
_FORMS_OF_DATES = (
    r"\d{1,2}[./ -]\d{1,2}[./ -](\d{4}|\d{2})",  # 05/01/24
    r"\d{4}[./-]\d{1,2}[./-]\d{1,2}",  # 2024-01-05
    rf"{_YEAR}-(0[1-9]|1[0-2])",  # 2024-01
    rf"{_YEAR}(0[1-9]|1[0-2])[0-3]\d(?=T)",  # 20240105T10
    rf"{_YEAR}-?W\d\d(-?\d)?",  # 2024-W05
    rf"{_DAY}[\s./-]+{_MONTH}([\s,./-]+\d{{2,4}})?",  # 5 Jan 2024
    rf"{_MONTH}[\s./-]+{_DAY}(,?\s+\d{{2,4}})?",  # Jan 5, 2024
    rf"{_MONTH}[\s,./-]+(\d{{4}}|\d{{2}})",  # Jan 2024
)
SPELLINGS = {
    DATES: re.compile(
        r"((mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
        rf"({'|'.join(_FORMS_OF_DATES)})([ T,].*)?",
        re.IGNORECASE,
    ),
    TIMES: re.compile(r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?\s?([ap]\.?m\.?)?", re.IGNORECASE),
    "numbers with a comma": re.compile(r"[-+]?\d+(,\d+)+(\.\d+)?"),
    "numbers in groups of three digits": re.compile(
        r"[-+]?\d{1,3}(([ \u00a0\u2009\u202f]\d{3})*|(['’]\d{3})*|(\.\d{3})*)([.,]\d+)?"
    ),
    "numbers in quotation marks": re.compile(r"(['\"])[-+]?\d+([.,]\d+)?\1"),
    "percentages": re.compile(r"[-+]?\d+([.,]\d+)?\s?%"),
    "amounts of money": re.compile(r"[-+]?[€$£¥]\s?\d[\d.,]*|[-+]?\d[\d.,]*\s?[€$£¥]"),
}
"""Strings that do not make a column categorical if it holds nothing else."""
NEARLY_ALL = 0.9
"""A column holds dates or times if this share of its different values does; the others may be words
such as unknown.
"""
_WITH_UNIT = re.compile(r"[-+]?\d+([.,]\d+)?\s?(?P<unit>[^\s\d.,;:()'\"_-]{1,8})")
"""A number and its unit, such as 5 kg. Only numbers of one unit are meant as numbers."""
FEW_NAMES = 3
"""This many numbers, or fewer, may rise or fall throughout by chance."""
MANY_ROWS = 10_000
"""The most cells of a string column that are examined."""


@dataclass(frozen=True)
class TableFile:
    """The columns of a file, as read by Arrow."""

    path: Path
    columns: "pa.Table"
    encoding: str = "utf-8"

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order of the file."""
        return list(self.columns.column_names)

    def where(self, row: int) -> str:
        """Describe a row for a message: its number, from 0, and in a CSV file its line."""
        if self.path.suffix.lower() == ".parquet":
            return f"{self.path}, row {row}"
        return f"{self.path}, row {row} (line {self._line_of(row)})"

    def values(self, name: str) -> NDArray[Any]:
        """Return a column as an array. Raises BadData that names the first row without a value."""
        column = self.columns.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise BadData(
                f"{self.where(row)}, column '{name}': has no value ({column.null_count} rows like "
                "it); give one, or leave these rows out"
            )
        if _is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return np.asarray(column.to_numpy())

    def is_boolean(self, name: str) -> bool:
        """Return whether a column holds booleans."""
        import pyarrow as pa

        return bool(pa.types.is_boolean(self.columns.column(name).type))

    def is_index(self, name: str) -> bool:
        """Return whether a column is the index of a pandas frame, so its rows' numbers or names.

        In CSV its name alone does not tell: then every row has another whole number or string.
        """
        if _INDEX.fullmatch(name):
            return True
        column = self.columns.column(name)
        return bool(
            _MAYBE_INDEX.fullmatch(name)
            and (_is_whole(column.type) or _is_string(column.type))
            and len(column.unique()) == len(column)
        )

    def is_empty(self, name: str) -> bool:
        """Return whether no row has a value in a column."""
        column = self.columns.column(name)
        return bool(column.null_count == len(column))

    def float64_merges(self, name: str) -> bool:
        """Return whether different whole numbers of a column would be equal in float64."""
        column = self.columns.column(name)
        if not _is_whole(column.type):
            return False
        different = column.unique().drop_null().to_numpy()
        return len(np.unique(different.astype(np.float64))) < len(different)

    def _line_of(self, row: int) -> int:
        """Return the line on which a row begins; a quoted cell may contain line breaks."""
        with self.path.open(encoding=self.encoding, errors="replace", newline="") as file:
            reader = csv.reader(file)
            for _ in range(row + 1):
                next(reader, None)
            return reader.line_num + 1


def column_names(path: Path, *, encoding: str = "utf-8") -> list[str]:
    """Read the names of a file's columns. Raises BadData if they cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            return distinct(path, list(parquet.read_schema(path).names))
        check_quotes(path, encoding)
        # a byte order mark is not part of the first name
        with path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding) as file:
            found = next(csv.reader(file), [])
    except (pa.ArrowException, OSError, LookupError, UnicodeError) as error:
        check_encoding(path, encoding)
        raise BadData(
            f"{path}: cannot be read: {readable(error)}{instead(path)}; expected a whole CSV or "
            "Parquet file"
        ) from error
    if not found:
        raise BadData(f"{path}: the first line is empty; expected the names of the columns")
    check_first_line(path, found)
    return found


def read_table(path: Path, *, texts: Sequence[str], encoding: str = "utf-8") -> TableFile:
    """Read a table.

    texts: columns to read as strings, so that 001 stays 001. encoding: of a CSV file. Raises
    BadData if the file cannot be read, has no rows, or has two columns of one name.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            found = parquet.read_table(path)
        else:
            found = arrow_csv.read_csv(
                path,
                # in order, so that an error can count the rows
                read_options=arrow_csv.ReadOptions(use_threads=False, encoding=encoding),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(texts, pa.string())
                ),
            )
    except (pa.ArrowException, OSError, LookupError, UnicodeError) as error:
        check_encoding(path, encoding)
        check_quotes(path, encoding)
        check_lengths(path, encoding)
        raise BadData(
            f"{path}: cannot be read: {readable(error)}{instead(path)}; expected a whole CSV or "
            "Parquet file"
        ) from error
    check_quotes(path, encoding)
    if any(pa.types.is_binary(kind) for kind in found.schema.types):
        check_encoding(path, encoding)
    distinct(path, found.column_names)
    if not found.num_rows:
        raise BadData(f"{path}: has no rows; expected at least one")
    return TableFile(path, as_meant(found), encoding)


def as_meant(table: "pa.Table") -> "pa.Table":
    """Return the table with bytes as strings, where they are UTF-8, and categories as such.

    Tools that know no type for strings store them as bytes. Parquet keeps categories of strings,
    and those of numbers only as a remark of pandas.
    """
    import pyarrow as pa

    remarks = (table.schema.pandas_metadata or {}).get("columns", [])
    declared = {each.get("name") for each in remarks if each.get("pandas_type") == "categorical"}
    for place, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        if _is_dictionary(kind):
            continue
        column = table.column(place)
        if name in declared:
            table = table.set_column(place, name, column.dictionary_encode())
        elif _is_bytes(kind):
            with contextlib.suppress(pa.ArrowInvalid):  # bytes that are not text stay as they are
                strings = column.cast(pa.large_binary()).cast(pa.large_string())
                table = table.set_column(place, name, strings)
    return table


def check_lengths(path: Path, encoding: str) -> None:
    """Raise BadData that names the first line of a CSV file with more or fewer cells than names.

    A file that ends after its first line is refused, too. Files other than CSV are not checked.
    """
    if path.suffix.lower() != ".csv":
        return
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        width = len(names)
        begun = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != width:
                if width == 1 and any(mark in names[0] for mark in ";\t|"):
                    raise BadData(
                        f"{path}: the columns of a CSV file are separated by commas, and its first "
                        f"line has none ({names[0][:60]!r}); save it with commas between columns "
                        "and a point in numbers (0.5)"
                    )
                raise BadData(
                    f"{path}, line {begun}: has {len(cells)} cells, and the first line names "
                    f"{width} columns; correct the line, and write a comma within a cell in "
                    'quotation marks ("a,b")'
                )
            begun = reader.line_num + 1
    if width and begun == 2:
        raise BadData(f"{path}: has no rows; expected at least one")


def check_first_line(path: Path, names: Sequence[str]) -> None:
    """Raise BadData if a CSV file begins with a row of numbers, which would be lost as its names.

    Numbers that count from 0 or 1 are names, as pandas writes them. So are more than FEW_NAMES that
    rise or fall throughout, such as wavelengths.
    """
    try:
        numbers = np.array([float(name) for name in names])
    except ValueError:
        return
    counted = np.arange(len(numbers))
    steps = np.diff(numbers)
    ordered = len(numbers) > FEW_NAMES and ((steps > 0).all() or (steps < 0).all())
    if ordered or (numbers == counted).all() or (numbers == counted + 1).all():
        return
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    some = ",".join(f"c{n}" for n in range(min(3, len(names)))) + (",…" if len(names) > 3 else "")
    raise BadData(
        f"{path}: its first line is a row of numbers ({shown}); expected the names of the "
        f"columns, without which this row would be lost: write a line above it, such as {some}"
    )


def distinct(path: Path, names: list[str]) -> list[str]:
    """Return the names of a table's columns. Raises BadData if two are equal."""
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise BadData(f"{path}: has two columns named '{repeated[0]}'; rename one")
    return names


def is_category(table: TableFile, name: str) -> bool:
    """Return whether a column holds strings that count as categories.

    If most but not all of the strings are numbers, the column counts as damaged numbers instead. If
    all are numbers, they are codes, and so categories. A dictionary is what pandas makes of its
    categories, and so one, whatever its values are.
    """
    kind = table.columns.column(name).type
    if _is_dictionary(kind):
        return True
    if not _is_string(kind):
        return False
    values = set(categories(table, name)[:MANY_ROWS]) - {""}
    count = sum(map(is_number, values))
    return 2 * count <= len(values) or count == len(values)


def disguised(values: NDArray[np.object_]) -> tuple[str, str] | None:
    """Recognise strings [n] that are dates, times, or numbers in another spelling.

    Returns (what they are, the first of them), or None for other strings. A few values may be meant
    as categories, such as the hours of three shifts, but dates never are.
    """
    distinct = set(values[:MANY_ROWS]) - {""}
    for what, pattern in SPELLINGS.items():
        needed = NEARLY_ALL if what in (DATES, TIMES) else 1
        alike = {value for value in distinct if pattern.fullmatch(value.strip())}
        odd = {value for value in alike if not is_number(value)}
        if odd and len(alike) >= needed * len(distinct):
            first = next(value for value in values if value in odd)
            return (what, first) if what == DATES or len(distinct) > FEW_VALUES else None
    if len(distinct) > FEW_VALUES and len(set(map(_unit_of, distinct))) == 1:
        first = next(value for value in values if value)
        return ("numbers with a unit", first) if _unit_of(first) else None
    return None


def _unit_of(value: str) -> str:
    found = _WITH_UNIT.fullmatch(value.strip())
    return found["unit"] if found else ""


def categories(table: TableFile, name: str) -> NDArray[np.object_]:
    """Return a column as strings [n]; a missing value is an empty string."""
    column = table.columns.column(name)
    if _is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    cells = column.to_pylist()
    row = next((row for row, cell in enumerate(cells) if isinstance(cell, bytes | list | dict)), -1)
    if row >= 0:
        what = "bytes that are not UTF-8" if isinstance(cells[row], bytes) else "several values"
        raise BadData(
            f"{table.where(row)}, column '{name}': holds {what}; expected one string for each row "
            f"(&without={name} leaves the column out of a training)"
        )
    found = np.empty(len(column), dtype=object)
    found[:] = [written(value) for value in cells]
    return found


def numbers(
    table: TableFile, name: str, *, missing: bool = False, published: bool = False
) -> NDArray[np.float64]:
    """Return a column of numbers [n, 1], or of equally long lists [n, width], as float64.

    missing: whether a cell may be empty, which then becomes NaN; a list never may. published:
    whether the rows are for a published model, which needs the column. Raises BadData that names
    the first cell that is not a number or does not fit into float32.
    """
    import pyarrow as pa

    column = table.columns.column(name)
    kind = column.type
    refused = _refused(kind)
    if refused:
        cure = "" if published else f", or leave it out with &without={name}"
        raise BadData(f"{table.path}, column '{name}': holds {refused}{cure}")
    absent = column.is_null().to_numpy() if missing else np.zeros(len(table), bool)
    values = np.asarray(column.to_numpy()) if absent.any() else table.values(name)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        found = _lists(table, name, values)
    else:
        row = None
        if values.dtype.kind not in "iufb":
            row = next(
                (r for r, v in enumerate(values) if not absent[r] and not is_number(v)), None
            )
        if row is not None:
            raise BadData(
                f"{table.where(row)}, column '{name}': {str(values[row])[:60]!r} is not a number; "
                f"{_cure(name, values[row], missing=missing, published=published)}"
            )
        if values.dtype == object:
            values = np.where(absent, np.nan, values)
        found = values.astype(np.float64)[:, None]
        if missing:
            absent |= np.isnan(found[:, 0])
    largest = np.finfo(np.float32).max
    bad = np.flatnonzero(~(np.abs(found) <= largest).all(axis=1) & ~absent)
    if bad.size:
        row = int(bad[0])
        cell = found[row][~(np.abs(found[row]) <= largest)][0]
        reason = " does not fit into float32" if np.isfinite(cell) else " is not a finite number"
        raise BadData(
            f"{table.where(row)}, column '{name}': {cell:g}{reason} ({bad.size} rows like it); "
            "correct them, or leave the rows out"
        )
    return found


def _cure(name: str, cell: Any, *, missing: bool, published: bool) -> str:
    """What to do about a cell that is not a number."""
    mark = str(cell).strip().casefold() in MARKS_OF_MISSING and missing
    empty = "leave the cell empty if its number is missing" if mark else ""
    if published:
        return empty or "the model takes numbers here"
    if isinstance(cell, list | dict | tuple | np.ndarray):
        return f"give each of its values a column, or leave it out with &without={name}"
    whole = f"leave the column out with &without={name}"
    return f"{f'{empty}, ' if empty else ''}{whole}, or take it as strings with &category={name}"


def _lists(table: TableFile, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    empty = next((row for row, one in enumerate(values) if one is None), None)
    if empty is not None:
        raise BadData(
            f"{table.where(empty)}, column '{name}': has no list; expected one in every row, or "
            f"leave the column out with &without={name}"
        )
    width = len(values[0])
    if not width:
        raise BadData(
            f"{table.path}, column '{name}': the list of row 0 is empty; expected at least one "
            f"number in each, or leave the column out with &without={name}"
        )
    wrong = next((row for row, one in enumerate(values) if len(one) != width), None)
    if wrong is not None:
        raise BadData(
            f"{table.where(wrong)}, column '{name}': a list of {len(values[wrong])}; "
            f"expected {width} numbers as in row 0"
        )
    try:
        return np.stack([np.asarray(one, np.float64) for one in values])
    except (TypeError, ValueError) as error:
        raise BadData(
            f"{table.path}, column '{name}': holds lists of other values than numbers: {error}; "
            f"leave the column out with &without={name}"
        ) from None


def _refused(kind: Any) -> str | None:
    """Name what a column of this type holds, if that cannot be used as numbers."""
    import pyarrow as pa

    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return f"dates or times; {DATE_CURE}"
    if pa.types.is_temporal(kind):
        return f"times or durations; {DATE_CURE}"
    if _is_bytes(kind):  # bytes that are UTF-8 were made strings
        return "bytes that are not UTF-8; give numbers or strings"
    return None


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_dictionary(kind: Any) -> bool:
    """Return whether a column is dictionary-encoded, like a pandas categorical."""
    import pyarrow as pa

    return bool(pa.types.is_dictionary(kind))


def check_encoding(
    path: Path,
    encoding: str,
    *,
    cure: str = "save the file as UTF-8, or add &encoding=latin-1 to the specification",
) -> None:
    """Raise BadData that names the first line of a text file that is not in the encoding."""
    if path.suffix.lower() == ".parquet":
        return
    number = 0
    try:
        with path.open("rb") as file:
            for line in file:
                number += 1
                line.decode(encoding)
    except UnicodeDecodeError as error:
        other = instead(path)
        if number == 1 and other:
            raise BadData(f"{path}: is not a CSV file{other}; save it as CSV or Parquet") from None
        wide = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if wide and number == 1:
            cure = "it looks like UTF-16; save the file as UTF-8"
        raise BadData(
            f"{path}, line {number}: byte 0x{error.object[error.start]:02x} is not {encoding}; "
            f"{cure}"
        ) from None
    except LookupError:
        raise BadData(
            f"{path}: unknown encoding '{encoding}'; expected one such as utf-8 or latin-1"
        ) from None
