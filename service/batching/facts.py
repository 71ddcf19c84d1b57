"""What a batcher reports: facts about each graph call, for metrics and traces."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching.queue import Piece
from service.graph.session import GraphOutputs


class BatchFacts(NamedTuple):
    """Facts about one graph call, for metrics."""

    outputs: GraphOutputs
    rows: int
    seconds: float
    queue_seconds: Sequence[float] = ()
    """Waiting time of each request whose first rows are in the batch."""
    answered: NDArray[np.bool_] | None = None
    """[rows] whether a row answers traffic; rows of refused requests and explorations do not.

    None: all rows do.
    """
    requests: int = 1
    """Requests that have rows in the batch."""
    refused: Sequence[int] = ()
    """For each request that fails because the model's output has NaN: its rows in the batch.
    """
    taus: Sequence[float] | NDArray[np.floating] = ()
    """The tau of each row that answers traffic."""
    pieces: Sequence[Piece] = ()
    """The rows of requests that the batch has, in order."""


class Record(Protocol):
    """Where a batcher reports its work: the metrics of a model version and its recent logits."""

    def batch(self, facts: BatchFacts) -> None:
        """Record a graph call, before any of its requests is answered."""

    def refused(self, error: Exception) -> None:
        """Count a request that was not scored, by the reason."""

    def wants_logits(self) -> bool:
        """Whether the next batch should also return its logits. Called in the thread that
        runs it.
        """
        ...


class TracedPart(NamedTuple):
    """Rows of a request in a graph call, for traces.

    admitted: time.monotonic() when the request was queued, if these are its first rows.
    """

    span: Any
    rows: int
    admitted: float | None


class Tracer(Protocol):
    """Records each request and each graph call, when traces are on."""

    def current(self) -> Any:
        """The span of the current request, or None."""

    def graph_call(self, parts: Sequence[TracedPart], seconds: float, *, failed: bool) -> None:
        """Record a graph call that has just ended, before its requests are answered."""
