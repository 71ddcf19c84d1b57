"""Strict JSON of a request, decoded only after its size in memory is estimated.

Every JSON body is read here: `parse_json` for rows to score, `parse_storable` for what is stored.
"""

import codecs
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import orjson

from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.shown import short

MAX_DECODED_BYTES = 48 * 2**20
"""The most memory, by estimate, of a decoded document. Decoding that much holds the interpreter
lock for about 30 ms.
"""
MAX_WHOLE_BYTES = 16 * 2**20
"""The longest text that is decoded at once: a longer one would hold the interpreter lock too
long.
"""
MAX_STRINGS = 200_000
"""The most texts and names of a document that is decoded at once; a new name takes 0.2 µs."""
MAX_STORABLE_BYTES = 16 * 2**20
"""The most memory, by estimate, of a decoded document to be stored: a prior of 400,000 classes."""
MAX_STORABLE_LEVELS = 32
_BOM_CODEC = codecs.lookup("utf-8-sig").name
"""Looked up now, as Python reads this codec from a file: a request may find no free descriptor."""
_STRICT_BYTES = 256 * 1024
"""Bodies to be stored that are first decoded by orjson, whose messages are better."""
_MAY_BE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_WHOLE = 20
_UNCHECKED_BYTES = 16 * 1024
"""A body below this size is not measured: decoded, it cannot become large."""
_WINDOW_BYTES = 2**20
"""Bytes that are searched at once: a search holds the interpreter lock, up to 2 ns for each
byte.
"""
_PAIRS_AT_ONCE = 10_000
_MAX_LEVELS = 1024
_VALUE_BYTES, _LIST_BYTES, _OBJECT_BYTES = 40, 64, 240
"""Memory that CPython needs for a number with its list slot, an empty list, and a small object."""


def holds(body: bytes | bytearray, word: bytes, begin: int = 0) -> bool:
    """Whether a body contains a word at or after `begin`. Other threads may run between windows."""
    if len(body) - begin <= _WINDOW_BYTES:
        return body.find(word, begin) >= 0
    more = len(word) - 1
    for at in range(begin, len(body), _WINDOW_BYTES):
        if body.find(word, at, at + _WINDOW_BYTES + more) >= 0:
            return True
    return False


def parse_json(body: bytes | bytearray, *, limit: int = MAX_DECODED_BYTES) -> Any:
    """Decode JSON strictly: no NaN, no infinity, at most 1,024 levels.

    The decoder holds the interpreter lock until it returns, so its input is bounded: the length of
    the text, the number of strings, and the memory. limit: the most bytes that the decoded document
    may take, by estimate. Raises Malformed or TooLarge.
    """
    if not body:
        raise Malformed("the body is empty; expected JSON")
    if len(body) > _UNCHECKED_BYTES:
        check_decoded_size(body, limit)
    check_length(len(body))
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fault = fault_of(error)
    if body.startswith(codecs.BOM_UTF8):  # one mark, as Windows' tools write it (RFC 8259, 8.1)
        try:
            return orjson.loads(memoryview(body)[len(codecs.BOM_UTF8) :])
        except orjson.JSONDecodeError as error:
            fault = fault_of(error)
    raise Malformed(f"the body is not JSON: {fault}")


def fault_of(error: orjson.JSONDecodeError) -> str:
    """Why a text is not JSON. Python's json writes NaN and Infinity, which JSON does not have."""
    found = _NO_NUMBER.match(error.doc, max(0, error.pos - 1))
    if found is None:
        return str(error)
    return f"{error}: '{found[1]}' is not a JSON number; write null for a missing value"


_NO_NUMBER = re.compile(r"[\[,:\s]?(-?(?:NaN|nan|Infinity))")


