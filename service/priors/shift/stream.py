"""Rows of one model version on their way to its tracker: bounded, and never in a request's way."""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_source_prior
from service.contract.bundle import Bundle
from service.contract.tracking import OtherState, PriorTracker, Tracked

MAX_WAITING_ROWS = 256
"""Rows that are tracked between two calls of `learn`; others are neither tracked nor counted."""
FULL_PRICE_CLASSES = 1024
"""With more classes a row counts as several, so that the time for tracking stays the same."""


class Stream:
    """Learns from a bounded sample of a model version's rows.

    `credit` and `add` are for the batcher and cost less than a microsecond; `learn` is for a
    thread that calls it a few times a second. So tracking costs a fixed amount of time, however
    many rows are served.
    """

    def __init__(self, bundle: Bundle) -> None:
        log_source = source_of(bundle)
        classes = len(bundle.class_names)
        self._price = max(1.0, classes / FULL_PRICE_CLASSES)
        self.credit = 0.0 if log_source is None else float(MAX_WAITING_ROWS)
        """Rows are taken while it is above 0."""
        self._tracker = (
            None
            if log_source is None
            else PriorTracker(
                temperature=bundle.temperature, log_source=log_source, fixed=_fixed(bundle)
            )
        )
        self._lock = threading.Lock()
        self._waiting: deque[NDArray[np.float32]] = deque()

    @property
    def follows(self) -> bool:
        """Whether the prior can be followed: the model's source prior is known."""
        return self._tracker is not None

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take the raw logits [n, C] of a batch while there is credit.

        A batch is taken whole, up to MAX_WAITING_ROWS, as its logits were fetched for it.
        """
        if self.credit > 0 and len(logits):
            self._waiting.append(logits[:MAX_WAITING_ROWS])
            self.credit -= len(logits) * self._price

    def learn(self) -> None:
        """Update the tracker with the rows that wait, and give credit for more."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if self._tracker is not None:
            self.credit = min(self.credit, 0.0) + MAX_WAITING_ROWS
        if taken and self._tracker is not None:
            with self._lock:
                self._tracker.update(np.concatenate(taken))

    def now(self) -> Tracked | None:
        """The estimate now; None where nothing can be followed."""
        if self._tracker is None:
            return None
        with self._lock:
            return self._tracker.estimate()

    def state(self) -> bytes | None:
        """What has been learnt, to be kept; None before the first row."""
        if self._tracker is None:
            return None
        with self._lock:
            return self._tracker.state() if self._tracker.rows else None

    def restore(self, state: bytes) -> bool:
        """Go on from a kept state, unless rows have come already or it does not fit."""
        if self._tracker is None:
            return False
        with self._lock:
            if self._tracker.rows:
                return False
            try:
                self._tracker.restore(state)
            except OtherState:
                return False
        return True


def estimate_of(bundle: Bundle, state: bytes) -> Tracked | None:
    """The estimate in a state that another worker has kept; None where it does not fit."""
    other = Stream(bundle)
    return other.now() if other.restore(state) else None


def source_of(bundle: Bundle) -> Vector | None:
    """[C] the log source prior of a model: as measured, else as training implies it."""
    if bundle.calibrated_log_source is not None:
        return bundle.calibrated_log_source
    if bundle.class_counts is not None:
        return log_source_prior(bundle.class_counts, loss_tau=bundle.loss_tau)
    return np.zeros(len(bundle.class_names)) if bundle.loss_tau == 1 else None


def _fixed(bundle: Bundle) -> NDArray[np.float64]:
    """[F, C] priors that traffic is likely to return to: uniform, and that of training."""
    uniform = np.full(len(bundle.class_names), 1 / len(bundle.class_names))
    if bundle.class_counts is None:
        return uniform[None]
    return np.stack([uniform, np.asarray(bundle.class_counts, np.float64)])
