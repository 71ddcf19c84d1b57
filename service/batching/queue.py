"""The rows that wait for one model, first come first served, cut into pieces that fit a batch."""

import time
from collections import deque
from typing import TypeAlias

from service.batching.batch import Batch
from service.batching.work import Entry, Piece

Dropped: TypeAlias = tuple[Piece, Exception]
"""What nobody waits for any more, and why."""


class PieceQueue:
    """For the event loop only."""

    def __init__(self, max_batch_rows: int) -> None:
        self._max_batch_rows = max_batch_rows
        self.pieces: deque[Piece] = deque()
        self.rows = self.bytes = 0
        """Of all pieces together."""

    def add(self, entry: Entry, rows: int, size: int) -> None:
        """Queue a request of so many rows and bytes at the end, in as many pieces as it takes."""
        limit = self._max_batch_rows
        entry.bytes_per_row = size // rows
        if rows <= limit:
            entry.pieces_left = 1
            self.pieces.append(Piece(entry, 0, rows))
        else:
            entry.pieces_left = -(-rows // limit)
            for start in range(0, rows, limit):
                self.pieces.append(Piece(entry, start, min(limit, rows - start)))
        self.rows += rows
        self.bytes += entry.bytes_per_row * rows

    def fill(self, batch: Batch, dropped: list[Dropped]) -> None:
        """Move to a batch what it takes of the first pieces; those that nobody waits for any more go to `dropped`."""
        queue, limit = self.pieces, self._max_batch_rows
        pieces, rows, shape = batch.pieces, batch.rows, batch.shape
        now = time.monotonic()
        while queue:
            piece = queue[0]
            entry, taken = piece.entry, piece.rows
            reason = entry.why_drop(now)
            if reason is None:
                own_shape = entry.work.inputs.shape[1:]
                if pieces and (rows + taken > limit or own_shape != shape):
                    break
                shape = own_shape
            queue.popleft()
            self.rows -= taken
            self.bytes -= entry.bytes_per_row * taken
            if reason is not None:
                dropped.append((piece, reason))
                continue
            entry.begun = entry.begun or now
            pieces.append(piece)
            rows += taken
        batch.rows, batch.shape = rows, shape

    def take_all(self) -> list[Piece]:
        """All pieces; none are left."""
        pieces = list(self.pieces)
        self.pieces.clear()
        self.rows = self.bytes = 0
        return pieces
