"""Arrow IPC streams and files, and columns of Arrow → columns by name, with the library pyarrow.

pyarrow allocates as much memory as a stream declares. So this module first reads the sizes in each
message, and measures compactly encoded columns before pyarrow expands them.
"""

import ctypes
import importlib.util
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.extras import missing_extra
from service.contract.inputs.spec import MAX_TEXT_CHARACTERS
from service.wire.faults import InvalidInput, Malformed, TooLarge, UnsupportedBody
from service.wire.shown import short
from service.wire.tables.rows import Column, check_names, without_index

MAX_MESSAGES = 1_000
"""The most messages of one stream: schema, dictionaries and batches."""
MAX_METADATA_BYTES = 2**20
"""The most bytes of metadata that describe one message, or a whole Parquet file."""
_FILE_MAGIC = b"ARROW1"
_FILE_END_BYTES = 4 + len(_FILE_MAGIC)
"""The end of a file: the size of its footer, and the magic again."""
_MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARACTERS
_TEXTS_AT_ONCE = 64
"""How many texts, of up to 80 KiB each, are made while the interpreter lock is held."""
_SHARED_LIBRARIES = ("libarrow", "libarrow_compute", "libparquet", "libarrow_acero")
"""The shared libraries of pyarrow that take longest to open, each after those it needs."""
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
"""Fields of a RecordBatch in Arrow's Message.fbs."""
_DICTIONARIES, _BATCHES = 2, 3
"""Fields of the Footer in Arrow's File.fbs: lists of blocks."""
_BLOCK = struct.Struct("<qi4xq")
"""A block: where a message begins, and the bytes of its metadata and of its body."""


def library() -> Any:
    """The module pyarrow. Raises UnsupportedBody where it is not installed."""
    if "pyarrow" not in sys.modules:
        _open_shared_libraries()
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise UnsupportedBody(missing_extra(error, first="arrow") or str(error)) from None
    return pa


def _open_shared_libraries() -> None:
    """Open pyarrow's shared libraries before it is imported.

    An import holds the interpreter lock while the system opens and relocates them, which stops the
    event loop for 30 to 60 ms. A foreign function is called without the lock, and the import then
    finds them open. Where they have other names, the import opens them itself.
    """
    spec = importlib.util.find_spec("pyarrow")
    folders = (spec.submodule_search_locations if spec else None) or ()
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for folder in map(Path, folders):
        for name in _SHARED_LIBRARIES:
            for file in folder.glob(f"{name}.so.*"):
                dlopen(os.fsencode(file), os.RTLD_NOW)


def read_arrow(
    body: bytes | bytearray, expected: Sequence[str] | None, *, max_rows: int, max_bytes: int
) -> dict[str, Column]:
    """The columns of a stream, or of a file, whose footer says where its messages are.

    max_rows, max_bytes: how many rows one request may have, and how many bytes when decompressed.
    Raises Malformed, InvalidInput, TooLarge or UnsupportedBody.
    """
    pa = library()
    held = pa.py_buffer(body)
    kind = "file" if body.startswith(_FILE_MAGIC) else "stream"
    try:
        opened = _opened_file if kind == "file" else _opened_stream
        with opened(pa, held, max_rows=max_rows, max_bytes=max_bytes) as reader:
            names = without_index(reader.schema.names, expected)
            check_names(names, expected)
            table = reader.read_all().select(names)
        table.validate(full=True)
    except (InvalidInput, Malformed, TooLarge):
        raise
    except (pa.ArrowException, ValueError, OSError, struct.error, EOFError) as error:
        raise Malformed(
            f"the body is not an Arrow {kind}: {str(error)[:200]}; send what "
            f"pyarrow.ipc.new_{kind} writes"
        ) from None
    return columns_of(table, max_rows=max_rows)


def columns_of(table: Any, *, max_rows: int) -> dict[str, Column]:
    """The columns of a valid pyarrow.Table. Raises InvalidInput or TooLarge."""
    if table.num_rows > max_rows:
        raise TooLarge(
            f"the body has more than {max_rows} rows, the most that can wait: send fewer"
        )
    pa = library()
    found: dict[str, Column] = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            missing = _is_missing(pa, column.type)
            found[name] = [None] * len(column) if missing else _column(pa, column)
        except (InvalidInput, pa.ArrowException) as error:
            raise InvalidInput(f"column {short(name)}: {str(error)[:200]}") from None
    return found


