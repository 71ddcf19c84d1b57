"""Parquet files → columns by name, with the library pyarrow.

A page declares how many bytes it has when decompressed, and pyarrow allocates that many. So this
module first reads the headers of all pages (Thrift's compact protocol, as in parquet.thrift).
"""

from collections.abc import Callable, Sequence
from typing import Any

from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.shown import short
from service.wire.tables.arrow import MAX_METADATA_BYTES, columns_of, library
from service.wire.tables.rows import Column, check_names

MAX_ROW_GROUPS = 1_000
MAX_PAGES = 20_000
"""The most pages of a file: reading their headers in Python takes time."""
_MAGIC = b"PAR1"
_KIND, _SIZE, _STORED = 1, 2, 3
"""Fields of PageHeader: its type, and its bytes before and after compression."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Fields of PageHeader that hold the details of each type of page."""
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED",
              5: "DELTA_BINARY_PACKED", 6: "DELTA_LENGTH_BYTE_ARRAY", 8: "RLE_DICTIONARY",
              9: "BYTE_STREAM_SPLIT"}  # fmt: skip
"""All encodings except DELTA_BYTE_ARRAY, in which one byte may expand to a long text."""
_MAX_FIXED_BYTES = 16
"""The most bytes of a fixed-length value: a decimal number, or a float of 16 bits."""
_LEAST_BYTES = 4
"""The fewest bytes of a value in a dictionary page."""


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

    _check_footer(body)
    try:
        options: dict[str, Any] = {
            "thrift_string_size_limit": MAX_METADATA_BYTES,
            "thrift_container_size_limit": MAX_METADATA_BYTES // 16,
            "pre_buffer": False,
            "arrow_extensions_enabled": False,
        }
        file = pq.ParquetFile(pa.BufferReader(body), **options)
        check(file.schema_arrow.names, expected)
        _check_pages(body, file.metadata, max_rows=max_rows, max_bytes=max_bytes)
        texts = [
            file.metadata.schema.column(at).path
            for at in range(file.metadata.num_columns)
            if file.metadata.schema.column(at).physical_type == "BYTE_ARRAY"
        ]
        file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=texts, **options)
        table = file.read(use_threads=False)
        table.validate(full=True)
    except (InvalidInput, Malformed, TooLarge):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Malformed(
            f"the body is not a Parquet file: {str(error)[:200]}; send what "
            "pyarrow.parquet.write_table writes"
        ) from None
    return columns_of(table, max_rows=max_rows)


_WRITE_AGAIN = "write the Parquet file again, or send CSV"


def _check_footer(body: bytes | bytearray) -> None:
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


def _check_pages(body: bytes | bytearray, metadata: Any, *, max_rows: int, max_bytes: int) -> None:
    """Add up the sizes that all pages declare, and refuse a file that declares too much."""
    if metadata.num_row_groups > MAX_ROW_GROUPS:
        raise TooLarge(
            f"the Parquet file has more than {MAX_ROW_GROUPS} row groups; write it with larger ones"
        )
    for at in range(metadata.num_columns):
        column = metadata.schema.column(at)
        if column.max_repetition_level or column.path != column.name:
            raise InvalidInput(f"column {short(column.path)} is nested; expected one value a row")
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length > _MAX_FIXED_BYTES:
            raise InvalidInput(
                f"column {short(column.path)} holds {column.length} bytes a row; expected numbers "
                "or texts"
            )
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    rows = sum(max(0, group.num_rows) for group in groups)
    if rows > max_rows:
        raise TooLarge(f"the body has {rows} rows; at most {max_rows} can wait: send fewer")
    pages = _Pages(body, max_bytes)
    for group in groups:
        for at in range(group.num_columns):
            pages.add(group.column(at), group.num_rows)


class _Pages:
    """Walks the pages of column chunks and adds up their bytes."""

    def __init__(self, body: bytes | bytearray, max_bytes: int) -> None:
        self._body, self._max_bytes = body, max_bytes
        self._bytes = self._count = 0

    def add(self, chunk: Any, rows: int) -> None:
        """Add the pages of one column chunk."""
        name = short(chunk.path_in_schema)
        at = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
            at = chunk.dictionary_page_offset
        end = min(at + chunk.total_compressed_size, len(self._body))
        if at < 0 or chunk.num_values > rows:
            raise Malformed(
                f"column {name}: the Parquet file's metadata contradicts itself; {_WRITE_AGAIN}"
            )
        seen = 0
        while seen < chunk.num_values:
            if at >= end:
                raise Malformed(
                    f"column {name}: the Parquet file ends within a column; send the whole file"
                )
            header, at = _Thrift(self._body, at).struct()
            seen += self._page(name, header, rows)
            at += header[_STORED]

    def _page(self, name: str, header: dict[int, Any], rows: int) -> int:
        """Add one page; returns its values, 0 for a dictionary."""
        kind, size, stored = (header.get(field) for field in (_KIND, _SIZE, _STORED))
        details = header.get(_DETAILS[kind]) if kind in _DETAILS else None
        if not (isinstance(size, int) and isinstance(stored, int) and isinstance(details, dict)):
            raise Malformed(f"column {name}: a page's header lacks a member; {_WRITE_AGAIN}")
        values, encoding = details.get(1), details.get(4 if kind == _DATA_V2 else 2)
        most = size // _LEAST_BYTES if kind == _DICTIONARY else rows
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


class _Thrift:
    """Reads structs of Thrift's compact protocol."""

    def __init__(self, body: bytes | bytearray, at: int) -> None:
        self._body, self._at = body, at

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
            found[field] = self._value(head & 15, levels)

    def _value(self, kind: int, levels: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind in {4, 5, 6}:
            return self._zigzag()
        if kind == 3:
            return self._byte()
        if kind == 7:
            self._at += 8
        elif kind == 8:
            size = self._varint()  # which moves self._at
            self._at += size
        elif kind == 12:
            return self.struct(levels - 1)[0]
        else:  # lists, sets and maps: page headers have none
            raise _malformed()
        return None

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
        f"the body is not a Parquet file: a page header cannot be read; {_WRITE_AGAIN}"
    )
