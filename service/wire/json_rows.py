"""Turns a JSON body into its rows, or into the model's input tensor of numbers: a short body at
once, a long one a slice of rows at a time.

A short body that holds nothing but numbers is read by simdjson, which writes them into one buffer.
orjson would make a Python object of each, which NumPy would then read one by one.

The JSON decoder holds the interpreter lock until it returns. Decoding tens of megabytes at once
would stop the event loop for a second, whichever thread does it. A slice takes a few milliseconds.
Its values are put into an array before the next slice is decoded, which also keeps memory small.
"""

import contextlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.contract.inputs.spec import InputSpec
from service.wire.arrays import Array, array_of, fitted
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.json_text import (
    MAX_WHOLE_BYTES,
    check_decoded_size,
    fault_of,
    holds,
    parse_json_object,
)
from service.wire.nested import first_wrong
from service.wire.shown import NO_ROWS, shape_words

simdjson: Any = None
with contextlib.suppress(ImportError):  # no wheel for this platform: orjson reads every body
    import simdjson

SLICE_BYTES = 128 * 1024
MAX_ROW_BYTES = 16 * 2**20
"""The longest JSON text of one row, in bytes: a row is decoded at once."""
_BLOCK_BYTES = 2**20
_PART_VALUES = 20_000
"""Values of a long row that are put into an array in one call."""
_BLANKS = b" \t\r\n"
_MAX_STRINGS = 100
_MAX_ROW_VALUES = 1_000_000
"""The most values of one row where the model does not fix their number."""
_OPENS, _CLOSES, _COMMA = b"["[0], b"]"[0], b","[0]
_OPENS_OBJECT, _CLOSES_OBJECT = b"{"[0], b"}"[0]
_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_LIST = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[")

_KEY = b'{"instances"'
_ONE_ROW = (b'{"instances":[[', b'{"instances": [[')
_OF_NUMBERS = b"0123456789+-.eE \t\r\n"
_EXACT_SQUARES = 2.0**104
"""Numbers with a smaller sum of squares are below 2^52: exact as float64 if they are whole."""


class ShortJson:
    """Reads bodies of the form `{"instances": [...]}` that contain only numbers, for one model.

    Only the event loop uses it, since its parser reuses its buffers for the next body.
    """

    def __init__(self, spec: InputSpec) -> None:
        row = spec.shape[1:]
        self._row = tuple(n for n in row if n is not None)
        self._size, self._dtype = math.prod(self._row), np.dtype(object)
        self._parser: Any = None
        plain = spec.kind in {"tensor", "image"} and not spec.missing
        if plain and len(self._row) == len(row) and spec.dtype in {"float32", "float64"}:
            self._dtype = np.dtype(spec.dtype)
            self._parser = simdjson and simdjson.Parser()

    def read(self, body: bytes | bytearray) -> Array | None:
        """The model's input tensor [n, …]; None when the body must be read by the general reader.

        It is None for every body that is not plain, valid or not: the general reader names the
        fault.
        """
        if self._parser is None or not body.startswith(_KEY) or body.find(b'"', len(_KEY)) > 0:
            return None
        try:
            buffer = self._parser.parse(body)["instances"].as_buffer(of_type="d")
        except Exception:  # noqa: BLE001 - the general reader names the fault
            self._parser = simdjson.Parser()  # the frames of the error still refer to the document
            return None
        values = np.frombuffer(buffer, np.float64)
        rows = len(values) // self._size
        if rows * self._size != len(values) or not rows or not self._is_regular(body, rows):
            return None
        if not values.dot(values) < _EXACT_SQUARES:
            return None
        return values.reshape(rows, *self._row).astype(self._dtype)

    def list_of_numbers(
        self, text: bytes | bytearray, shape: tuple[int, ...], *, count: int
    ) -> Array | None:
        """Read a JSON list of `count` numbers, flat or of one row, as a tensor of `shape`, which
        fits the model. None when the general reader must read it.
        """
        if self._parser is None:
            return None
        if text.find(b"[", 1) >= 0:
            is_row = len(shape) == 2 and shape[0] == 1 and text.endswith(b"]]")
            if not (is_row and text[:2] == b"[[" and text.find(b"[", 2) < 0):
                return None
        try:
            buffer = self._parser.parse(text).as_buffer(of_type="d")
        except Exception:  # noqa: BLE001 - the general reader names the fault
            self._parser = simdjson.Parser()  # the frames of the error still refer to the document
            return None
        values = np.frombuffer(buffer, np.float64)
        if len(values) != count or not values.dot(values) < _EXACT_SQUARES:
            return None
        return values.reshape(shape).astype(self._dtype)

    def _is_regular(self, body: bytes | bytearray, rows: int) -> bool:
        """Whether the numbers are nested as `rows` rows of the model's shape.

        The only quotes are those of the key, so everything else is numbers and punctuation.
        """
        if rows == 1 and len(self._row) == 1 and body.startswith(_ONE_ROW):
            begin = body.index(b"[[") + 2
            return body.endswith(b"]]}") and body.find(b"[", begin) < 0
        return body.translate(None, _OF_NUMBERS) == _punctuation(rows, self._row)


@lru_cache(maxsize=16)  # each at most as long as a short body
def _punctuation(rows: int, row: tuple[int, ...]) -> bytes:
    """The text of a body of numbers without its numbers."""
    found = b""
    for count in reversed((rows, *row)):
        found = b"[%b]" % b",".join([found] * count)
    return (_KEY + b":" + found + b"}").translate(None, _OF_NUMBERS)


def numbers_of_json(
    body: bytes | bytearray,
    spec: InputSpec,
    *,
    member: str,
    allowed: Sequence[str],
    max_rows: int,
    slice_bytes: int = SLICE_BYTES,
) -> tuple[dict[str, Any], Array] | None:
    """The other members of the body, and its list `member` as the model's input tensor.

    None where the body is not simple: strings in the list, escapes, or more than one list of that
    name. max_rows: how many rows one request may have. Raises Malformed, InvalidInput or TooLarge.
    """
    begin = None if spec.kind in {"text", "columns"} else _list_begin(body, member)
    if begin is None:
        return None
    quote = body.find(b'"', begin)
    end, commas = _rows(body, begin, len(body) if quote < 0 else quote, max_rows)
    document = _without_list(body, begin, end, allowed)
    if document.get(member) != []:
        return None
    bounds = np.concatenate([[begin], commas, [end]])
    _check_rows(body, bounds)
    arrays = list(_slices(body, bounds, spec, slice_bytes))
    if len({array.shape[1:] for array in arrays}) != 1:
        raise InvalidInput(
            f"the instances differ in shape; the model takes {shape_words(spec.shape)}"
        )
    return document, np.concatenate(arrays)


def document_of_json(
    body: bytes | bytearray, *, member: str, allowed: Sequence[str], max_rows: int
) -> dict[str, Any]:
    """A body too long to be decoded whole, whose list `member` holds anything, such as encoded
    images or texts. Raises Malformed, InvalidInput or TooLarge.
    """
    begin = _first_list(body, member)
    if begin is None:
        return parse_json_object(
            body, allowed
        )  # raises TooLarge, whose message says what is possible
    check_decoded_size(body)
    end, commas = _any_rows(body, begin, max_rows)
    document = _without_list(body, begin, end, allowed)
    if document.get(member) != [] or holds(body, b'"%b"' % member.encode(), end):
        raise Malformed(f"the body has more than one member '{member}'; keep one of them")
    bounds = np.concatenate([[begin], commas, [end]])
    _check_rows(body, bounds)
    found: list[Any] = []
    for begin, end, row, stop in _spans(bounds, SLICE_BYTES):
        found += _decoded(bytes(body[begin:end]), stop - row, first_row=row)
    return {**document, member: found}


def _first_list(body: bytes | bytearray, member: str) -> int | None:
    """Where the list begins, if `member` is the first member of the body or follows others without
    quotes in their values.
    """
    head = bytes(body[:SLICE_BYTES])
    key = b'"%b"' % member.encode()
    at = head.find(key)
    if at < 0 or b"\\" in head[:at] or head.count(b'"', 0, at) % 2:
        return None
    opened = head.count(b"{", 0, at) + head.count(b"[", 0, at)
    depth = opened - head.count(b"}", 0, at) - head.count(b"]", 0, at)
    after = _LIST.match(head, at + len(key))
    return after.end() - 1 if depth == 1 and after is not None else None


def _without_list(
    body: bytes | bytearray, begin: int, end: int, allowed: Sequence[str]
) -> dict[str, Any]:
    """The document with an empty list in place of the one from `begin` to `end`."""
    others = begin + len(body) - end
    if others > MAX_WHOLE_BYTES:
        raise TooLarge(
            f"the JSON has {others} bytes besides its rows; at most {MAX_WHOLE_BYTES} are "
            "accepted: store a long inline prior and name it"
        )
    view = memoryview(body)
    return parse_json_object(b"".join((view[: begin + 1], view[end:])), allowed)


def _check_rows(body: bytes | bytearray, bounds: NDArray[np.int64]) -> None:
    """Raise TooLarge for a row whose text is too long, and InvalidInput where there is none."""
    lengths = np.diff(bounds)
    if lengths.max() > MAX_ROW_BYTES:
        raise TooLarge(
            f"instance {int(lengths.argmax())} has {int(lengths.max())} bytes of JSON; at most "
            f"{MAX_ROW_BYTES} are accepted; send a .npy array, binary tensors or an image"
        )
    if len(bounds) == 2 and _is_blank(body, int(bounds[0]) + 1, int(bounds[1])):
        raise InvalidInput(NO_ROWS)


def _is_blank(body: bytes | bytearray, begin: int, end: int) -> bool:
    """Whether a part of a body holds nothing but blanks; looked at in pieces."""
    for at in range(begin, end, _BLOCK_BYTES):
        if bytes(body[at : min(at + _BLOCK_BYTES, end)]).strip(b" \t\r\n"):
            return False
    return True


def _list_begin(body: bytes | bytearray, member: str) -> int | None:
    """Where the list begins, if the body has exactly one member of that name, at its top level."""
    if b"\\" in body:
        return None
    strings: list[tuple[int, int]] = []
    opening = body.find(b'"')
    while opening >= 0:
        closing = body.find(b'"', opening + 1) + 1
        if closing == 0 or len(strings) == _MAX_STRINGS:
            return None
        strings.append((opening, closing))
        opening = body.find(b'"', closing)
    key = b'"%b"' % member.encode()
    found = [
        span for span in strings if span[1] - span[0] == len(key) and body[span[0] : span[1]] == key
    ]
    if len(found) != 1:
        return None
    depth, at = 0, 0
    for begin, end in strings:
        depth += _depth(body, at, begin)
        if (begin, end) == found[0]:
            break
        at = end
    after = _LIST.match(body, found[0][1])
    return after.end() - 1 if depth == 1 and after is not None else None


def _depth(body: bytes | bytearray, begin: int, end: int) -> int:
    """How many more lists and objects are opened than closed; counted in pieces."""
    depth = 0
    for at in range(begin, end, _BLOCK_BYTES):
        stop = min(at + _BLOCK_BYTES, end)
        depth += body.count(b"{", at, stop) + body.count(b"[", at, stop)
        depth -= body.count(b"}", at, stop) + body.count(b"]", at, stop)
    return depth


def _any_rows(body: bytes | bytearray, begin: int, max_rows: int) -> tuple[int, NDArray[np.int64]]:
    """Do what `_rows` does, for a list whose items may hold texts, and in them any character."""
    depth, found, rows = 0, [], 1
    in_text, backslashes = False, 0
    for at in range(begin, len(body), _BLOCK_BYTES):
        block = np.frombuffer(body, np.uint8, min(_BLOCK_BYTES, len(body) - at), at)
        quotes, backslashes = _quotes(block, backslashes)
        toggles = np.zeros(len(block), np.int32)
        toggles[quotes] = 1
        inside = (np.cumsum(toggles, dtype=np.int32) + in_text) % 2 == 1
        in_text = bool(inside[-1])
        opens = (block == _OPENS) | (block == _OPENS_OBJECT)
        closes = (block == _CLOSES) | (block == _CLOSES_OBJECT)
        steps = opens.astype(np.int8) - closes.astype(np.int8)
        steps[inside] = 0
        levels = np.cumsum(steps, dtype=np.int32) + depth
        ends = np.flatnonzero(levels == 0)
        last = int(ends[0]) if len(ends) else len(block)
        is_comma = (block[:last] == _COMMA) & (levels[:last] == 1) & ~inside[:last]
        commas = np.flatnonzero(is_comma) + at
        rows += len(commas)
        if rows > max_rows:
            raise TooLarge(
                f"the body has more than {max_rows} instances, the most that can wait: send fewer"
            )
        found.append(commas)
        if len(ends):
            return at + last, np.concatenate(found)
        depth = int(levels[-1])
    raise Malformed("the body is not JSON: a list does not end; close it")


def _quotes(block: NDArray[np.uint8], backslashes: int) -> tuple[NDArray[np.int64], int]:
    """The quotes of a block that begin or end a text, and the backslashes at its end.

    backslashes: those right before the block. A quote behind an odd number of them is escaped.
    """
    quotes = np.flatnonzero(block == _QUOTE)
    others = np.flatnonzero(block != _BACKSLASH)
    if len(others) == len(block) and not backslashes:
        return quotes, 0
    before = np.searchsorted(others, quotes) - 1  # the last character that is not a backslash
    runs = quotes - 1 - np.where(before < 0, -1 - backslashes, others[before])
    left = len(block) - 1 - int(others[-1]) if len(others) else backslashes + len(block)
    return quotes[runs % 2 == 0], left


def _rows(
    body: bytes | bytearray, begin: int, stop: int, max_rows: int
) -> tuple[int, NDArray[np.int64]]:
    """Where the list that begins at `begin` ends, and the commas between its items."""
    depth, found, rows = 0, [], 1
    for at in range(begin, stop, _BLOCK_BYTES):
        block = np.frombuffer(body, np.uint8, min(_BLOCK_BYTES, stop - at), at)
        steps = (block == _OPENS).astype(np.int8) - (block == _CLOSES).astype(np.int8)
        levels = np.cumsum(steps, dtype=np.int32) + depth
        ends = np.flatnonzero(levels == 0)
        if len(ends):
            block, levels = block[: ends[0]], levels[: ends[0]]
        commas = np.flatnonzero((block == _COMMA) & (levels == 1)) + at
        rows += len(commas)
        if rows > max_rows:
            raise TooLarge(
                f"the body has more than {max_rows} instances, the most that can wait: send fewer"
            )
        found.append(commas)
        if len(ends):
            return at + int(ends[0]), np.concatenate(found)
        depth = int(levels[-1])
    raise Malformed("the body is not JSON: a list does not end; close it")


def _slices(
    body: bytes | bytearray, bounds: NDArray[np.int64], spec: InputSpec, slice_bytes: int
) -> Iterator[Array]:
    """The arrays of consecutive rows.

    bounds: where the list's bracket, the commas between rows and the closing bracket are.
    """
    for begin, end, row, stop in _spans(bounds, slice_bytes):
        is_long = end - begin > slice_bytes
        if is_long:
            _check_row(body, begin, end, row=row, spec=spec)
        text = bytes(body[begin:end])
        found = None
        if is_long and not spec.missing and not (holds(text, b"true") or holds(text, b"false")):
            found = _long_row(text, spec, slice_bytes, row=row)
        yield _slice(text, stop - row, spec, first_row=row) if found is None else found


def _spans(bounds: NDArray[np.int64], slice_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end, first row, row behind the last) of slices of whole rows."""
    row, last = 0, len(bounds) - 1
    while row < last:
        fits = int(np.searchsorted(bounds, bounds[row] + slice_bytes, side="right")) - 1
        stop = min(max(row + 1, fits), last)
        yield int(bounds[row]) + 1, int(bounds[stop]), row, stop
        row = stop


def _decoded(text: bytes, rows: int, *, first_row: int) -> list[Any]:
    """The items of a part of a list. Raises Malformed."""
    try:
        instances: list[Any] = orjson.loads(b"[%b]" % text)
    except orjson.JSONDecodeError as error:
        fault = fault_of(error)
        raise Malformed(f"the body is not JSON: instances from {first_row} on: {fault}") from None
    if len(instances) != rows:
        raise Malformed("the body is not JSON: a comma without a value; remove it")
    return instances


def _slice(text: bytes, rows: int, spec: InputSpec, *, first_row: int) -> Array:
    instances = _decoded(text, rows, first_row=first_row)
    are_numbers = b"true" not in text and b"false" not in text
    return array_of(instances, spec, are_numbers=are_numbers, first_row=first_row)


def _long_row(text: bytes, spec: InputSpec, slice_bytes: int, *, row: int) -> Array | None:
    """Decode one long row and put it into an array, in parts; None if it is not a list.

    Raises Malformed or InvalidInput.
    """
    if text.lstrip(_BLANKS)[:1] != b"[":
        return None
    values = _values(text, slice_bytes, row=row, spec=spec)
    try:
        array = _joined(values)
    except ValueError:  # ragged, as NumPy says
        array = None
    if array is None or array.dtype.kind not in "biuf":
        raise InvalidInput(first_wrong([values], first_row=row, wanted=spec.shape))
    return fitted(array[np.newaxis], spec, first_row=row)


def _values(
    text: bytes, slice_bytes: int, *, row: int, spec: InputSpec, level: int = 1
) -> list[Any]:
    """The items of the list that a text holds. Items that are long lists are decoded in parts."""
    begin = text.index(b"[")
    end, commas = _rows(text, begin, len(text), sys.maxsize)
    if text[end + 1 :].strip(_BLANKS):
        raise Malformed(f"the body is not JSON: instance {row} is followed by more; remove it")
    bounds = np.concatenate([[begin], commas, [end]])
    if len(bounds) == 2 and _is_blank(text, begin + 1, end):
        return []
    found: list[Any] = []
    for first, last, item, stop in _spans(bounds, slice_bytes):
        part = text[first:last]
        is_list = len(part) > slice_bytes and part.lstrip(_BLANKS)[:1] == b"["
        if is_list and level >= len(spec.shape) - 1:
            wanted = shape_words(spec.shape)
            raise InvalidInput(
                f"instance {row} holds lists in its values; the model takes {wanted}"
            )
        if is_list:
            found.append(_values(part, slice_bytes, row=row, spec=spec, level=level + 1))
        else:
            found += _decoded(part, stop - item, first_row=row)
    return found


def _joined(values: list[Any]) -> Array:
    """Nested lists as an array, made of parts. Raises ValueError for ragged ones."""
    inner, size = values[0] if values else None, 1
    while isinstance(inner, list) and inner:
        size *= len(inner)
        inner = inner[0]
    step = max(1, _PART_VALUES // size)
    if len(values) <= step:
        return np.array(values)
    if step == 1 and size > 1:
        if not all(isinstance(each, list) for each in values):
            raise ValueError("a level holds both lists and values")
        return np.stack([_joined(each) for each in values])
    return np.concatenate([np.array(values[at : at + step]) for at in range(0, len(values), step)])


def _check_row(body: bytes | bytearray, begin: int, end: int, *, row: int, spec: InputSpec) -> None:
    """Refuse one long row that holds more values than the model takes before it is decoded."""
    free = None in spec.shape[1:]
    most = _MAX_ROW_VALUES if free else math.prod(n for n in spec.shape[1:] if n is not None)
    values = 1
    for at in range(begin, end, _BLOCK_BYTES):
        values += body.count(b",", at, min(at + _BLOCK_BYTES, end))
        if values > most:
            raise InvalidInput(
                f"instance {row} holds more than {most} numbers; the model takes "
                f"{shape_words(spec.shape)}"
            )
