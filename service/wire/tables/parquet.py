"""Parquet files → columns by name, with the library pyarrow.

A page declares how many bytes it has when decompressed, and pyarrow allocates that many. So this
module first reads the metadata and the headers of all pages (Thrift's compact protocol, as in
parquet.thrift). It never asks pyarrow for a row group or a column chunk: for damaged metadata of
one, its C++ code throws what Python's binding does not catch, and that ends the process.
"""

from collections.abc import Callable, Sequence
from typing import Any

from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.shown import short
from service.wire.tables.arrow import MAX_METADATA_BYTES, columns_of, library
from service.wire.tables.rows import Column, check_names, without_index

MAX_ROW_GROUPS = 1_000
MAX_PAGES = 20_000
"""The most pages of a file: reading their headers in Python takes time."""
_MAGIC = b"PAR1"
_GROUPS = 4
"""The field of FileMetaData that lists its row groups."""
_CHUNKS, _GROUP_ROWS = 1, 3
"""Fields of RowGroup."""
_CHUNK_METADATA = 3
"""The field of ColumnChunk that describes its pages."""
_PATH, _VALUES, _CHUNK_SIZE, _FIRST_PAGE, _DICTIONARY_PAGE = 3, 5, 7, 9, 11
"""Fields of ColumnMetaData."""
_KIND, _SIZE, _STORED = 1, 2, 3
"""Fields of PageHeader: its type, and its bytes before and after compression."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Fields of PageHeader that hold the details of each type of page."""
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED",
              5: "DELTA_BINARY_PACKED", 6: "DELTA_LENGTH_BYTE_ARRAY", 8: "RLE_DICTIONARY",
              9: "BYTE_STREAM_SPLIT"}  # fmt: skip
"""All encodings except DELTA_BYTE_ARRAY, in which one byte may expand to a long text."""
_DELTA_LENGTH = 6
_MAX_FIXED_BYTES = 16
"""The most bytes of a fixed-length value: a decimal number, or a float of 16 bits."""
_FOOTER_LEVELS = 16
"""The most structs and lists within each other in a file's metadata."""
_MOST_FIELD, _LONG_LIST = 2**15, 15
_LEAST_BYTES = 4
"""The fewest bytes of a value in a dictionary page, unless all have a length of their own."""


def read_parquet(
    body: bytes | bytearray,
    expected: Sequence[str] | None,
    *,
    max_rows: int,
    max_bytes: int,
    check: Callable[[Sequence[str], Sequence[str] | None], None] = check_names,
) -> dict[str, Column]:
    """The columns of a file. Raises Malformed, InvalidInput, TooLarge or UnsupportedBody.

    check: raises InvalidInput where the names of the columns are not as `expected`.
    max_rows, max_bytes: how many rows one request may have, and how many bytes when decompressed.
    """
    pa = library()
    import pyarrow.parquet as pq

    groups = _groups(body)
    try:
        options: dict[str, Any] = {
            "thrift_string_size_limit": MAX_METADATA_BYTES,
            "thrift_container_size_limit": MAX_METADATA_BYTES // 16,
            "pre_buffer": False,
            "arrow_extensions_enabled": False,
        }
        file = pq.ParquetFile(pa.BufferReader(body), **options)
        names = without_index(file.schema_arrow.names, expected)
        check(names, expected)
        lengths = _check_columns(file.metadata)
        plain = _check_pages(body, groups, lengths, max_rows=max_rows, max_bytes=max_bytes)
        columns = (file.metadata.schema.column(at) for at in range(file.metadata.num_columns))
        texts = [
            column.path
            for at, column in enumerate(columns)
            if column.physical_type == "BYTE_ARRAY" and at not in plain
        ]
        file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=texts, **options)
        table = file.read(columns=names, use_threads=False)
        table.validate(full=True)
    except (InvalidInput, Malformed, TooLarge):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Malformed(
            f"the body is not a Parquet file: {str(error)[:200]}; send what "
            "pyarrow.parquet.write_table writes"
        ) from None
    return columns_of(table, max_rows=max_rows)


_CONTRADICTS = "is described by metadata of the Parquet file that contradicts itself"
_WRITE_AGAIN = "write the Parquet file again, or send CSV"


