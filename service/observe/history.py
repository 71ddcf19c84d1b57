"""Keeps the counters of the last minutes, so that a page opened now shows what happened before."""

import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence

from service.process.repeated import Repeated

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
KEPT = 16
"""The number of readings: one a minute over fifteen minutes, both ends included."""
_SHOWN = (
    b"priordial_predictions_total{",
    b"priordial_group_predictions_total{",
    b"priordial_decisions_changed_total{",
    b"priordial_requests_total{",
    b"priordial_rejected_total{",
    b"priordial_request_seconds_bucket{",
    b"priordial_prior_revision{",
)
"""The counters that are kept: a page shows how fast each grows."""


class History:
    """A scrape for each of the last minutes. Every worker keeps its own, of all workers' counts."""

    def __init__(self, scrape: Callable[[], Sequence[bytes]]) -> None:
        """scrape: returns the blocks of a scrape in Prometheus' text; called in a thread."""
        self._scrape = scrape
        self._readings: deque[tuple[float, bytes]] = deque(maxlen=KEPT)
        self._taking = Repeated(
            self._take_if_room,
            name="history",
            every_seconds=EVERY_SECONDS,
            failure="the console will not show the last minute's traffic",
            at_once=True,
        )

    def start(self) -> None:
        """Take a reading now and every minute, until `stop`."""
        self._taking.start()

    def stop(self) -> None:
        """Take no more readings."""
        self._taking.stop()

    def take(self) -> None:
        """Take a reading."""
        kept = [
            line
            for block in self._scrape()
            for line in block.split(b"\n")
            if line.startswith(_SHOWN)
        ]
        self._readings.append((time.time(), zlib.compress(b"\n".join(kept), 1)))

    def readings(self, model: str) -> list[tuple[float, str]]:
        """The readings, oldest first: (seconds since 1970, the lines that name this model or no
        model).
        """
        label = f'model="{model}"'
        found = []
        for at, packed in list(self._readings):
            lines = zlib.decompress(packed).decode().split("\n")
            kept = [line for line in lines if label in line or 'model="' not in line]
            found.append((at, "\n".join(kept)))
        return found

    def _take_if_room(self) -> None:
        try:
            self.take()
        except OSError as error:
            logger.warning(
                "the console will not show the last minute's traffic: %s; make room there", error
            )
