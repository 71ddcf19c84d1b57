"""Strict JSON of a request, decoded only after its size in memory is estimated."""

from collections.abc import Sequence
from typing import Any

import orjson

from service.wire.faults import Malformed, TooLarge
from service.wire.shown import short

MAX_DECODED_BYTES = 48 * 2**20
"""Estimated memory of a decoded document; decoding it holds the interpreter for about 30 ms."""
_UNCHECKED_BYTES = 16 * 1024
"""A shorter body cannot become large."""
_WINDOW_BYTES = 2**20
_MAX_LEVELS = 1024
_VALUE_BYTES, _LIST_BYTES, _OBJECT_BYTES = 40, 64, 240
"""CPython's memory of a number with its place in a list, of an empty list and of a small object."""


def parse_json(body: bytes | bytearray) -> Any:
    """Decode JSON strictly: no NaN, no infinity, at most 1,024 levels.

    Raises Malformed or TooLarge.
    """
    if not body:
        raise Malformed("the body is empty")
    if len(body) > _UNCHECKED_BYTES:
        check_decoded_size(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None


def parse_json_object(body: bytes | bytearray, allowed: Sequence[str]) -> dict[str, Any]:
    """Decode a JSON object with no member but those allowed. Raises Malformed or TooLarge."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Malformed(f"the body must be a JSON object; got {short(document)}")
    for name in document:
        if name not in allowed:
            raise Malformed(f"unknown member '{name[:60]}'; expected {', '.join(allowed)}")
    return document


def check_decoded_size(body: bytes | bytearray, limit: int = MAX_DECODED_BYTES) -> None:
    """Estimate the memory of decoded JSON from its punctuation. Raises TooLarge or Malformed."""
    if len(body) <= _UNCHECKED_BYTES:
        return
    size = 0
    for begin in range(0, len(body), _WINDOW_BYTES):
        end = begin + _WINDOW_BYTES
        size += _VALUE_BYTES * body.count(b",", begin, end)
        size += _LIST_BYTES * body.count(b"[", begin, end)
        size += _OBJECT_BYTES * body.count(b"{", begin, end)
        if size > limit:
            if body.count(b"[", 0, end) - body.count(b"]", 0, end) > _MAX_LEVELS:
                raise Malformed(f"the body is not JSON of at most {_MAX_LEVELS} levels")
            raise TooLarge(
                f"the JSON holds too many values: decoded it would need more than {limit} bytes, "
                "the most that is accepted; send a .npy array or binary tensors, or fewer rows"
            )
