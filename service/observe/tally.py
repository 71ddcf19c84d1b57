"""Numbers that survive their process: named blocks of float64 in a memory-mapped file, one file a worker.

A worker adds to its own file without a lock or a system call; whoever is scraped sums the files of all workers, those that
were killed included. A worker that takes the place of another goes on in its file. `cells.jsonl` beside the data says what
each block is.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Cells: TypeAlias = NDArray[np.float64]
Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A family's name and its sorted labels."""

_CHUNK_CELLS = 8 * mmap.PAGESIZE // 8


class Tally:
    """The numbers of one worker, in a folder of its own; those that are there already are added to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data = (folder / "cells.bin").open("a+b")
        self._index = (folder / "cells.jsonl").open("a+", encoding="utf-8")
        self._blocks: dict[Series, Cells] = {}
        self._size_bytes = 0
        self._free: Cells = np.empty(0)
        self._free_offset = 0
        self._take_over()

    def cells(self, family: str, labels: Mapping[str, str], length: int = 1) -> Cells:
        """The block of a series, float64 [length], zeros when it is new. Add to it in place."""
        series = (family, tuple(sorted(labels.items())))
        found = self._blocks.get(series)
        if found is None:
            found, offset = self._allocate(length)
            line = {"family": family, "labels": dict(series[1]), "offset": offset, "length": length}
            self._index.write(json.dumps(line) + "\n")
            self._index.flush()
            self._blocks[series] = found
        return found

    def close(self) -> None:
        """Close the files; the numbers stay on disk."""
        self._index.close()
        self._data.close()

    def _take_over(self) -> None:
        """Go on with the blocks of a worker that ended here, and drop the line that it did not finish."""
        self._size_bytes = self._data.seek(0, 2)
        self._index.seek(0)
        text = self._index.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._index.truncate(len(whole.encode()))
        if not whole:
            return
        cells = np.frombuffer(mmap.mmap(self._data.fileno(), self._size_bytes), np.float64)
        for series, start, stop in _blocks(whole.splitlines()):
            self._blocks[series] = cells[start // 8 : stop // 8]

    def _allocate(self, length: int) -> tuple[Cells, int]:
        if length > len(self._free):
            self._extend(max(length, _CHUNK_CELLS))
        block, self._free = self._free[:length], self._free[length:]
        offset = self._free_offset
        self._free_offset += 8 * length
        return block, offset

    def _extend(self, length: int) -> None:
        size = -(-8 * length // mmap.PAGESIZE) * mmap.PAGESIZE
        self._data.truncate(self._size_bytes + size)
        view = mmap.mmap(self._data.fileno(), size, offset=self._size_bytes)
        self._free = np.frombuffer(view, np.float64)
        self._free_offset = self._size_bytes
        self._size_bytes += size


class TallyReader:
    """Sums over several workers' folders. What a folder holds is read once; after that only what was added to it."""

    def __init__(self) -> None:
        self._folders: dict[Path, _Folder] = {}

    def merged(self, folders: Iterable[Path]) -> dict[Series, Cells]:
        """The sum of each series as it is now."""
        wanted = list(folders)
        self._folders = {path: self._folders.get(path) or _Folder(path) for path in wanted}
        total: dict[Series, Cells] = {}
        for path in wanted:
            for series, values in self._folders[path].read():
                total[series] = total[series] + values if series in total else values
        return total


class _Folder:
    """One worker's folder, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks: list[tuple[Series, int, int]] = []
        self._read_bytes = 0
        self._data: NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self) -> Iterator[tuple[Series, Cells]]:
        """Every series; a line that is still being written is left out."""
        try:
            self._look_again()
        except (OSError, ValueError):  # a folder that appears or goes while it is read
            return
        for series, start, stop in self._blocks:
            if stop <= len(self._data):
                yield series, np.frombuffer(self._data[start:stop].tobytes(), np.float64)

    def _look_again(self) -> None:
        index = self._path / "cells.jsonl"
        if index.stat().st_size < self._read_bytes:  # an unfinished line was dropped
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


def _blocks(lines: Iterable[str]) -> Iterator[tuple[Series, int, int]]:
    """(series, first byte, byte after the last) of each line of cells.jsonl."""
    for line in lines:
        item = json.loads(line)
        series = (item["family"], tuple(sorted(item["labels"].items())))
        yield series, item["offset"], item["offset"] + 8 * item["length"]
