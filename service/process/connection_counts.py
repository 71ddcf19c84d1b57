"""The number of connections of each of the processes that share a port."""

import logging
import mmap
import time
from pathlib import Path

from service.process.machine import NO_FOLDER, allocate

logger = logging.getLogger(__name__)

_ABSENT = 2**62
_STUCK_SECONDS = 0.5
"""A worker publishes ten times a second, so one that was silent for longer hangs or is frozen."""


class ConnectionCounts:
    """Two numbers per slot, in a file that all workers map into memory.

    They are the number of connections, and when it was published, in ns of the monotonic clock.
    """

    def __init__(self, folder: Path, slots: int) -> None:
        """Map the file `connections` of a folder, with room for `slots` workers.

        Raises OSError if the file cannot be written, for instance on a full disk.
        """
        size = 16 * slots
        with (folder / "connections").open("a+b") as file:
            there = file.seek(0, 2)
            if there < size:
                allocate(file.fileno(), there, size - there)
            self._counts = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def set(self, slot: int, connections: int) -> None:
        """Publish the number of connections of a slot."""
        self._counts[2 * slot] = connections
        self._counts[2 * slot + 1] = time.monotonic_ns()

    def absent(self, slot: int) -> None:
        """Record that no worker serves in this slot."""
        self._counts[2 * slot] = _ABSENT

    def fewest(self) -> int:
        """Return the smallest number of connections of any worker that serves and is not stuck.

        A very large number if there is none.
        """
        since = time.monotonic_ns() - int(_STUCK_SECONDS * 1e9)
        numbers = self._counts.tolist()
        counts = zip(numbers[::2], numbers[1::2], strict=True)
        return min((count for count, at in counts if at >= since), default=_ABSENT)


def open_counts(folder: Path, slots: int) -> ConnectionCounts | None:
    """Open the counts in a run folder, for a number of slots.

    If the file cannot be written, logs a warning and returns None. Connections are then shared
    unevenly between the workers. NO_FOLDER needs no warning: one was logged when no folder could be
    made.
    """
    if folder == NO_FOLDER:
        return None
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