def _groups(body: bytes | bytearray) -> list[dict[int, Any]]:
    """The row groups of a file's metadata. Raises Malformed or TooLarge."""
    if not (len(body) > 12 and body.startswith(_MAGIC) and body.endswith(_MAGIC)):
        raise Malformed(
            "the body is not a whole Parquet file: it does not begin and end with PAR1; send the "
            "whole file"
        )
    size = int.from_bytes(body[-8:-4], "little")
    if size > MAX_METADATA_BYTES:
        raise TooLarge(
            f"the Parquet file's metadata has {size} bytes; at most {MAX_METADATA_BYTES} are "
            "accepted"
        )
    footer, _ = _Thrift(bytes(body[-8 - size : -8]), 0, keeps_all=True).struct(_FOOTER_LEVELS)
    groups = _list(footer, _GROUPS)
    if len(groups) > MAX_ROW_GROUPS:
        raise TooLarge(
            f"the Parquet file has more than {MAX_ROW_GROUPS} row groups; write it with larger ones"
        )
    if not all(isinstance(group, dict) for group in groups):
        raise Malformed(f"a row group {_CONTRADICTS}; {_WRITE_AGAIN}")
    return groups


def _check_columns(metadata: Any) -> list[int | None]:
    """Raise InvalidInput for a column that is not one number or text a row.

    For each column, returns the size of every value in bytes; None where sizes may differ.
    """
    lengths: list[int | None] = []
    for at in range(metadata.num_columns):
        column = metadata.schema.column(at)
        if column.max_repetition_level or column.path != column.name:
            raise InvalidInput(f"column {short(column.path)} is nested; expected one value a row")
        fixed = column.physical_type == "FIXED_LEN_BYTE_ARRAY"
        if fixed and not 0 < column.length <= _MAX_FIXED_BYTES:
            raise InvalidInput(
                f"column {short(column.path)} holds {column.length} bytes a row; expected numbers "
                "or texts"
            )
        lengths.append(column.length if fixed else None)
    return lengths


def _check_pages(
    body: bytes | bytearray,
    groups: list[dict[int, Any]],
    lengths: Sequence[int | None],
    *,
    max_rows: int,
    max_bytes: int,
) -> set[int]:
    """Add up the sizes that all pages declare, and refuse a file that declares too much.

    lengths: for each column, what `_check_columns` returns. Returns the columns whose texts are
    DELTA_LENGTH_BYTE_ARRAY: pyarrow cannot read them as a dictionary, and they need none, since
    each text takes its bytes.
    """
    rows = sum(max(0, _number(group, _GROUP_ROWS, "a row group")) for group in groups)
    if rows > max_rows:
        raise TooLarge(f"the body has {rows} rows; at most {max_rows} can wait: send fewer")
    pages = _Pages(body, max_bytes)
    for group in groups:
        chunks = _list(group, _CHUNKS)
        if len(chunks) != len(lengths):
            raise Malformed(f"a row group {_CONTRADICTS}; {_WRITE_AGAIN}")
        for at, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            described = chunk.get(_CHUNK_METADATA) if isinstance(chunk, dict) else None
            if not isinstance(described, dict):
                raise Malformed(f"a column {_CONTRADICTS}; {_WRITE_AGAIN}")
            pages.add(at, described, group[_GROUP_ROWS], length)
    if both := pages.by_length & pages.by_number:
        raise InvalidInput(
            f"column {min(both) + 1} of the Parquet file has a dictionary in one page and the "
            "encoding DELTA_LENGTH_BYTE_ARRAY in another; write it without one of them"
        )
    return pages.by_length


def _list(struct: dict[int, Any], field: int) -> list[Any]:
    found = struct.get(field)
    return found if isinstance(found, list) else []


def _number(struct: dict[int, Any], field: int, what: str) -> int:
    found = struct.get(field)
    if type(found) is not int:
        raise Malformed(f"{what} {_CONTRADICTS}; {_WRITE_AGAIN}")
    return found


