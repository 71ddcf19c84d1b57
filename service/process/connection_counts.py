"""The number of connections of each of the processes that share a port."""

import logging
import mmap
from pathlib import Path

from service.process.machine import allocate

logger = logging.getLogger(__name__)

_ABSENT = 2**31 - 1


class ConnectionCounts:
    """One number per slot, in a file that all workers map into memory."""

    def __init__(self, folder: Path, slots: int) -> None:
        """Map the file `connections` of a folder, with room for `slots` numbers.

        Raises OSError if the file cannot be written, for instance on a full disk.
        """
        size = 4 * slots
        with (folder / "connections").open("a+b") as file:
            there = file.seek(0, 2)
            if there < size:
                allocate(file.fileno(), there, size - there)
            self._counts = memoryview(mmap.mmap(file.fileno(), size)).cast("i")

    def set(self, slot: int, connections: int) -> None:
        """Publish the number of connections of a slot."""
        self._counts[slot] = connections

    def absent(self, slot: int) -> None:
        """Record that no worker serves in this slot."""
        self._counts[slot] = _ABSENT

    def fewest(self) -> int:
        """Return the smallest number of connections of any serving worker."""
        return min(self._counts)


def open_counts(folder: Path, slots: int) -> ConnectionCounts | None:
    """Open the counts in a run folder, for a number of slots.

    If the file cannot be written, logs a warning and returns None. Connections are then shared
    unevenly between the workers.
    """
    try:
        return ConnectionCounts(folder, slots)
    except OSError as error:
        logger.warning(
            "connections are spread unevenly over the workers, because %s cannot be written: %s; "
            "make room there and restart",
            folder,
            error.strerror or error,
        )
        return None
