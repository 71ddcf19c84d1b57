"""Writes and reads long JSON in slices: one call for 180,000 numbers would hold the interpreter
lock for 50 ms or more, during which no other thread can run, not even the event loop.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import orjson

SLICE = 4096
"""Entries that are encoded in one call, in about a millisecond."""
_FEW = 64
_LONG_TEXT = 64 * 1024

Encode = Callable[[Any], bytes]


class Made(NamedTuple):
    """A long JSON list or object that is made slice by slice, so that it never exists as a whole.

    make: the entries from one place to another, as a list or a dict. ends: the brackets.
    """

    length: int
    make: Callable[[int, int], list[Any] | dict[str, Any]]
    ends: bytes = b"[]"


def long_json(value: Any, *, default: Callable[[Any], Any] | None = None) -> bytes:
    """The value as JSON. default: converts a value that JSON does not have to one that it has."""

    def encode(part: Any) -> bytes:
        return orjson.dumps(part, default, orjson.OPT_UTC_Z)

    return b"".join(_pieces(value, encode, b",", b":"))


def stored_json(value: Any) -> str:
    """The value as `json.dumps` writes it, to the letter: stored texts are compared.

    Raises ValueError for NaN and infinity.
    """

    def encode(part: Any) -> bytes:
        return json.dumps(part, allow_nan=False).encode()

    return b"".join(_pieces(value, encode, b", ", b": ")).decode()


def _pieces(value: Any, encode: Encode, comma: bytes, colon: bytes) -> Iterator[bytes]:
    if isinstance(value, Made):
        yield value.ends[:1]
        for at in range(0, value.length, SLICE):
            part = value.make(at, min(value.length, at + SLICE))
            yield (comma if at else b"") + encode(part)[1:-1]
        yield value.ends[1:]
    elif not isinstance(value, (dict, list, tuple)) or not value:
        yield encode(value)
    elif isinstance(value, dict) and (len(value) <= _FEW or _holds_long(value.values())):
        yield b"{"
        for at, (name, inner) in enumerate(value.items()):
            yield (comma if at else b"") + encode(name) + colon
            yield from _pieces(inner, encode, comma, colon)
        yield b"}"
    elif isinstance(value, (list, tuple)) and _holds_long(value):
        yield b"["
        for at, inner in enumerate(value):
            yield comma if at else b""
            yield from _pieces(inner, encode, comma, colon)
        yield b"]"
    else:
        kind, ends = (dict, b"{}") if isinstance(value, dict) else (list, b"[]")
        entries = iter(value.items() if isinstance(value, dict) else value)
        yield ends[:1]
        for at in range(0, len(value), SLICE):
            yield (comma if at else b"") + encode(kind(islice(entries, SLICE)))[1:-1]
        yield ends[1:]


def _holds_long(values: Any) -> bool:
    """Whether the first entry is long, like a row of a matrix, or contains a `Made`."""
    first = next(iter(values))
    if isinstance(first, dict) and any(isinstance(each, Made) for each in first.values()):
        return True
    return isinstance(first, Made) or (isinstance(first, (dict, list)) and len(first) > _FEW)


def decoded(text: str) -> Any:
    """The value of a JSON text. While a long one is decoded, other threads may run between its
    numbers.

    Raises ValueError or RecursionError.
    """
    if len(text) <= _LONG_TEXT:
        return json.loads(text)
    return json.loads(text, parse_int=whole_number, parse_float=number)


def whole_number(text: str) -> int:
    """`int`, as a function in Python: between its calls, the decoder lets other threads run."""
    return int(text)


def number(text: str) -> float:
    """`float`, for the same reason."""
    return float(text)