class _Pages:
    """Walks the pages of column chunks and adds up their bytes."""

    def __init__(self, body: bytes | bytearray, max_bytes: int) -> None:
        self._body, self._max_bytes = body, max_bytes
        self._bytes = self._count = 0
        self.by_length: set[int] = set()
        self.by_number: set[int] = set()
        """The columns with a page of DELTA_LENGTH_BYTE_ARRAY, and with one of a dictionary."""

    def add(self, column: int, chunk: dict[int, Any], rows: int, length: int | None) -> None:
        """Add the pages of one column chunk, given its ColumnMetaData.

        column: its number, from 0. length: the bytes of each value; None if they may differ.
        """
        path = b".".join(part for part in _list(chunk, _PATH) if isinstance(part, bytes))
        name = short(path.decode(errors="replace"))
        at = _number(chunk, _FIRST_PAGE, f"column {name}")
        dictionary = chunk.get(_DICTIONARY_PAGE)
        if type(dictionary) is int and 0 < dictionary < at:
            at = dictionary
        end = min(at + _number(chunk, _CHUNK_SIZE, f"column {name}"), len(self._body))
        values = _number(chunk, _VALUES, f"column {name}")
        if at < 0 or values > rows:
            raise Malformed(f"column {name} {_CONTRADICTS}; {_WRITE_AGAIN}")
        seen = 0
        while seen < values:
            if at >= end:
                raise Malformed(
                    f"column {name}: the Parquet file ends within a column; send the whole file"
                )
            header, at = _Thrift(self._body, at).struct()
            seen += self._page(name, header, rows, length)
            at += header[_STORED]
            if header[_KIND] == _DICTIONARY:
                self.by_number.add(column)
            elif _encoding(header) == _DELTA_LENGTH:
                self.by_length.add(column)

    def _page(self, name: str, header: dict[int, Any], rows: int, length: int | None) -> int:
        """Add one page; returns its values, 0 for a dictionary."""
        kind, size, stored = (header.get(field) for field in (_KIND, _SIZE, _STORED))
        details = header.get(_DETAILS[kind]) if kind in _DETAILS else None
        if not (isinstance(size, int) and isinstance(stored, int) and isinstance(details, dict)):
            raise Malformed(f"column {name}: a page's header lacks a member; {_WRITE_AGAIN}")
        values, encoding = details.get(1), _encoding(header)
        most = _most_entries(size, length) if kind == _DICTIONARY else rows
        if size < 0 or stored < 0 or not isinstance(values, int) or not 0 <= values <= most:
            raise Malformed(f"column {name}: a page's header has impossible sizes; {_WRITE_AGAIN}")
        if encoding not in _ENCODINGS:
            raise InvalidInput(
                f"column {name} has encoding {short(encoding)}; expected one of "
                f"{', '.join(_ENCODINGS.values())}"
            )
        self._bytes += size
        self._count += 1
        if self._bytes > self._max_bytes or self._count > MAX_PAGES:
            raise TooLarge(
                f"the Parquet file has more than {self._max_bytes} bytes when decompressed, or "
                f"more than {MAX_PAGES} pages: send fewer rows"
            )
        return 0 if kind == _DICTIONARY else values


def _encoding(header: dict[int, Any]) -> Any:
    """The encoding of a page whose header was checked."""
    kind = header[_KIND]
    return header[_DETAILS[kind]].get(4 if kind == _DATA_V2 else 2)


def _most_entries(size: int, length: int | None) -> int:
    """The most entries of a dictionary page of some bytes: all differ, and each takes its bytes."""
    return size // _LEAST_BYTES if length is None else min(size // length, 256**length)


class _Thrift:
    """Reads structs of Thrift's compact protocol."""

    def __init__(self, body: bytes | bytearray, at: int, *, keeps_all: bool = False) -> None:
        """keeps_all: texts and lists are read too; else texts are skipped and lists refused."""
        self._body, self._at, self._keeps_all = body, at, keeps_all

    def struct(self, levels: int = 4) -> tuple[dict[int, Any], int]:
        """The fields of a struct by number, and where it ends. Raises Malformed."""
        if not levels:
            raise _malformed()
        found: dict[int, Any] = {}
        field = 0
        while True:
            head = self._byte()
            if not head:
                return found, self._at
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            if field in found or not 0 < field < _MOST_FIELD:
                raise _malformed()  # pyarrow would read it otherwise
            found[field] = self._value(head & 15, levels)

    def _value(self, kind: int, levels: int) -> Any:
        found: Any = None
        if kind in {1, 2}:
            found = kind == 1
        elif kind in {4, 5, 6}:
            found = self._zigzag()
        elif kind == 3:
            found = self._byte()
        elif kind == 7:
            self._at += 8
        elif kind == 8:
            size = self._varint()  # which moves self._at
            self._at += size
            found = self._body[self._at - size : self._at] if self._keeps_all else None
        elif kind == 12:
            found = self.struct(levels - 1)[0]
        elif kind in {9, 10} and self._keeps_all:
            found = self._list(levels - 1)
        else:  # page headers have no lists, and metadata no maps
            raise _malformed()
        return found

    def _list(self, levels: int) -> list[Any]:
        head = self._byte()
        size, kind = head >> 4, head & 15
        if size == _LONG_LIST:
            size = self._varint()
        if not levels or size > len(self._body) - self._at:
            raise _malformed()
        if kind in {1, 2}:  # unlike a field, an entry of a list has a byte of its own
            return [self._byte() == 1 for _ in range(size)]
        return [self._value(kind, levels) for _ in range(size)]

    def _byte(self) -> int:
        if not self._at < len(self._body):
            raise _malformed()
        self._at += 1
        return self._body[self._at - 1]

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise _malformed()

    def _zigzag(self) -> int:
        raw = self._varint()
        return (raw >> 1) ^ -(raw & 1)


def _malformed() -> Malformed:
    return Malformed(
        f"the body is not a Parquet file: its metadata or a page header cannot be read; "
        f"{_WRITE_AGAIN}"
    )
