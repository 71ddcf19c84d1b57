"""Reads blocks of rows from tables: Parquet, CSV and JSON lines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.problems import check_quotes
from training.data.sources.table_file import as_meant, check_encoding, check_lengths, distinct
from training.data.streams.cells import features, listed
from training.data.streams.json_lines import check_json_lines
from training.data.streams.rows import Block, Reading
from training.faults import BadData, WrongUse, instead, readable

if TYPE_CHECKING:
    import pyarrow as pa

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
    try:
        number, start, waiting = 0, 0, None
        for batch in _batches(path, reading):
            table = pa.Table.from_batches([batch])
            waiting = table if waiting is None else pa.concat_tables([waiting, table])
            while waiting.num_rows >= reading.rows:
                whole, waiting = waiting.slice(0, reading.rows), waiting.slice(reading.rows)
                if not skip(number):
                    yield number, _of_table(path, whole, start, reading)
                number, start = number + 1, start + whole.num_rows
        if waiting is not None and waiting.num_rows and not skip(number):
            yield number, _of_table(path, waiting, start, reading)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if not instead(path):
            _check_lines(path)
        raise BadData(
            f"{path}: cannot be read: {readable(error)}{instead(path)}; correct it, or write it "
            "anew as CSV, JSON lines or Parquet"
        ) from error


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
    elif suffix == ".csv":
        check_quotes(path)
        quoted = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, parse_options=quoted) as reader:
            types = _types(path, reading, reader.schema)
        converted = csv.ConvertOptions(column_types=types, include_columns=[*types])
        with csv.open_csv(path, parse_options=quoted, convert_options=converted) as reader:
            yield from reader
    else:
        with arrow_json.open_json(path) as reader:
            known = pa.schema([*_types(path, reading, reader.schema).items()])
        options = arrow_json.ParseOptions(explicit_schema=known, unexpected_field_behavior="ignore")
        with arrow_json.open_json(path, parse_options=options) as reader:
            yield from reader


def _types(path: Path, reading: Reading, found: "pa.Schema") -> "dict[str, pa.DataType]":
    """The columns to read of a CSV or JSON file, with types that all their rows fit.

    found: the types of its first rows only, where numbers may be whole by chance, or missing. What
    is a string for the model stays as it is written in a CSV file, as do kept columns, so that 01
    does not become 1.
    """
    import pyarrow as pa

    aside = {*reading.keep, *reading.leave_out}
    named = reading.columns or [name for name in found.names if name not in aside]
    dtypes = dict.fromkeys(named, reading.spec.dtype)
    dtypes |= {each.name: each.dtype for each in reading.spec.columns}
    dtypes |= dict.fromkeys(reading.keep, "string")
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


def _of_table(path: Path, table: "pa.Table", start: int, reading: Reading) -> Block:
    missing = [name for name in reading.keep if name not in table.column_names]
    if missing:
        raise WrongUse(f"{path}: has no column '{missing[0]}' to keep; it has {listed(table)}")
    kept = {name: table.column(name).combine_chunks() for name in reading.keep}
    return Block(start, features(path, as_meant(table), start, reading), kept)
