"""Counters and histograms that outlive their process: float64 cells in one mapped file per worker.

A worker adds to its own file without a lock or a system call. The worker that answers a scrape sums
the files of all workers, including those of killed ones. A worker that replaces another continues
in its file. `cells.jsonl`, beside the data, names each block. Disk space is allocated before it is
mapped: a write to a mapping without disk space would kill the process.
"""

import json
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from io import FileIO
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from service.observe.families import HISTOGRAMS
from service.process.machine import NO_FOLDER, allocate

Cells: TypeAlias = NDArray[np.float64]
Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A family's name and its sorted labels."""

_CHUNK_CELLS = 8 * mmap.PAGESIZE // 8
_FEW = 32
"""Up to this many values, counting one by one is faster than a NumPy call."""


class Tally:
    """The numbers of one worker. It adds to blocks that a previous worker left in the folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if needed. If it cannot be written, the numbers are kept in memory."""
        self._fault: str | None = None
        self._folder = folder
        self._data: FileIO | None = None
        self._index: FileIO | None = None
        self._blocks: dict[Series, Cells] = {}
        self._in_memory: dict[Series, Cells] = {}
        self._size_bytes = 0
        self._free: Cells = np.empty(0)
        self._free_offset = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._data = (folder / "cells.bin").open("a+b", buffering=0)
            self._index = (folder / "cells.jsonl").open("a+b", buffering=0)
            self._take_over(self._data, self._index)
        except OSError as error:
            self._note(error)
            self.close()

    def cells(self, family: str, labels: Mapping[str, str], length: int = 1) -> Cells:
        """Return the block of a series, float64 [length], initially zeros. Add to it in place."""
        series = (family, tuple(sorted(labels.items())))
        found = self._blocks.get(series)
        if found is None:
            found = self._blocks[series] = self._new_block(series, length)
        return found

    @property
    def fault(self) -> str | None:
        """Why some numbers are in memory only, where other workers cannot see them; None: all are
        in files.
        """
        if self._deleted():
            return (
                f"metrics are kept in memory only, because their files in {self._folder} have been "
                "deleted; let no cleaner of temporary files delete them, and restart"
            )
        return self._fault

    def in_memory(self) -> list[tuple[Series, Cells]]:
        """Return the blocks that are in memory only."""
        return list((self._blocks if self._deleted() else self._in_memory).items())

    def _deleted(self) -> bool:
        """Whether the files have no name any more, as after a cleaner of /tmp."""
        data = self._data
        try:
            return data is not None and os.fstat(data.fileno()).st_nlink == 0
        except ValueError:  # closed meanwhile
            return False

    def close(self) -> None:
        """Close the files; the numbers stay on disk."""
        for file in (self._index, self._data):
            if file is not None:
                file.close()
        self._index = self._data = None

    def _new_block(self, series: Series, length: int) -> Cells:
        if self._data is not None and self._index is not None:
            try:
                return self._write_block(self._data, self._index, series, length)
            except OSError as error:
                self._note(error)
        block = self._in_memory[series] = np.zeros(length)
        return block

    def _note(self, error: OSError) -> None:
        self._fault = (
            f"metrics are kept in memory only, because {self._folder} cannot be written: "
            f"{error.strerror or error}; make room there, or set TMPDIR, and restart"
        )
        if NO_FOLDER in self._folder.parents:
            self._fault = (
                "metrics are kept in memory only, because no folder for them can be made; set "
                "TMPDIR to a folder that can be written, and restart"
            )

    def _take_over(self, data: FileIO, index: FileIO) -> None:
        """Adopt the blocks of the previous worker, and drop a line of the index that it did not
        finish.
        """
        self._size_bytes = data.seek(0, os.SEEK_END)
        index.seek(0)
        text = index.read()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            index.truncate(len(whole))
        if not whole:
            return
        cells = np.frombuffer(mmap.mmap(data.fileno(), self._size_bytes), np.float64)
        for series, start, stop in _blocks(whole.decode().splitlines()):
            self._blocks[series] = cells[start // 8 : stop // 8]

    def _write_block(self, data: FileIO, index: FileIO, series: Series, length: int) -> Cells:
        if length > len(self._free):
            self._extend(data, max(length, _CHUNK_CELLS))
        _append_line(
            index,
            {
                "family": series[0],
                "labels": dict(series[1]),
                "offset": self._free_offset,
                "length": length,
            },
        )
        block, self._free = self._free[:length], self._free[length:]
        self._free_offset += 8 * length
        return block

    def _extend(self, data: FileIO, length: int) -> None:
        size = -(-8 * length // mmap.PAGESIZE) * mmap.PAGESIZE
        allocate(data.fileno(), self._size_bytes, size)
        view = mmap.mmap(data.fileno(), size, offset=self._size_bytes)
        self._free = np.frombuffer(view, np.float64)
        self._free_offset = self._size_bytes
        self._size_bytes += size


class TallyReader:
    """Sums the folders of several workers. Each call reads only what was added since the
    last one.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, _Folder] = {}

    def merged(
        self, folders: Iterable[Path], *, in_memory: Iterable[tuple[Series, Cells]] = ()
    ) -> dict[Series, Cells]:
        """Return the current sum of each series. in_memory: blocks of this process that no file
        holds.
        """
        wanted = list(folders)
        self._folders = {path: self._folders.get(path) or _Folder(path) for path in wanted}
        total: dict[Series, Cells] = {}
        for path in wanted:
            _add(total, self._folders[path].read())
        _add(total, ((series, cells.copy()) for series, cells in in_memory))
        return total


class Histogram:
    """A histogram in cells of a tally: one cell per bucket (the last is +Inf), then the sum."""

    def __init__(self, cells: Cells, bounds: Sequence[float]) -> None:
        self._cells, self._bounds, self._edges = cells, bounds, np.array(bounds)
        self._one = one_by_one(cells)

    @classmethod
    def of(cls, tally: Tally, family: str, labels: dict[str, str]) -> "Histogram":
        """Return the histogram of a family in HISTOGRAMS."""
        bounds = HISTOGRAMS[family][1]
        return cls(tally.cells(family, labels, len(bounds) + 2), bounds)

    def observe(self, value: float, times: int = 1) -> int:
        """Count a value and return the number of its bucket."""
        cells = self._one
        bucket = bisect_left(self._bounds, value)
        cells[bucket] += times
        cells[-1] += value * times
        return bucket

    def observe_all(self, values: Sequence[float] | NDArray[np.floating]) -> float:
        """Count several values and return their sum."""
        if len(values) > _FEW:
            return self.observe_array(np.array(values))
        cells, bounds, total = self._one, self._bounds, sum(values)
        for value in values:
            cells[bisect_left(bounds, value)] += 1
        cells[-1] += total
        return total

    def observe_array(self, values: NDArray[np.floating]) -> float:
        """Count values [n] and return their sum."""
        total = float(values.sum(dtype=np.float64))
        buckets = np.searchsorted(self._edges, values)
        self._cells[:-1] += np.bincount(buckets, minlength=len(self._bounds) + 1)
        self._cells[-1] += total
        return total


def one_by_one(cells: Cells) -> MutableSequence[float]:
    """Return a view of the cells for access to single numbers, which is twice as fast as
    the array.
    """
    return cast(MutableSequence[float], cells.data)


class _Folder:
    """One worker's folder, and how much of it has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks: list[tuple[Series, int, int]] = []
        self._read_bytes = 0
        self._file: tuple[int, int] | None = None
        """Device and inode of the data: no other file can have them while it is mapped."""
        self._data: NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self) -> Iterator[tuple[Series, Cells]]:
        """Yield every series, except one whose line in the index is still being written."""
        try:
            self._read_on()
        except FileNotFoundError:  # the folder appears or is removed while it is read
            self._blocks, self._read_bytes = [], 0
        except (
            OSError,
            ValueError,
        ):  # for example, no descriptor is free: show what is already mapped
            pass
        for series, start, stop in self._blocks:
            if stop <= len(self._data):
                yield series, np.frombuffer(self._data[start:stop].tobytes(), np.float64)

    def _read_on(self) -> None:
        index, data = self._path / "cells.jsonl", (self._path / "cells.bin").stat()
        if self._file != (data.st_dev, data.st_ino):  # the folder was removed and made again
            self._file = data.st_dev, data.st_ino
            self._blocks, self._read_bytes, self._data = [], 0, np.empty(0, np.uint8)
        if index.stat().st_size < self._read_bytes:  # an unfinished line was removed
            self._blocks, self._read_bytes = [], 0
        with index.open("rb") as file:
            file.seek(self._read_bytes)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._blocks += _blocks(whole.decode().splitlines())
        self._read_bytes += len(whole)
        needed = max((stop for _, _, stop in self._blocks), default=0)
        if needed > len(self._data):
            self._data = np.memmap(self._path / "cells.bin", np.uint8, "r")


def _add(total: dict[Series, Cells], found: Iterable[tuple[Series, Cells]]) -> None:
    for series, values in found:
        total[series] = total[series] + values if series in total else values


def _append_line(index: FileIO, line: Mapping[str, object]) -> None:
    """Append a whole line, or nothing if that fails. Raises OSError."""
    text = json.dumps(line).encode() + b"\n"
    size = index.seek(0, os.SEEK_END)
    try:
        written = index.write(text)
    except OSError:
        index.truncate(size)
        raise
    if written != len(text):  # the disk became full within the line
        index.truncate(size)
        raise OSError(None, "no space left")


def _blocks(lines: Iterable[str]) -> Iterator[tuple[Series, int, int]]:
    """Yield (series, first byte, byte after the last) of each line of cells.jsonl."""
    for line in lines:
        item = json.loads(line)
        series = (item["family"], tuple(sorted(item["labels"].items())))
        yield series, item["offset"], item["offset"] + 8 * item["length"]
