"""Remembers parsed header blocks, since clients repeat them byte by byte.

Only a complete request with a plain request line is recognised. The HTTP parser reads all others.
"""

import re
from typing import TypeAlias

from service.api.edge import zstd
from service.wire.digits import decimal_number, whole_number

Pairs = list[tuple[bytes, bytes]]

_REQUEST_LINE = re.compile(rb'POST (/[!-"$&->@-~]*)(?:\?([!-"$-~]*))? HTTP/1\.1\r\n')
"""A request line of printable ASCII: a path without escapes, maybe a query, no fragment."""
_END = b"\r\n\r\n"
_SERVED_TYPES = (b"*/*", b"json", b"application/*", b"octet-stream")
_MAX_BLOCK_BYTES = 2048
_MAX_BLOCKS = 512
_OF_ONE_REQUEST = frozenset({b"x-request-id", b"traceparent", b"tracestate", b"x-b3-traceid"})
"""These headers differ in each request, so a block with one of them is not remembered."""
_OF_THE_CONNECTION = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
"""Blocks with one of these headers, or with a `connection` other than keep-alive, are left to the
parser.
"""


class Head:
    """A parsed header block: its fields, and what the service derives from them."""

    __slots__ = (
        "accepts_json",
        "asks_for_coding",
        "by_name",
        "coding",
        "content_length",
        "content_type",
        "headers",
    )

    def __init__(self, headers: Pairs, content_length: int) -> None:
        """Parse headers, whose names are in lower case. content_length: bytes of the body."""
        self.headers, self.content_length = headers, content_length
        self.by_name = by_name = dict(headers)
        if len(by_name) != len(headers):
            self.by_name = by_name = _joined(headers)
        content_type = by_name.get(b"content-type", b"")
        self.content_type = content_type.split(b";")[0].strip().lower().decode("latin-1")
        """The media type in lower case, without parameters; empty when there is none."""
        accept = by_name.get(b"accept", b"*/*")
        self.accepts_json = any(served in accept for served in _SERVED_TYPES)
        """Whether the client accepts JSON, or JSON and tensors of the Open Inference Protocol."""
        self.coding = _coding(by_name.get(b"accept-encoding", b""))
        """The content coding for long answers: gzip, zstd, or empty for none."""
        self.asks_for_coding = by_name.get(b"accept-encoding") in {b"gzip", b"zstd"}
        """Whether the client names one coding alone; libraries name all that they can read."""


_CODINGS = (b"zstd", b"gzip") if zstd.AVAILABLE else (b"gzip",)
"""Supported codings; the first wins if a client accepts several equally."""


def _coding(header: bytes) -> bytes:
    """The content coding to use for an Accept-Encoding header; empty if none is acceptable."""
    if not header:
        return b""
    weights = _weights(header)
    best, least = b"", 0.0
    for coding in _CODINGS:
        found = weights.get(coding, weights.get(b"*", 0.0))
        if found > least:
            best, least = coding, found
    return best


def accepts_gzip(headers: Pairs) -> bool:
    """Whether a client accepts gzip. A weight of 0 says that it does not (RFC 9110, 12.4.2)."""
    given = _joined(headers).get(b"accept-encoding", b"")
    weights = _weights(given) if given else {}
    return weights.get(b"gzip", weights.get(b"*", 0.0)) > 0


def _weights(header: bytes) -> dict[bytes, float]:
    """The weight of each coding that an Accept-Encoding header names."""
    weights: dict[bytes, float] = {}
    for item in header.lower().split(b","):
        name, _, weight = item.replace(b" ", b"").partition(b";q=")
        number = decimal_number(weight.decode("latin-1") or "1")
        weights[name.removeprefix(b"x-")] = 0.0 if number is None else number
    return weights


def _joined(headers: Pairs) -> dict[bytes, bytes]:
    """Headers by name. Values with the same name are joined by commas (RFC 9110 section 5.2)."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return {name: b", ".join(values) for name, values in found.items()}


KnownRequest: TypeAlias = tuple[bytes, bytes, Head, bytes]
"""Path, query, head and body."""


class KnownHeads:
    """The header blocks of recent requests of all clients: at most 512, each at most 2 KiB."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Head] = {}

    def find(self, data: bytes) -> KnownRequest | None:
        """Return the request in `data`, if that is one complete request with a known header block.

        None for anything else, which the parser must read.
        """
        line = _REQUEST_LINE.match(data)
        if line is None:
            return None
        begin = line.end()
        end = data.find(_END, begin)
        if end < 0:
            return None
        head = self._blocks.get(data[begin:end])
        if head is None or len(data) - end - 4 != head.content_length:
            return None
        path, query = line.groups(b"")
        return path, query, head, data[end + 4 :]

    def learn(self, data: bytes, headers: Pairs) -> None:
        """Remember the header block of `data`, one complete request that the parser has read."""
        line = _REQUEST_LINE.match(data)
        end = data.find(_END)
        if line is None or not 0 < end - line.end() <= _MAX_BLOCK_BYTES:
            return
        names = [name for name, _ in headers]
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            return
        if not _OF_ONE_REQUEST.isdisjoint(names) or not _OF_THE_CONNECTION.isdisjoint(names):
            return
        length = len(data) - end - len(_END)
        closing = [v for name, v in headers if name == b"connection" and v.lower() != b"keep-alive"]
        if closing or whole_number(lengths[0], below=length + 1) != length:
            return
        if len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.clear()
        self._blocks[data[line.end() : end]] = Head(headers, length)
