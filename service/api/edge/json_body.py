"""JSON bodies of the routes that change something: bounded in size, unambiguous, and storable."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from service.api.edge.errors import Problem
from service.wire.json_text import parse_storable

MAX_BODY_BYTES = 16 * 2**20
_INLINE_BYTES = 32 * 1024
"""A longer body is decoded in a thread, so that it does not delay other requests."""


async def read_json(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> Any:
    """Decode the body.

    Raises Malformed, TooLarge or InvalidInput; Problem(unsupported-media-type) and
    Problem(too-large).
    """
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
        return parse_storable(bytes(body))
    return await asyncio.to_thread(parse_storable, bytes(body))


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
