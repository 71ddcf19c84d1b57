"""The body of a request: read within its limits of size and time, and inflated within the first."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from service.api.edge.errors import Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class ClientLeft(Exception):
    """The connection closed before the request was whole."""


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, limit: int, *, seconds: float
) -> bytes | bytearray:
    """The whole body. Raises ClientLeft, and Problem when it takes longer than `seconds` or is larger than the limit.

    A length that is declared is looked at before anything is read. Must run in a task.
    """
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise Problem("too-large", f"the body has {int(declared)} bytes; at most {limit} are taken")
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit)
    except TimeoutError:
        raise _too_slow(seconds) from None


async def _read(receive: Receive, limit: int) -> bytes | bytearray:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    first: bytes = message.get("body", b"")
    if not message.get("more_body", False) and len(first) <= limit:
        return first
    body = bytearray(first)
    while message.get("more_body", False):
        if len(body) > limit:
            break
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
    if len(body) > limit:
        raise Problem(
            "too-large", f"the body has more than {limit} bytes, which are the most that are taken"
        )
    return body


def _too_slow(seconds: float) -> Problem:
    return Problem(
        "too-slow",
        f"the body was not there within {seconds:g} s",
        headers={"Connection": "close"},  # the rest of it may still come
    )


def limited(declared: bytes, receive: Receive, limit: int, *, seconds: float) -> Receive:
    """`receive` that raises Problem when more than the limit comes, or not all of it in time, from now on.

    declared: the Content-Length, or empty.
    """
    taken, seen = int(declared) if declared.isdigit() else 0, 0
    deadline: float | None = asyncio.get_running_loop().time() + seconds

    async def within() -> Message:
        nonlocal seen, deadline
        if taken > limit:
            raise Problem("too-large", f"the body has {taken} bytes; at most {limit} are taken")
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise _too_slow(seconds) from None
        if not message.get("more_body", False):
            deadline = None  # from here on the application waits for the client to leave
        seen += len(message.get("body", b""))
        if seen > limit:
            raise Problem(
                "too-large",
                f"the body has more than {limit} bytes, which are the most that are taken",
            )
        return message

    return within


def inflated(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes:
    """A gzip or deflate body as it was, never more of it than the limit. Raises Problem."""
    name = encoding.strip().lower()
    if name in {b"", b"identity"}:
        return bytes(body)
    if name not in _WINDOW:
        shown = name[:40].decode("latin-1")
        raise Problem(
            "unsupported-media-type",
            f"content encoding '{shown}' is not taken; expected gzip or deflate",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    reader = zlib.decompressobj(_WINDOW[name])
    try:
        whole = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise Problem("malformed", f"the body is not {name.decode()}: {error}") from None
    if len(whole) > limit:
        raise Problem(
            "too-large", f"the body has more than {limit} bytes, which are the most that are taken"
        )
    if not reader.eof or reader.unused_data:
        raise Problem("malformed", f"the body is not one whole {name.decode()} stream")
    return whole
