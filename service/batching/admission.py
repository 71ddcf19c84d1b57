"""What may queue: so many rows and bytes, and fewer rows while a flood lasts."""

import time

from service.batching.work import Overloaded, RequestTooLarge

FLOOD_SECONDS = 1.0
"""A refusal is taken for the sign of a flood for so long: then those who are accepted wait no longer than need be."""


class Admission:
    """The limits of one queue. `waiting` is always the rows whose graph call has not begun."""

    def __init__(
        self,
        *,
        max_queued_rows: int,
        max_queued_bytes: int,
        max_waiting_rows: int | None = None,
        max_flood_rows: int | None = None,
    ) -> None:
        """A request may have max_queued_rows when nothing waits; with it at most max_waiting_rows may, in a flood max_flood_rows."""
        self.max_rows, self._max_bytes = max_queued_rows, max_queued_bytes
        most = (
            max_queued_rows if max_waiting_rows is None else min(max_waiting_rows, max_queued_rows)
        )
        self._max_waiting_rows = most
        self._max_flood_rows = most if max_flood_rows is None else min(max_flood_rows, most)
        self._flood_ends = 0.0
        """time.monotonic() until which fewer may wait: a while after somebody found the queue full."""

    def check(self, rows: int, size: int, *, waiting: int, queued_bytes: int) -> None:
        """Raise RequestTooLarge or Overloaded when so many more rows, of `size` bytes together, cannot be queued."""
        if rows > self.max_rows or size > self._max_bytes:
            raise RequestTooLarge(
                f"{rows} instances of {size} bytes together; at most {self.max_rows} and "
                f"{self._max_bytes} are taken at once"
            )
        if waiting + rows > self._max_flood_rows:
            self.check_room(rows, waiting=waiting)
        if queued_bytes + size > self._max_bytes:
            raise Overloaded(f"{queued_bytes} bytes are queued; at most {self._max_bytes}")

    def check_room(self, rows: int, *, waiting: int) -> None:
        """Raise Overloaded when so many rows more would be too many."""
        if waiting + rows <= self._max_flood_rows or (not waiting and rows <= self.max_rows):
            return
        now, most = time.monotonic(), self._max_waiting_rows
        if now < self._flood_ends:
            most = self._max_flood_rows
        if waiting + rows > most:
            if 2 * waiting > most:  # else it is this request that is large, not the crowd
                self._flood_ends = now + FLOOD_SECONDS
            raise Overloaded(f"{waiting} rows are queued; at most {most}")
