"""Reads and decompresses request bodies within limits of size and time."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from service.api.edge import zstd
from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.request import Response
from service.batching.work import NO_DEADLINE, Deadline
from service.wire.digits import whole_number
from service.wire.faults import UnsupportedBody

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_PIECE_BYTES = 64 * 1024
_INFLATED_PIECE_BYTES = 2**20
"""The most bytes decompressed at once: copying more would hold the interpreter lock too long."""
_MAX_MEMBERS = 10_000
MIN_COMPRESSED_BYTES = 64 * 1024
"""Shorter answers of scoring routes are not compressed: that takes longer than sending them."""
MIN_ASKED_BYTES = 16 * 1024
"""Answers from this size on are compressed for clients that name one coding alone."""
_READERS: dict[bytes, Callable[[], Any]] = {
    b"gzip": partial(zlib.decompressobj, 16 + zlib.MAX_WBITS),
    b"deflate": partial(zlib.decompressobj, zlib.MAX_WBITS),
    b"zstd": zstd.Reader,
}


class ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, limit: int, *, seconds: float
) -> bytes | bytearray:
    """Read the whole body. Must run in a task.

    limit: the most bytes. seconds: how long the body may take. Raises ClientLeft, and Problem for a
    body that is too large or too slow. A declared length is checked before the body is read.
    """
    _check_declared(headers.get(b"content-length", b""), limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit)
    except TimeoutError:
        raise _too_slow(seconds) from None


def _check_declared(length: bytes, limit: int) -> None:
    """Refuse a Content-Length above the limit. The parser has checked that it is a number."""
    if length and whole_number(length, below=limit + 1) is None:
        raise Problem(
            "too-large",
            f"the body has {length[:20].decode('latin-1')} bytes; at most {limit} are accepted",
        )


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
        raise _too_long(limit)
    return body


def _too_slow(seconds: float) -> Problem:
    return Problem(
        "too-slow",
        f"the body did not arrive within {seconds:g} s; send fewer rows, or over a faster link",
        headers={"Connection": "close"},  # the rest of the body may still arrive
    )


def limited(declared: bytes, receive: Receive, limit: int, *, seconds: float) -> Receive:
    """Wrap `receive` so that it raises Problem for a body that is too large or too slow.

    declared: the Content-Length, or empty. limit: the most bytes. seconds: how long the body may
    take from now on.
    """
    seen = 0
    deadline: float | None = asyncio.get_running_loop().time() + seconds

    async def within() -> Message:
        nonlocal seen, deadline
        _check_declared(declared, limit)
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise _too_slow(seconds) from None
        if not message.get("more_body", False):
            deadline = (
                None  # From here on, the application only waits for the client to disconnect.
            )
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_long(limit)
        return message

    return within


def inflated(
    body: bytes | bytearray, encoding: bytes, limit: int, *, deadline: Deadline = NO_DEADLINE
) -> bytes | bytearray:
    """Decompress a gzip, deflate or zstd body, up to `limit` bytes.

    A body of empty blocks gives nothing to count, and takes 70 ns for each of its bytes; the
    deadline ends it. Raises Problem, UnsupportedBody or DeadlinePassed.

    A gzip body may have several members (RFC 1952 section 2.2), as `bgzip` and `cat` make them, and
    a zstd body several frames.
    """
    name = encoding.strip().lower().removeprefix(b"x-")
    if name in {b"", b"identity"}:
        return body
    if name not in _READERS:
        shown = encoding[:40].decode("latin-1")
        raise Problem(
            "unsupported-media-type",
            f"content encoding '{shown}' is not supported; expected gzip, deflate or zstd",
            headers={
                "Accept-Encoding": "gzip, deflate, zstd" if zstd.AVAILABLE else "gzip, deflate"
            },
        )
    try:
        return _members(memoryview(body), name, limit, deadline)
    except (zlib.error, ValueError) as error:
        if isinstance(error, UnsupportedBody):
            raise
        raise Problem(
            "malformed",
            f"the body is not {name.decode()}, as its Content-Encoding says: {error}; send whole "
            "data in that encoding, or leave the header out",
        ) from None


def _members(body: "memoryview[int]", name: bytes, limit: int, deadline: Deadline) -> bytearray:
    """Decompress all members, reading in pieces so that little is copied for each."""
    found, at, members = bytearray(), 0, 0
    reader = _READERS[name]()
    more = True
    while at < len(body) or more:
        deadline.check(time.monotonic())
        piece = body[at : at + _PIECE_BYTES]
        part = reader.decompress(piece, min(_INFLATED_PIECE_BYTES, limit + 1 - len(found)))
        found += part
        if len(found) > limit:
            raise _too_long(limit)
        left = reader.unconsumed_tail or reader.unused_data
        at += len(piece) - len(left)
        more = len(part) == _INFLATED_PIECE_BYTES  # the reader may hold more of its output
        if not reader.eof:
            continue
        members += 1
        if at == len(body):
            return found
        if name == b"deflate" or members == _MAX_MEMBERS:
            break
        reader = _READERS[name]()
    raise Problem(
        "malformed",
        f"the body is not one whole {name.decode()} stream of at most {_MAX_MEMBERS} members; "
        "expected a body that is not cut short",
    )


def compressed(response: Response, coding: bytes) -> Response:
    """Compress a response's JSON body; gzip takes about 1 ms for each 64 KiB.

    coding: b"gzip" or b"zstd".
    """
    status, content_type, body, request_id, headers = response
    packed = (
        zstd.compress(body) if coding == b"zstd" else gzip.compress(body, compresslevel=1, mtime=0)
    )
    more = ((b"content-encoding", coding), (b"vary", b"accept-encoding"))
    return status, content_type, packed, request_id, (*headers, *more)


def is_compressed(response: Response | None, head: Head) -> bool:
    """Whether to compress a response: it is long enough, and its client accepts a coding."""
    return (
        response is not None
        and head.coding != b""
        and len(response[2]) >= (MIN_ASKED_BYTES if head.asks_for_coding else MIN_COMPRESSED_BYTES)
        and response[1] == b"application/json"
    )


def _too_long(limit: int) -> Problem:
    return Problem(
        "too-large",
        f"the body has more than {limit} bytes, the most that is accepted: send it in parts",
    )
