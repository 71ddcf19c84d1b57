"""How many connections each of the processes that share a port has."""

import mmap
from pathlib import Path

_ABSENT = 2**31 - 1


class ConnectionCounts:
    """Numbers in a file that all of the processes map; one a slot."""

    def __init__(self, folder: Path, slots: int) -> None:
        with (folder / "connections").open("a+b") as file:
            file.truncate(4 * slots)
            self._counts = memoryview(mmap.mmap(file.fileno(), 4 * slots)).cast("i")

    def set(self, slot: int, connections: int) -> None:
        """Tell the others."""
        self._counts[slot] = connections

    def absent(self, slot: int) -> None:
        """Nobody serves in this slot."""
        self._counts[slot] = _ABSENT

    def fewest(self) -> int:
        """The smallest count of a process that serves."""
        return min(self._counts)
