"""Reads and decompresses request bodies within limits of size and time."""

import asyncio
import gzip
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Self

from service.api.edge import zstd
from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.request import Response
from service.batching.work import NO_DEADLINE, Deadline
from service.contract.resources import available_memory
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


class Room:
    """The memory for bodies: how many of their bytes one process may hold at once.

    A body is counted from its first bytes until its request is answered. One that a connection
    sends with its head, in a single read, is not counted. Threads may share a room.
    """

    def __init__(self, most: int) -> None:
        """Make a room. most: bytes; the largest body must fit."""
        self.most, self._taken, self._lock = most, 0, threading.Lock()

    @classmethod
    def of_worker(cls, *, bodies_mib: int, body_mib: int, workers: int) -> "Room":
        """Return the room of one of several workers, which holds at least one largest body.

        bodies_mib: how much it is to hold; 0: its share of a quarter of the memory that the control
        group allows.
        """
        most = bodies_mib * 2**20 or available_memory() // (4 * workers)
        return cls(max(most, body_mib * 2**20))

    def check(self, size: int) -> None:
        """Raise Problem if `size` more bytes do not fit now."""
        if self._taken + size > self.most:
            raise Problem(
                "overloaded",
                f"bodies of {self._taken} bytes are being received or worked on, and {size} more "
                f"do not fit into the {self.most} of --max-bodies-mib; send this one again later",
                headers={"Retry-After": "1"},
            )

    def add(self, size: int) -> None:
        """Count `size` more bytes, or fewer if negative. Raises Problem if they do not fit."""
        with self._lock:
            if size > 0:
                self.check(size)
            self._taken += size

    def held(self) -> "Held":
        """Make the account of one request: how many bytes of the room it holds, at first none."""
        return Held(self)


class Held:
    """The bytes that one request holds of a room, until the end of the `with` block.

    A thread may still decompress the body of a request whose task was cancelled. What it adds
    then is not counted, since nothing would release it.
    """

    __slots__ = ("_lock", "_released", "_room", "size")

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0
        self._released, self._lock = False, threading.Lock()

    def check(self, size: int) -> None:
        """Raise Problem if `size` more bytes do not fit now."""
        self._room.check(size)

    def add(self, size: int) -> None:
        """Hold `size` more bytes, unless released. Raises Problem if they do not fit."""
        with self._lock:
            if not self._released:
                self._room.add(size)
                self.size += size

    def release(self) -> None:
        """Hold nothing, from now on."""
        with self._lock:
            self._released = True
            size, self.size = self.size, 0
        self._room.add(-size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, limit: int, *, seconds: float, held: Held
) -> bytes | bytearray:
    """Read the whole body. Must run in a task.

    limit: the most bytes. seconds: how long the body may take. held: counts its bytes. Raises
    ClientLeft, and Problem for a body that is too large or too slow, or has no room. A declared
    length is checked before the body is read.
    """
    _check_declared(headers.get(b"content-length", b""), limit, held)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit, held)
    except TimeoutError:
        raise _too_slow(seconds) from None


def _check_declared(length: bytes, limit: int, held: Held) -> None:
    """Refuse a Content-Length above the limit, or that has no room now.

    The parser has checked that it is a number.
    """
    if not length:
        return
    declared = whole_number(length, below=limit + 1)
    if declared is None:
        raise Problem(
            "too-large",
            f"the body has {length[:20].decode('latin-1')} bytes; at most {limit} are accepted",
        )
    held.check(declared - held.size)


async def _read(receive: Receive, limit: int, held: Held) -> bytes | bytearray:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    first: bytes = message.get("body", b"")
    held.add(len(first))
    if not message.get("more_body", False) and len(first) <= limit:
        return first
    body = bytearray(first)
    while message.get("more_body", False):
        if len(body) > limit:
            break
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part: bytes = message.get("body", b"")
        held.add(len(part))
        body += part
    if len(body) > limit:
        raise _too_long(limit)
    return body


def _too_slow(seconds: float) -> Problem:
    return Problem(
        "too-slow",
        f"the body did not arrive within {seconds:g} s; send fewer rows, or over a faster link",
        headers={"Connection": "close"},  # the rest of the body may still arrive
    )


def limited(
    declared: bytes, receive: Receive, limit: int, *, seconds: float, held: Held
) -> Receive:
    """Wrap `receive` so that it raises Problem for a body that is too large or slow, or lacks room.

    declared: the Content-Length, or empty. limit: the most bytes. seconds: how long the body may
    take from now on. held: counts its bytes.
    """
    seen = 0
    deadline: float | None = asyncio.get_running_loop().time() + seconds

    async def within() -> Message:
        nonlocal seen, deadline
        _check_declared(declared, limit, held)
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise _too_slow(seconds) from None
        if not message.get("more_body", False):
            deadline = (
                None  # From here on, the application only waits for the client to disconnect.
            )
        size = len(message.get("body", b""))
        held.add(size)
        seen += size
        if seen > limit:
            raise _too_long(limit)
        return message

    return within


def inflated(
    body: bytes | bytearray,
    encoding: bytes,
    limit: int,
    *,
    deadline: Deadline = NO_DEADLINE,
    held: Held | None = None,
) -> bytes | bytearray:
    """Decompress a gzip, deflate or zstd body, up to `limit` bytes, which `held` counts.

    Empty blocks decompress to nothing, so no limit counts them, yet each byte of them takes 70 ns.
    The deadline ends such a body. Raises Problem, UnsupportedBody or DeadlinePassed.

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
        return _members(memoryview(body), name, limit, deadline, held)
    except (zlib.error, ValueError) as error:
        if isinstance(error, UnsupportedBody):
            raise
        raise Problem(
            "malformed",
            f"the body is not {name.decode()}, as its Content-Encoding says: {error}; send whole "
            "data in that encoding, or leave the header out",
        ) from None


def _members(
    body: "memoryview[int]", name: bytes, limit: int, deadline: Deadline, held: Held | None
) -> bytearray:
    """Decompress all members, reading in pieces so that little is copied for each."""
    found, at, members = bytearray(), 0, 0
    reader = _READERS[name]()
    more = True
    while at < len(body) or more:
        deadline.check(time.monotonic())
        piece = body[at : at + _PIECE_BYTES]
        part = reader.decompress(piece, min(_INFLATED_PIECE_BYTES, limit + 1 - len(found)))
        if held is not None:
            held.add(len(part))
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
