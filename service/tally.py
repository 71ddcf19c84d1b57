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


def read(folder: Path) -> Iterator[tuple[Series, Cells]]:
    """Every series of one worker's folder as it is now. A line that is still being written is left out."""
    try:
        text = (folder / "cells.jsonl").read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        data = np.memmap(folder / "cells.bin", np.uint8, "r") if lines else np.empty(0, np.uint8)
    except (OSError, ValueError):  # a folder that appears or goes while it is read
        return
    for series, start, stop in _blocks(lines):
        if stop > len(data):
            return
        yield series, np.frombuffer(data[start:stop].tobytes(), np.float64)


def _blocks(lines: Iterable[str]) -> Iterator[tuple[Series, int, int]]:
    """(series, first byte, byte after the last) of each line of cells.jsonl."""
    for line in lines:
        item = json.loads(line)
        series = (item["family"], tuple(sorted(item["labels"].items())))
        yield series, item["offset"], item["offset"] + 8 * item["length"]


def merged(folders: Iterable[Path]) -> dict[Series, Cells]:
    """The sums over several workers' folders."""
    total: dict[Series, Cells] = {}
    for folder in folders:
        for series, values in read(folder):
            total[series] = total[series] + values if series in total else values
    return total