def _column(pa: Any, column: Any) -> Column:
    column, types = _without_dictionary(pa, column), pa.types
    kind = column.type
    if _is_text(pa, kind):
        for chunk in column.chunks:
            _check_texts(pa, chunk)
        column, texts = column.cast(pa.large_string()), list[str | None]()
        for at in range(0, len(column), _TEXTS_AT_ONCE):
            texts += column.slice(at, _TEXTS_AT_ONCE).to_pylist()
        return texts
    if types.is_fixed_size_list(kind) and _is_number(pa, kind.value_type):
        if column.null_count:
            raise InvalidInput("holds null in place of a list; expected a list in every row")
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused later
            parts = [_numbers(pa, chunk.flatten()) for chunk in column.chunks]
            flat = np.concatenate([np.empty(0), *parts])
        found: NDArray[Any] = flat.reshape(len(column), kind.list_size)
        return found
    if not _is_number(pa, kind):
        raise InvalidInput(f"holds {kind}; expected numbers or texts")
    return _numbers(pa, column)


def _without_dictionary(pa: Any, column: Any) -> Any:
    """A column with its values in place of their numbers in a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return column
    kind = column.type.value_type
    if not (_is_text(pa, kind) or _is_number(pa, kind)):
        raise InvalidInput(f"holds {column.type}; expected numbers or texts")
    for chunk in column.chunks:
        _check_texts(pa, chunk.dictionary)
    if pa.types.is_string_view(kind):  # as polars writes categories, and pyarrow cannot cast
        kind = pa.large_string()
        held = [pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(kind))
                for chunk in column.chunks]  # fmt: skip
        column = pa.chunked_array(held, pa.dictionary(column.type.index_type, kind))
    return column.cast(kind)


def _numbers(pa: Any, column: Any) -> NDArray[Any]:
    """A column as NumPy's numbers, in which NaN stands for null."""
    if pa.types.is_decimal(column.type) or column.null_count:
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _is_missing(pa: Any, kind: Any) -> bool:
    """Whether a type has no value, as pandas writes a column of missing values only."""
    types = pa.types
    return bool(types.is_null(kind.value_type if types.is_dictionary(kind) else kind))