def parse_json_object(body: bytes | bytearray, allowed: Sequence[str]) -> dict[str, Any]:
    """Decode a JSON object with no member but those allowed. Raises Malformed or TooLarge."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Malformed(
            f"the body is {short(document)}; expected an object with {', '.join(allowed)}"
        )
    for name in document:
        if name not in allowed:
            raise Malformed(f"unknown member '{name[:60]}'; expected {', '.join(allowed)}")
    return document


def parse_json_lines(body: bytes | bytearray, *, max_lines: int) -> list[Any]:
    """Decode JSON Lines: a value on each line, in UTF-8. Empty lines do not count.

    Each line is decoded by itself, so that no value extends over two. max_lines: the most lines.
    Raises Malformed or TooLarge.
    """
    check_decoded_size(body)
    check_length(len(body))
    ends = 0
    for begin in range(0, len(body), _WINDOW_BYTES):
        ends += body.count(b"\n", begin, begin + _WINDOW_BYTES)
    if ends > 2 * max_lines:
        raise TooLarge(
            f"the body has {ends} lines; the model takes at most {max_lines} rows: send fewer"
        )
    found: list[Any] = []
    begin = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    number, view = 0, memoryview(body)
    while begin < len(body):
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        number += 1
        try:
            if line := bytes(view[begin:end]).strip(b" \t\r"):
                found.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise Malformed(f"line {number} is not JSON: {fault_of(error)}") from None
        begin = end + 1
    return found


def check_length(count: int) -> None:
    """Raise TooLarge for more bytes of JSON than are decoded at once."""
    if count > MAX_WHOLE_BYTES:
        raise TooLarge(
            f"the JSON has {count} bytes; JSON that is not one plain list of rows may have at "
            f"most {MAX_WHOLE_BYTES}: send a .npy array or binary tensors, or fewer rows"
        )


def check_decoded_size(body: bytes | bytearray, limit: int = MAX_DECODED_BYTES) -> None:
    """Estimate the memory of decoded JSON from its punctuation. Raises TooLarge or Malformed."""
    # Were every byte an object, or half of a text's quotes: a short body is within all limits.
    if len(body) <= min(limit // _OBJECT_BYTES, 2 * MAX_STRINGS):
        return
    size = quotes = 0
    for begin in range(0, len(body), _WINDOW_BYTES):
        end = begin + _WINDOW_BYTES
        size += _VALUE_BYTES * body.count(b",", begin, end)
        size += _LIST_BYTES * body.count(b"[", begin, end)
        size += _OBJECT_BYTES * body.count(b"{", begin, end)
        quotes += body.count(b'"', begin, end)
        if quotes > 2 * MAX_STRINGS:
            raise TooLarge(
                f"the JSON holds more than {MAX_STRINGS} texts and names, the most that is "
                "accepted; send columns as lists, or fewer rows"
            )
        if size > limit:
            if body.count(b"[", 0, end) - body.count(b"]", 0, end) > _MAX_LEVELS:
                raise Malformed(
                    f"the body is not JSON of at most {_MAX_LEVELS} levels; check that every "
                    "bracket is closed"
                )
            raise TooLarge(
                f"the JSON holds too many values: decoded it would need more than {limit} bytes, "
                "the most that is accepted; send a .npy array or binary tensors, or fewer rows"
            )


def parse_storable(body: bytes) -> Any:
    """Decode JSON that can be stored: no repeated member, at most 32 levels, no NUL in a text.

    Raises Malformed, TooLarge or InvalidInput.
    """
    if len(body) <= _STRICT_BYTES or _MAY_BE_SURROGATE.search(body) is not None:
        parse_json(body, limit=MAX_STORABLE_BYTES)  # refuses all that is not strict JSON
    else:  # it would hold the interpreter lock
        check_decoded_size(body, MAX_STORABLE_BYTES)
        check_length(len(body))
    try:
        value = json.loads(
            body.decode(_BOM_CODEC),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        deep = f"nested deeper than {MAX_STORABLE_LEVELS} levels, the most that is accepted"
        message = deep if isinstance(error, RecursionError) else str(error)
        raise Malformed(f"the body is not JSON that can be read: {message[:200]}") from None
    _check_storable(value)
    return value


def _whole(text: str) -> int | float:
    """Parse a whole number. A long one becomes a float, as orjson reads it.

    It is a Python function for the reason that `slices.number` is one.
    """
    return int(text) if len(text) < _LONGEST_WHOLE else _finite(text)


def _finite(text: str) -> float:
    found = float(text)
    if found in (math.inf, -math.inf):
        raise ValueError(
            f"number {text[:20]}… is larger than a double can hold; give a smaller one"
        )
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"'{text}' is not a JSON number; write null for a missing value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for at in range(0, len(pairs), _PAIRS_AT_ONCE):  # each name is hashed, which takes 0.2 µs
        found.update(pairs[at : at + _PAIRS_AT_ONCE])
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"member '{twice[:60]}' is given twice; keep one of them")
    return found


def _check_storable(value: Any) -> None:
    """Check depth and texts without recursion, which a deep value would exhaust."""
    level = [value]
    for _ in range(MAX_STORABLE_LEVELS):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                inner += item.keys()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and "\0" in item:
                raise InvalidInput(
                    "a text holds the character NUL, which cannot be stored; remove it"
                )
        if not inner:
            return
        level = inner
    raise Malformed(
        f"the body is nested deeper than {MAX_STORABLE_LEVELS} levels, the most that is accepted; "
        "send a flatter one"
    )
