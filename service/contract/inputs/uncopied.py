"""A file for libraries that read from one, over bytes that are in memory already."""

import io
from typing import Any, BinaryIO

_COPIED_BYTES = 2**20


class _Uncopied(io.RawIOBase):
    """A file that reads from a buffer. BytesIO would first copy all of a bytearray."""

    def __init__(self, data: bytearray) -> None:
        super().__init__()
        self._data, self._at = memoryview(data), 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it has positions: yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position, in bytes from the start, from here or from the end; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; returns how many bytes it got."""
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        """The rest, in one copy."""
        found = bytes(self._data[self._at :])
        self._at += len(found)
        return found


def file_of(data: bytes | bytearray) -> BinaryIO:
    """A file over data, which must not change while it is read. Long data are not copied."""
    if isinstance(data, bytearray) and len(data) > _COPIED_BYTES:
        return io.BufferedReader(_Uncopied(data))
    return io.BytesIO(data)
