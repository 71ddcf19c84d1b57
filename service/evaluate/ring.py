"""A ring of answered rows for feedback: one mapped file for each worker and model version.

Any worker may look up rows in the files of all workers and write labels into them, so feedback may
go to another worker than the one that answered. Only the owner adds rows. The file doubles until it
has its full size; then the oldest rows are overwritten. Disk space is allocated before it is
mapped: writing to a mapping without disk space would kill the process.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.process.machine import allocate

TOP = 5
"""How many classes of a row are kept, the most probable first."""
NO_LABEL = -1
_ID_BYTES = 32
ROW = np.dtype(
    [
        ("id", f"S{_ID_BYTES}"),
        ("at", "<f8"),  # seconds since 1970
        ("row", "<u4"),  # within its request
        ("context", "<u4"),  # see context_code
        ("decided", "<i4"),  # a class, or REJECTED
        ("label", "<i4"),  # a class, or NO_LABEL
        ("sampled", "<f4"),  # probability of being labelled; NaN: not said
        ("top", "<i4", (TOP,)),  # classes; -1 after the last
        ("score", "<f4", (TOP,)),  # log posterior under the source prior, up to a constant
    ]
)
Rows: TypeAlias = NDArray[Any]
_HEADER = mmap.PAGESIZE
_FIRST_BYTES = 64 * 1024
_PIECE = 100_000


def context_code(prior: str | None, key: str | None, value: str | None) -> int:
    """The number by which rows of a context are found: 0 for none."""
    if prior is None or key is None or value is None:
        return 0
    return zlib.crc32(f"{prior}\0{key}\0{value}".encode()) or 1


def id_of(request_id: str) -> bytes:
    """The stored form of a request id: a short id as it is, a long one as a digest."""
    if len(request_id) <= _ID_BYTES:
        return request_id.encode("latin-1", "replace")
    return blake2b(request_id.encode(), digest_size=_ID_BYTES // 2).hexdigest().encode()


def pieces(rows: Rows) -> Iterator[Rows]:
    """The rows in pieces, as views: a ring may hold gigabytes, too many to copy at once."""
    for begin in range(0, len(rows), _PIECE):
        yield rows[begin : begin + _PIECE]


class Ring:
    """A file of rows. The owner creates and grows it; other processes read it and write labels."""

    def __init__(self, path: Path, *, max_bytes: int = 0, owner: bool = False) -> None:
        """Open the file, or make it. Raises OSError.

        max_bytes: the most bytes of rows; for the owner.
        """
        self._path, self._owner = path, owner
        self._capacity = max(1, max_bytes // ROW.itemsize)
        self._mapped: tuple[int, ...] = ()
        """The device, inode and size of the file as it is mapped."""
        self._rows: Rows = np.empty(0, ROW)
        if owner:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=True)
            self._grow(min(self._capacity, max(1, _FIRST_BYTES // ROW.itemsize)))
        else:
            self._map()

    def add(self, rows: Rows) -> None:
        """Append rows, over the oldest where the ring is full. For the owner."""
        rows = rows[-self._capacity :]
        written = self.written
        while len(self._rows) < min(self._capacity, written + len(rows)):
            self._grow(min(self._capacity, 2 * len(self._rows)))
        places = (written + np.arange(len(rows))) % len(self._rows)
        self._rows[places] = rows
        self._header[0] = written + len(rows)

    @property
    def written(self) -> int:
        """Rows written since the file was made."""
        return int(self._header[0])

    def held(self) -> Rows:
        """The rows that are held, in no order: a view, in which labels may be set."""
        if not self._owner:
            self._map()
        return self._rows[: min(self.written, len(self._rows))]

    def _grow(self, rows: int) -> None:
        with self._path.open("r+b") as file:
            had = max(0, os.fstat(file.fileno()).st_size - _HEADER) // ROW.itemsize
            if had < rows:
                allocate(file.fileno(), 0, _HEADER + rows * ROW.itemsize)
        self._map()

    def _map(self) -> None:
        """Map the whole file where it has grown since, or another has taken its place."""
        with self._path.open("r+b") as file:
            found = os.fstat(file.fileno())
            now, size = (found.st_dev, found.st_ino, found.st_size), found.st_size
            if now == self._mapped:
                return
            whole = mmap.mmap(file.fileno(), size)
        self._mapped = now
        self._header: NDArray[np.uint64] = np.frombuffer(whole, np.uint64, 1)
        count = (size - _HEADER) // ROW.itemsize
        self._rows = np.frombuffer(whole, ROW, count, _HEADER)
