"""Long JSON in slices: one call for 180,000 numbers keeps the interpreter for 50 ms or more, and
meanwhile no other thread can run, the event loop's among them.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

SLICE = 4096
"""Entries that are encoded in one call, in about a millisecond."""
_FEW = 64
_LONG_TEXT = 64 * 1024

Encode = Callable[[Any], bytes]


def long_json(value: Any, *, default: Callable[[Any], Any] | None = None) -> bytes:
    """The value as JSON. default: turns what JSON does not have into what it has."""

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
    if not isinstance(value, (dict, list)) or not value:
        yield encode(value)
    elif isinstance(value, dict) and (len(value) <= _FEW or _holds_long(value.values())):
        yield b"{"
        for at, (name, inner) in enumerate(value.items()):
            yield (comma if at else b"") + encode(name) + colon
            yield from _pieces(inner, encode, comma, colon)
        yield b"}"
    elif isinstance(value, list) and _holds_long(value):
        yield b"["
        for at, inner in enumerate(value):
            yield comma if at else b""
            yield from _pieces(inner, encode, comma, colon)
        yield b"]"
    else:
        entries = list(value.items() if isinstance(value, dict) else value)
        kind, ends = (dict, b"{}") if isinstance(value, dict) else (list, b"[]")
        yield ends[:1]
        for at in range(0, len(entries), SLICE):
            yield (comma if at else b"") + encode(kind(entries[at : at + SLICE]))[1:-1]
        yield ends[1:]


def _holds_long(values: Any) -> bool:
    """Whether the first value is itself long, as the rows of a matrix are."""
    first = next(iter(values))
    return isinstance(first, (dict, list)) and len(first) > _FEW


def decoded(text: str) -> Any:
    """The value of a JSON text. Between two numbers of a long one, other threads may run.

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
