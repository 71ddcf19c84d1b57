"""From a graph call to those who wait for it: counted, traced, cut into each request's rows, prior slots given back."""

import asyncio
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.batching.run import Outcome
from service.batching.work import (
    BatchFacts,
    Piece,
    TracedPart,
    Tracer,
    UnscorableRows,
    answered_rows,
    nan_rows,
    refused_rows,
)
from service.graph.prior_table import PriorTable
from service.graph.session import GraphOutputs

logger = logging.getLogger(__name__)


class Delivery:
    """Where the batches of one batcher end. On the event loop."""

    def __init__(
        self,
        table: PriorTable,
        *,
        on_batch: Callable[[BatchFacts], None],
        tracer: Tracer | None,
        name: str,
    ) -> None:
        self._table, self._on_batch, self._tracer, self._name = table, on_batch, tracer, name
        self.explorations = 0
        """Queued and running requests that are no traffic."""
        self._delivering = False
        self._afterwards: list[Callable[[], None]] = []

    def afterwards(self, answer: Callable[[], None]) -> None:
        """Call `answer` once everything that is being delivered has been; in the loop's next turn when nothing is.

        Not between the two turns: what the loop would read there becomes a second, smaller batch, and clients that are out of
        step with the others remain so.
        """
        if self._delivering:
            self._afterwards.append(answer)
        else:
            asyncio.get_running_loop().call_soon(answer)

    def deliver(self, outcomes: list[Outcome], seconds: float) -> None:
        """Give every piece what became of it, each batch counted before.

        Whoever is told may queue again at once, and thereby have another batch delivered within this one.
        """
        outermost, self._delivering = not self._delivering, True
        try:
            self._give(outcomes, seconds)
        finally:
            if outermost:
                self._delivering = False
                answers, self._afterwards = self._afterwards, []
                for answer in answers:
                    _call(answer)

    def _give(self, outcomes: list[Outcome], seconds: float) -> None:
        for pieces, result in outcomes:
            if self._tracer is not None:
                self._trace(self._tracer, pieces, seconds, failed=isinstance(result, Exception))
            if not isinstance(result, GraphOutputs):
                for piece in pieces:
                    self.drop(piece, result)
                continue
            waited = [p.entry.begun - p.entry.admitted for p in pieces if p.start == 0]
            rows = sum([piece.rows for piece in pieces])
            bad, start = nan_rows(result), 0
            answered = None
            if bad is not None or self.explorations:
                answered = answered_rows(pieces, bad)
            # before anybody has an answer: whoever has one finds it counted
            refused = () if bad is None else refused_rows(pieces, bad)
            facts = BatchFacts(result, rows, seconds, waited, answered, len(pieces), refused)
            self._count(facts)
            for piece in pieces:
                self._deliver(piece, result, start, seconds, bad)
                start += piece.rows

    def _count(self, facts: BatchFacts) -> None:
        """Record a batch; what cannot be recorded costs nobody an answer."""
        try:
            self._on_batch(facts)
        except Exception:
            logger.exception("a batch of %s was answered and could not be recorded", self._name)

    def _trace(self, tracer: Tracer, pieces: list[Piece], seconds: float, *, failed: bool) -> None:
        """The same, before the requests whose rows it held end."""
        parts = [
            TracedPart(p.entry.span, p.rows, None if p.start else p.entry.admitted) for p in pieces
        ]
        try:
            tracer.graph_call(parts, seconds, failed=failed)
        except Exception:
            logger.exception("a batch of %s could not be traced", self._name)

    def _deliver(
        self,
        piece: Piece,
        result: GraphOutputs,
        start: int,
        seconds: float,
        bad: NDArray[np.bool_] | None,
    ) -> None:
        """Give a piece its rows of the result, from `start` on; `bad` marks those that are NaN, if there are any."""
        entry, stop = piece.entry, start + piece.rows
        entry.inference_seconds += seconds
        if piece.is_part:
            entry.add_part(piece.start, result, start, stop)
        self._settle(piece)
        if entry.done():
            return
        if bad is not None and bad[start:stop].any():
            rows = np.flatnonzero(bad[start:stop]) + piece.start
            entry.fail(UnscorableRows(rows.tolist(), "the model's output is NaN"))
        elif entry.pieces_left == 0:
            try:
                entry.scored(result, start, stop)
            except Exception as error:  # noqa: BLE001 - it is this caller's alone, not the batch's
                entry.fail(error)

    def drop(self, piece: Piece, reason: Exception) -> None:
        """Tell a piece's caller why it is not scored."""
        if not piece.entry.done():
            piece.entry.fail(reason)
        self._settle(piece)

    def _settle(self, piece: Piece) -> None:
        """Count a piece off; with the last one the request's prior slots are given back."""
        if piece.settled:
            return
        piece.settled = True
        entry = piece.entry
        entry.pieces_left -= 1
        if entry.pieces_left == 0:
            work = entry.work
            self.explorations -= not work.is_traffic
            for slot in work.held_slots:
                self._table.release(slot)


def _call(answer: Callable[[], None]) -> None:
    """What answering breaks is not the batcher's failure."""
    try:
        answer()
    except Exception:
        logger.exception("answering the requests of a batch failed")