def _is_number(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def _is_text(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_texts(pa: Any, chunk: Any) -> None:
    """Raise InvalidInput for a text that is longer than a model may take."""
    if not _is_text(pa, chunk.type) or not len(chunk):
        return
    if pa.types.is_string_view(chunk.type):  # a view of 16 bytes begins with its text's length
        views = np.frombuffer(chunk.buffers()[1], np.int32)[::4]
        longest = int(views[chunk.offset : chunk.offset + len(chunk)].max())
    else:
        import pyarrow.compute as pc

        longest = pc.max(pc.binary_length(chunk)).as_py() or 0
    if longest > _MAX_TEXT_BYTES:
        raise InvalidInput(
            f"holds a text of {longest:,} bytes; expected at most {MAX_TEXT_CHARACTERS:,} "
            "characters"
        )


def _opened_stream(pa: Any, held: Any, *, max_rows: int, max_bytes: int) -> Any:
    """A reader of a stream whose messages were checked."""
    _check_messages(_of_stream(pa, held), max_rows=max_rows, max_bytes=max_bytes)
    return pa.ipc.open_stream(held)


def _of_stream(pa: Any, held: Any) -> Iterator[Any]:
    """The messages of a stream, in order."""
    reader = pa.ipc.MessageReader.open_stream(held)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        yield message


def _opened_file(pa: Any, held: Any, *, max_rows: int, max_bytes: int) -> Any:
    """A reader of a file whose messages were checked.

    What stands between them is not read: polars begins a file with a schema in a form of its own.
    """
    end = len(held) - _FILE_END_BYTES
    size = int.from_bytes(bytes(held.slice(max(end, 0), 4)), "little")
    if size > end:
        raise Malformed(
            f"the body is not a whole Arrow file: its footer would have {size} bytes; send the "
            "whole file"
        )
    if size > MAX_METADATA_BYTES:
        raise TooLarge(
            f"the Arrow file's footer has {size} bytes; at most {MAX_METADATA_BYTES} are "
            "accepted: send fewer columns, or larger record batches"
        )
    reader = pa.ipc.open_file(held)  # which verifies the footer
    messages = _of_file(pa, held, bytes(held.slice(end - size, size)))
    _check_messages(messages, max_rows=max_rows, max_bytes=max_bytes)
    return reader


def _of_file(pa: Any, held: Any, footer: bytes) -> Iterator[Any]:
    """The messages that a verified footer lists."""
    root = _child(footer, 0, None)
    for field in (_DICTIONARIES, _BATCHES):
        if not _slot(footer, root, field):
            continue
        blocks = _child(footer, root, field)
        (count,) = struct.unpack_from("<I", footer, blocks)
        for at in range(count):
            offset, described, stored = _BLOCK.unpack_from(footer, blocks + 4 + at * _BLOCK.size)
            if min(offset, described, stored) < 0 or offset + described + stored > len(held):
                raise Malformed(
                    "the body is not a whole Arrow file: a message lies outside it; send the "
                    "whole file"
                )
            yield pa.ipc.read_message(held.slice(offset, described + stored))


def _check_messages(messages: Iterator[Any], *, max_rows: int, max_bytes: int) -> None:
    """Add up what messages declare. Raises TooLarge, Malformed or pyarrow's errors."""
    rows = size = 0
    for number, message in enumerate(messages):
        if number == MAX_MESSAGES:
            raise TooLarge(
                f"the stream has more than {MAX_MESSAGES} messages; write it in fewer batches of "
                "rows"
            )
        if message.metadata.size > MAX_METADATA_BYTES:
            raise TooLarge(
                f"message {number} is described by {message.metadata.size} bytes; at most "
                f"{MAX_METADATA_BYTES} are accepted"
            )
        if message.type not in {"record batch", "dictionary"}:
            continue
        found_rows, found_bytes = _declared(message)
        rows += found_rows if message.type == "record batch" else 0
        size += found_bytes
        if rows > max_rows:
            raise TooLarge(
                f"the body has more than {max_rows} rows, the most that can wait: send fewer"
            )
        if size > max_bytes:
            raise TooLarge(
                f"the stream has more than {max_bytes} bytes when decompressed, the most that is "
                "accepted: send fewer rows"
            )


def _declared(message: Any) -> tuple[int, int]:
    """Rows and decompressed bytes of a batch or a dictionary, whose metadata pyarrow verified."""
    text, body = bytes(message.metadata), memoryview(message.body)
    batch = _child(text, _child(text, 0, None), 2)
    if message.type == "dictionary":
        batch = _child(text, batch, 1)
    length = _slot(text, batch, _LENGTH)
    rows = struct.unpack_from("<q", text, length)[0] if length else 0
    compressed = _slot(text, batch, _COMPRESSION)
    if not compressed:
        return rows, 0
    vector = _child(text, batch, _BUFFERS)
    (count,) = struct.unpack_from("<I", text, vector)
    size = 0
    for at in range(count):
        offset, stored = struct.unpack_from("<qq", text, vector + 4 + 16 * at)
        if stored:
            (raw,) = struct.unpack_from("<q", body, offset)
            size += stored if raw == -1 else raw
            if raw < -1:
                raise Malformed(
                    f"the body is not an Arrow stream: a buffer has {raw} bytes; send what "
                    "pyarrow.ipc.new_stream writes"
                )
    return rows, size


def _slot(text: bytes, table: int, field: int) -> int:
    """The position of a field of a FlatBuffers table; 0 when the table leaves it out."""
    vtable = table - struct.unpack_from("<i", text, table)[0]
    entry = 4 + 2 * field
    if entry + 2 > struct.unpack_from("<H", text, vtable)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", text, vtable + entry)
    return table + offset if offset else 0


def _child(text: bytes, table: int, field: int | None) -> int:
    """The position of the table or vector that a field refers to; None: the root of the message."""
    at = table if field is None else _slot(text, table, field)
    if field is not None and not at:
        raise Malformed(
            "the body is not an Arrow stream: a message lacks a part; send what "
            "pyarrow.ipc.new_stream writes"
        )
    return at + int(struct.unpack_from("<I", text, at)[0])
