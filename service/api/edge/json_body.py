"""Reads the JSON bodies of routes that change something: limited in size, unambiguous, storable."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from service.api.edge.errors import Problem
from service.wire.json_text import parse_storable
from service.wire.shown import short

MAX_BODY_BYTES = 16 * 2**20
_INLINE_BYTES = 32 * 1024
"""A longer body is decoded in a thread, so that it does not delay other requests."""


async def read_json(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> Any:
    """Decode the JSON body of a request, at most `max_bytes` long.

    Raises Malformed, TooLarge or InvalidInput, Problem(unsupported-media-type) and
    Problem(too-large).
    """
    check_json(media_type(request))
    body = await read_bytes(request, max_bytes=max_bytes)
    if len(body) <= _INLINE_BYTES:
        return parse_storable(body)
    return await asyncio.to_thread(parse_storable, body)


def media_type(request: Request) -> str:
    """Return the body's media type, in lower case and without parameters; JSON if none is given."""
    content_type: str = request.headers.get("content-type", "application/json")
    return content_type.split(";", maxsplit=1)[0].strip().lower()


def check_json(found: str, *, or_else: str = "") -> None:
    """Raise Problem(unsupported-media-type) unless a type is JSON.

    or_else: other accepted types, for the message.
    """
    if found != "application/json" and not found.endswith("+json"):
        raise Problem(
            "unsupported-media-type",
            f"the body is {found[:60]}; expected application/json{or_else}",
        )


async def read_bytes(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read the body, at most `max_bytes` long. Raises Problem(too-large)."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise Problem(
                "too-large",
                f"the body has more than {max_bytes} bytes, the most that is accepted here; "
                "send it in parts",
            )
    return bytes(body)


async def read_object(request: Request, *, members: Mapping[str, bool]) -> dict[str, Any]:
    """Decode a JSON object. Raises Problem, which lists unknown and missing members.

    members: {name: whether it is required} of all the members that it may have.
    """
    found = await read_json(request)
    if not isinstance(found, dict):
        raise Problem(
            "invalid",
            f"the body is {short(found)}; expected an object with {', '.join(members)}",
        )
    unknown = f"unknown member; expected {', '.join(members)}"
    errors = [{"field": name, "message": unknown} for name in found if name not in members]
    errors += [
        {"field": name, "message": "missing; this member is required"}
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
