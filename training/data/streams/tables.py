"""Reads blocks of rows from tables: Parquet, CSV and JSON lines."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from training.data.problems import check_quotes
from training.data.sources.table_file import (
    as_meant,
    check_encoding,
    check_first_line,
    check_lengths,
    distinct,
)
from training.data.streams.cells import feature_names, features, listed
from training.data.streams.json_lines import check_json_lines
from training.data.streams.records import CsvRecords, JsonRecords, TextRecords, Types
from training.data.streams.rows import Block, Reading, Rows, joined
from training.data.streams.salvage import salvage
from training.faults import BadData, Fault, WrongUse, instead, readable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv

Group: TypeAlias = "tuple[int, Callable[..., pa.Table]]"
"""The number of rows of a block, and a function that makes a table of some of them: it takes a
slice, and the columns to read, by default all.
"""
Kept: TypeAlias = "dict[str, pa.Array]"

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")


def blocks(
    path: Path, reading: Reading, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Yield (number, block) of a table.

    Raises WrongUse when its columns do not fit the model, BadData when it cannot be read.
    """
    import pyarrow as pa

    if reading.spec.kind == "image":
        raise WrongUse(f"{path}: is a table; the model takes images")
    by_record = reading.skip_broken and path.suffix.lower() != ".parquet"
    groups = _groups_of_records if by_record else _tables
    start = 0
    try:
        for number, (rows, table_of) in enumerate(groups(path, reading)):
            if not skip(number):
                yield number, _block(path, rows, table_of, start, reading)
            start += rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if not instead(path):
            _check_lines(path)
        raise BadData(
            f"{path}: cannot be read: {readable(error)}{instead(path)}; correct it, or write it "
            "again as CSV, JSON lines or Parquet"
        ) from error


def _tables(path: Path, reading: Reading) -> Iterator[Group]:
    """Yield the rows of each block, in a table."""
    import pyarrow as pa

    waiting = None
    for batch in _batches(path, reading):
        table = pa.Table.from_batches([batch])
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= reading.rows:
            yield reading.rows, partial(_part_of, waiting.slice(0, reading.rows))
            waiting = waiting.slice(reading.rows)
    if waiting is not None and waiting.num_rows:
        yield waiting.num_rows, partial(_part_of, waiting)


def _part_of(table: "pa.Table", part: slice, columns: Sequence[str] | None = None) -> "pa.Table":
    some = table.slice(part.start, part.stop - part.start)
    return some if columns is None else some.select(list(columns))


def _groups_of_records(path: Path, reading: Reading) -> Iterator[Group]:
    """Yield the records of each block of a CSV or JSON file, of which some may be broken."""
    file = CsvRecords(path) if path.suffix.lower() == ".csv" else JsonRecords(path)
    types = _settled_types(path, reading, file)
    feature_names(path, [*types], reading)
    _check_kept(path, [*types], reading)
    start = 0
    records = file.records()
    while some := list(islice(records, reading.rows)):
        yield len(some), _Records(file, some, start, types)
        start += len(some)


@dataclass(frozen=True)
class _Records:
    """The records of a block: `start` is the row of the first, and `types` those of the columns."""

    file: TextRecords
    records: Sequence[bytes]
    start: int
    types: Types

    def __call__(self, part: slice, columns: Sequence[str] | None = None) -> "pa.Table":
        """Parse some of them. Raises BadData if one is broken."""
        wanted = self.types if columns is None else {name: self.types[name] for name in columns}
        return self.file.table(self.records[part], self.start + part.start, wanted)


def _settled_types(path: Path, reading: Reading, file: TextRecords) -> Types:
    """The columns to read, with types that hardly any record decides alone.

    One broken record at the beginning makes its column one of strings, or the file unreadable. Then
    the types are those of most records there. Raises BadData for a column of strings that the model
    takes as numbers.
    """
    import pyarrow as pa

    try:
        types = _types(path, reading, _schema(path))
    except pa.ArrowException:
        types = {}
    if not types or _words_for_numbers(types, reading):
        sampled = file.sampled_schema()
        if not sampled.names:
            _check_lines(path)
        types = _types(path, reading, sampled)
    odd = _words_for_numbers(types, reading)
    if odd:
        raise BadData(
            f"{path}, column '{odd[0]}': holds {types[odd[0]]} in most rows; expected numbers "
            "(name the features with --columns, or the others with --leave-out)"
        )
    return types


def _words_for_numbers(types: Types, reading: Reading) -> list[str]:
    """Return the columns of strings or dates that the model takes as numbers."""
    import pyarrow as pa

    dtypes = _dtypes(reading, [*types])
    return [
        name
        for name, kind in types.items()
        if dtypes[name] != "string"
        and (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_temporal(kind))
    ]


def _schema(path: Path) -> "pa.Schema":
    """The columns of a CSV or JSON file, with the types of its first rows."""
    from pyarrow import csv
    from pyarrow import json as arrow_json

    if path.suffix.lower() == ".csv":
        check_quotes(path)
        with csv.open_csv(path, parse_options=_quoted()) as reader:
            return reader.schema
    with arrow_json.open_json(path) as reader:
        return reader.schema


