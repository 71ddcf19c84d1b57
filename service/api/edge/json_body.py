"""JSON bodies of the routes that change something: bounded, unambiguous, and fit to be stored."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request

from service.api.edge.errors import Problem, problem_of
from service.wire.faults import Malformed, TooLarge
from service.wire.json_text import check_decoded_size

MAX_BODY_BYTES = 16 * 2**20
MAX_DECODED_BYTES = 16 * 2**20
"""Estimated memory of a decoded body: a prior of 400,000 classes."""
MAX_DEPTH = 32
_INLINE_BYTES = 32 * 1024
"""A longer body is decoded in a thread, so that other requests go on."""


async def read_json(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> Any:
    """Decode the body. Raises Problem: 400 malformed, 413 too large, 415 for another media type."""
    content_type = (
        request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    )
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise Problem(
            "unsupported-media-type", f"the body is {content_type[:60]}; expected application/json"
        )
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise Problem(
                "too-large",
                f"the body has more than {max_bytes} bytes, the most that is accepted here",
            )
    if len(body) <= _INLINE_BYTES:
        return decode_json(bytes(body))
    return await asyncio.to_thread(decode_json, bytes(body))


async def read_object(request: Request, *, members: Mapping[str, bool]) -> dict[str, Any]:
    """Decode a JSON object. Raises Problem.

    members: the names it may have, each with whether it is required.
    """
    found = await read_json(request)
    if not isinstance(found, dict):
        raise Problem("invalid", "expected a JSON object")
    errors = [{"field": name, "message": "unknown member"} for name in found if name not in members]
    errors += [
        {"field": name, "message": "missing"}
        for name, needed in members.items()
        if needed and name not in found
    ]
    if errors:
        raise Problem(
            "invalid",
            "; ".join(f"{e['field'][:60]}: {e['message']}" for e in errors[:5]),
            errors=errors[:50],
        )
    return found


def decode_json(body: bytes) -> Any:
    """Decode standard JSON without repeated members, deep nesting and NUL characters.

    Raises Problem.
    """
    try:
        check_decoded_size(body, MAX_DECODED_BYTES)
    except (Malformed, TooLarge) as error:
        raise problem_of(error) from None
    try:
        orjson.loads(body)  # stricter than json: no NaN, no lone surrogates, UTF-8 only
        value = json.loads(body, object_pairs_hook=_unique)
    except (orjson.JSONDecodeError, ValueError, RecursionError) as error:
        message = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(
            "malformed", f"the body is not JSON that can be read: {message[:200]}"
        ) from None
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"member '{twice[:60]}' is given twice")
    return found


def _check(value: Any) -> None:
    """Check depth and texts without recursion, which a deep value would exhaust."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                inner += item.keys()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and "\0" in item:
                raise Problem("invalid", "a text holds the character NUL, which cannot be stored")
        if not inner:
            return
        level = inner
    raise Problem("malformed", f"the body is nested deeper than {MAX_DEPTH}")
