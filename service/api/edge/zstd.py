"""The content coding zstd (RFC 8878), available if its library is installed (extra `zstd`)."""

from types import ModuleType

from service.wire.faults import UnsupportedBody

_WINDOW_LOG = 23
"""Base-2 logarithm of the largest window in bytes: 8 MiB, as RFC 9659 sets for HTTP."""


def _library() -> ModuleType | None:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
    except ModuleNotFoundError:
        try:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]
        except ModuleNotFoundError:
            return None
    return zstd  # type: ignore[no-any-return,unused-ignore]


_zstd = _library()
AVAILABLE = _zstd is not None


class Reader:
    """Decompresses one frame, with the methods of zlib's decompressor."""

    unconsumed_tail = b""

    def __init__(self) -> None:
        """Begin a frame. Raises UnsupportedBody if the library is not installed."""
        if _zstd is None:
            raise UnsupportedBody(
                "content encoding 'zstd' needs a library that is not installed: "
                "pip install 'priordial[zstd]'; or send gzip"
            )
        window = {_zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        self._reader = _zstd.ZstdDecompressor(options=window)

    def decompress(self, data: bytes | memoryview, most: int) -> bytes:
        """Return the next bytes, at most `most`. Raises ValueError if the data is not zstd."""
        assert _zstd is not None
        try:
            found: bytes = self._reader.decompress(data, max_length=most)
            while len(found) < most and not (self._reader.eof or self._reader.needs_input):
                found += self._reader.decompress(b"", max_length=most - len(found))
        except _zstd.ZstdError as error:
            raise ValueError(str(error)) from None
        return found

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the frame."""
        held: bytes = self._reader.unused_data if self._reader.eof else b""
        return held

    @property
    def eof(self) -> bool:
        """Whether the frame is complete."""
        return bool(self._reader.eof)


def compress(body: bytes) -> bytes:
    """Compress a body into one frame, at the fastest of the usual levels."""
    assert _zstd is not None
    packed: bytes = _zstd.compress(body, level=1)
    return packed
