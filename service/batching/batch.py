"""A batch before and while it runs: it takes further pieces until a thread begins it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.batching.work import Piece


class Batch:
    """Pieces of one input shape. The event loop fills it."""

    __slots__ = ("_begun", "_lock", "pieces", "rows", "shape")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        """Of one row, once there is one."""
        self._lock = threading.Lock()
        self._begun = False

    @contextmanager
    def open(self) -> Iterator[bool]:
        """Whether it still takes pieces, and until the end of the block remains so."""
        with self._lock:
            yield not self._begun

    def begin(self) -> list[Piece]:
        """Its pieces, to which none is added from now on. In the thread that runs them."""
        with self._lock:
            self._begun = True
            return self.pieces