def _quoted() -> "csv.ParseOptions":
    from pyarrow import csv

    return csv.ParseOptions(newlines_in_values=True)


def _check_lines(path: Path) -> None:
    """Raise BadData that names the first line of a CSV or JSON file that cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return
    check_encoding(path, "utf-8", cure="save the file as UTF-8")
    if suffix == ".csv":
        check_lengths(path, "utf-8")
    else:
        check_json_lines(path)


def _batches(path: Path, reading: Reading) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            distinct(path, file.schema_arrow.names)
            yield from file.iter_batches(batch_size=reading.rows)
        return
    types = _types(path, reading, _schema(path))
    if suffix == ".csv":
        converted = csv.ConvertOptions(column_types=types, include_columns=[*types])
        with csv.open_csv(path, parse_options=_quoted(), convert_options=converted) as reader:
            yield from reader
    else:
        known = pa.schema([*types.items()])
        options = arrow_json.ParseOptions(explicit_schema=known, unexpected_field_behavior="ignore")
        with arrow_json.open_json(path, parse_options=options) as reader:
            yield from reader


def _dtypes(reading: Reading, columns: Sequence[str]) -> dict[str, str]:
    """The columns to read, and the dtype in which the model takes each; kept ones are strings."""
    aside = {*reading.keep, *reading.leave_out}
    named = reading.columns or [name for name in columns if name not in aside]
    dtypes = dict.fromkeys(named, reading.spec.dtype)
    dtypes |= {each.name: each.dtype for each in reading.spec.columns}
    return dtypes | dict.fromkeys(reading.keep, "string")


def _types(path: Path, reading: Reading, found: "pa.Schema") -> "dict[str, pa.DataType]":
    """The columns to read of a CSV or JSON file, with types that all their rows fit.

    found: the types of its first rows only, where numbers may be whole by chance, or missing. What
    is a string for the model stays as it is written in a CSV file, as do kept columns, so that 01
    does not become 1.
    """
    import pyarrow as pa

    if path.suffix.lower() == ".csv" and not (reading.columns or reading.spec.columns):
        check_first_line(path, found.names)
    _check_kept(path, found.names, reading)  # here, where all columns are known
    feature_names(path, found.names, reading)
    dtypes = _dtypes(reading, found.names)
    types: dict[str, pa.DataType] = {}
    for name in (each for each in dtypes if each in found.names):
        places = found.get_all_field_indices(name)
        if len(places) > 1:
            raise BadData(f"{path}: has two columns named '{name}'; rename one")
        kind = found.types[places[0]]
        if dtypes[name] == "string":
            as_is = path.suffix.lower() != ".csv" and not pa.types.is_null(kind)
            types[name] = kind if as_is else pa.string()
        else:
            types[name] = kind if "int" in dtypes[name] else _wider(kind)
    return types


def _wider(kind: "pa.DataType") -> "pa.DataType":
    """The type that also holds fractions, where the first rows had none."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(_wider(kind.value_type))
    narrow = pa.types.is_integer(kind) or pa.types.is_null(kind)
    return pa.float64() if narrow else kind


def _block(
    path: Path,
    rows: int,
    table_of: "Callable[..., pa.Table]",
    start: int,
    reading: Reading,
) -> Block:
    """Convert the rows of a block to inputs, and take the kept columns from them."""

    def convert(part: slice) -> "tuple[Rows, Kept]":
        table = table_of(part)
        _check_kept(path, table.column_names, reading)
        kept = {name: table.column(name).combine_chunks() for name in reading.keep}
        return features(path, as_meant(table), start + part.start, reading), kept

    if not reading.skip_broken:
        return Block(start, *convert(slice(0, rows)))
    pieces, broken = salvage(rows, convert)
    kept_of: dict[int, Kept | None] = {part.start: kept for part, (_, kept) in pieces}
    for row in broken if reading.keep else ():
        with contextlib.suppress(Fault):
            table = table_of(slice(row, row + 1), reading.keep)
            kept_of[row] = {name: table.column(name).combine_chunks() for name in reading.keep}
        kept_of.setdefault(row, None)
    kept = {name: _filled([kept_of[row] for row in sorted(kept_of)], name) for name in reading.keep}
    return Block(start, joined([found for _, (found, _) in pieces]), kept, broken=broken)


def _filled(pieces: "Sequence[Kept | None]", name: str) -> "pa.Array":
    """Join the pieces of a kept column; None stands for a row that has no cells."""
    import pyarrow as pa

    kinds = [piece[name].type for piece in pieces if piece is not None]
    kind = kinds[0] if kinds else pa.string()
    return pa.concat_arrays(
        [pa.nulls(1, kind) if piece is None else piece[name] for piece in pieces]
    )


def _check_kept(path: Path, columns: Sequence[str], reading: Reading) -> None:
    missing = [name for name in reading.keep if name not in columns]
    if missing:
        raise WrongUse(f"{path}: has no column '{missing[0]}' to keep; it has {listed(columns)}")
