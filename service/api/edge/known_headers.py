"""Header blocks that were parsed before: a client sends the same one with each request, and the same bytes mean the same.

Only whole requests are looked for, whose request line is of the plainest kind; what is not known is the HTTP parser's to read.
"""

import re
from functools import lru_cache
from typing import TypeAlias

Pairs = list[tuple[bytes, bytes]]

_REQUEST_LINE = re.compile(rb'POST (/[!-"$&->@-~]*)(?:\?([!-"$-~]*))? HTTP/1\.1\r\n')
"""A path without escapes, a query, and no fragment: printable ASCII."""
_END = b"\r\n\r\n"
_TAKEN = (b"*/*", b"json", b"application/*", b"octet-stream")
_MAX_BLOCK_BYTES = 2048
_MAX_BLOCKS = 512
_OF_ONE_REQUEST = frozenset({b"x-request-id", b"traceparent", b"tracestate", b"x-b3-traceid"})
"""A block that holds one of these does not come again."""
_OF_THE_CONNECTION = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
"""What these ask for is left to the parser, and `connection` where it is not keep-alive, as it is anyway."""


class Head:
    """What a header block says."""

    __slots__ = ("accepts_json", "by_name", "content_length", "content_type", "headers")

    def __init__(self, headers: Pairs, content_length: int) -> None:
        """Headers have lower-case names; nobody may change them."""
        self.headers, self.content_length = headers, content_length
        self.by_name = dict(headers)
        self.content_type = _media_type(self.by_name.get(b"content-type", b""))
        """Without parameters, lower case; empty when there is none."""
        accept = self.by_name.get(b"accept", b"*/*")
        self.accepts_json = any(taken in accept for taken in _TAKEN)
        """Whether the client takes what we answer, JSON or (of the Open Inference Protocol) JSON and tensors."""


@lru_cache(maxsize=256)
def _media_type(header: bytes) -> str:
    return header.split(b";")[0].strip().lower().decode("latin-1")


KnownRequest: TypeAlias = tuple[bytes, bytes, Head, bytes]
"""Path, query, head and body."""


class KnownHeads:
    """The header blocks of the last requests; a few are kept, of any clients."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Head] = {}

    def find(self, data: bytes) -> KnownRequest | None:
        """The request that `data` is, where it is exactly one, whole, and its header block is known."""
        line = _REQUEST_LINE.match(data)
        if line is None:
            return None
        begin = line.end()
        end = data.find(_END, begin)
        head = self._blocks.get(data[begin:end])
        if head is None or len(data) - end - 4 != head.content_length:
            return None
        path, query = line.groups(b"")
        return path, query, head, data[end + 4 :]

    def learn(self, data: bytes, headers: Pairs) -> None:
        """Keep the header block of `data`, which the parser read as one whole request with these headers."""
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
        length = int(lengths[0])
        closing = [v for name, v in headers if name == b"connection" and v.lower() != b"keep-alive"]
        if closing or len(data) - end - len(_END) != length:
            return
        if len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.clear()
        self._blocks[data[line.end() : end]] = Head(headers, length)
