"""Reads the records of a CSV or JSON lines file one by one, so that a broken one spoils no other.

Arrow's readers, which are faster, end at the first record that they cannot read.
"""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from training.data.streams.json_lines import check_json_line
from training.faults import BadData, readable

if TYPE_CHECKING:
    import pyarrow as pa

Types: TypeAlias = "dict[str, pa.DataType]"

SAMPLED = 200
"""The records whose types are found one by one, if the file's beginning as a whole has none."""
_PLACE = re.compile(r"Row #\d+: | in row \d+")
"""Matches the row in Arrow's message, which counts from the first record that Arrow was given."""
_CELL = re.compile(r"In CSV column #(\d+): CSV conversion error to \w+: invalid value '(.*)'")
_MEMBER = re.compile(r"JSON parse error: Column\(/(.+)\) changed from (\w+) to (\w+)")


class TextRecords(Protocol):
    """A file of records."""

    def records(self) -> Iterator[bytes]:
        """Yield the bytes of each record, in order. Empty lines are none."""

    def table(self, records: Sequence[bytes], start: int, types: "Types | None") -> "pa.Table":
        """Parse records. Raises BadData if one is broken.

        start: the row of the first of them. types: of the columns to read; None finds them.
        """

    def sampled_schema(self) -> "pa.Schema":
        """Return the columns of the first records, each with the type that most of them give it."""


class CsvRecords:
    """The records of a CSV file below its line of names. Its quotation marks must pair."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = next(self._all(), b"")

    def records(self) -> Iterator[bytes]:
        """Yield the bytes of each record below the line of names, in order."""
        yield from islice(self._all(), 1, None)

    def table(self, records: Sequence[bytes], start: int, types: "Types | None") -> "pa.Table":
        """Parse records as `TextRecords.table` describes. Raises BadData."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        data = self._names + b"".join(records)
        try:
            found = arrow_csv.read_csv(
                pa.BufferReader(data),
                read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_block_size(data)),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, include_columns=None if types is None else [*types]
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError) as error:
            why = self._fault(records[0], readable(error))
            raise BadData(f"{self._path}, row {start}{why}") from error
        return _of_length(found, self._path, start, len(records))

    def sampled_schema(self) -> "pa.Schema":
        """Return the columns of the first records, each with the type that most of them give it."""
        return _sampled_schema(self)

    def _all(self) -> Iterator[bytes]:
        lines: list[str] = []

        def noted(file: Iterator[str]) -> Iterator[str]:
            for line in file:
                lines.append(line)
                yield line

        with self._path.open(encoding="latin-1", newline="") as file:  # one letter is one byte
            try:
                for cells in csv.reader(noted(file)):
                    if cells:
                        yield "".join(lines).encode("latin-1")
                    lines.clear()
            except csv.Error as error:
                raise BadData(f"{self._path}: cannot be read: {error}") from error

    def _fault(self, record: bytes, said: str) -> str:
        """What is wrong with a record. said: Arrow's message."""
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            return f": byte 0x{record[error.start]:02x} is not UTF-8; save the file as UTF-8"
        wanted, cells = (
            next(csv.reader(each.splitlines(keepends=True)), [])
            for each in (self._names.decode("utf-8-sig", errors="replace"), text)
        )
        if len(cells) != len(wanted):
            return f": has {len(cells)} cells, and the first line names {len(wanted)} columns"
        said = _PLACE.sub("", said)
        found = _CELL.fullmatch(said)
        if found is None:
            return f": cannot be read: {said}"
        return f", column '{wanted[int(found[1])]}': holds '{found[2]}'; expected a number"


class JsonRecords:
    """The lines of a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self) -> Iterator[bytes]:
        """Yield the bytes of each line that is not empty, in order."""
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                whole = line if number else line.removeprefix(codecs.BOM_UTF8)
                if whole.strip():
                    yield whole if whole.endswith(b"\n") else whole + b"\n"

    def table(self, records: Sequence[bytes], start: int, types: "Types | None") -> "pa.Table":
        """Parse records as `TextRecords.table` describes. Raises BadData."""
        import pyarrow as pa
        from pyarrow import json as arrow_json

        data = b"".join(records)
        known = {} if types is None else {"explicit_schema": pa.schema([*types.items()])}
        others = "infer" if types is None else "ignore"
        try:
            found = arrow_json.read_json(
                pa.BufferReader(data),
                read_options=arrow_json.ReadOptions(
                    use_threads=False, block_size=_block_size(data)
                ),
                parse_options=arrow_json.ParseOptions(unexpected_field_behavior=others, **known),
            )
        except (pa.ArrowException, UnicodeDecodeError) as error:
            if len(records) == 1:
                check_json_line(f"{self._path}, row {start}", records[0])
            said = _PLACE.sub("", readable(error))
            other = _MEMBER.fullmatch(said)
            why = f": cannot be read: {said}"
            if other is not None:
                name, expected, kind = other.groups()
                why = f", column '{name}': is a {kind}; expected a {expected}, as in most rows"
            raise BadData(f"{self._path}, row {start}{why}") from error
        return _of_length(found, self._path, start, len(records))

    def sampled_schema(self) -> "pa.Schema":
        """Return the members of the first records, each with the type that most of them give it."""
        return _sampled_schema(self)


def _sampled_schema(file: TextRecords) -> "pa.Schema":
    import pyarrow as pa

    kinds: dict[str, Counter[pa.DataType]] = {}
    for record in islice(file.records(), SAMPLED):
        try:
            schema = file.table([record], 0, None).schema
        except BadData:
            continue
        for name, kind in zip(schema.names, schema.types, strict=True):
            counted = kinds.setdefault(name, Counter())
            if not pa.types.is_null(kind):
                counted[kind] += 1
    found = {name: c.most_common(1)[0][0] if c else pa.null() for name, c in kinds.items()}
    return pa.schema([*found.items()])


def _of_length(found: "pa.Table", path: Path, start: int, rows: int) -> "pa.Table":
    if found.num_rows != rows:
        raise BadData(f"{path}, row {start}: holds {found.num_rows} records; expected one a line")
    return found


def _block_size(data: bytes) -> int:
    """More bytes than there are, so that no record is divided; Arrow's limit is 2 GiB."""
    return min(max(len(data) + 1, 2**20), 2**31 - 1)
