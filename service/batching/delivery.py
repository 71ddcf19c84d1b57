"""Delivers a finished graph call: records the batch, cuts it into requests, and calls their
replies.
"""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batching.facts import BatchFacts, Record, TracedPart, Tracer
from service.batching.queue import Dropped, Entry, Piece, Reply
from service.batching.run import Outcome
from service.batching.work import UnscorableRows
from service.graph.prior_table import PriorTable
from service.graph.session import GraphOutputs

logger = logging.getLogger(__name__)

_NAN = "the model's output is NaN; check the row for values unlike those of training"


class Delivery:
    """Receives the finished batches of one batcher. Used from the event loop only."""

    def __init__(
        self,
        table: PriorTable,
        *,
        record: Record,
        tracer: Tracer | None,
        name: str,
        answered: Callable[[list[Entry]], None] | None = None,
    ) -> None:
        """Deliver nothing yet.

        table: holds the priors of queued rows. record: where batches and refusals are counted.
        tracer: records graph calls; None without traces. name: the model and version, for
        messages. answered: called with finished entries just before their replies.
        """
        self._answered = answered
        self._table, self._record, self._tracer, self._name = table, record, tracer, name
        self.unrecorded: list[BatchFacts] = []
        """Batches of one request that wait for `record`."""
        self.explorations = 0
        """The number of queued and running requests that do not count as traffic."""

    def finished(self, outcomes: list[Outcome], seconds: float) -> list[Entry]:
        """Cut batches that ran into requests, and record them.

        Returns the entries that are finished, for `reply`. A batch of one request is not recorded
        yet: it is kept in `unrecorded`.
        """
        done: list[Entry] = []
        for pieces, result in outcomes:
            if self._tracer is not None:
                self._trace(self._tracer, pieces, seconds, failed=isinstance(result, Exception))
            if isinstance(result, GraphOutputs):
                self._cut(pieces, result, seconds, done)
            else:
                for piece in pieces:
                    self._fail(piece, result, done)
        return done

    def record(self, *batches: BatchFacts) -> None:
        """Record the batches in `unrecorded`, then these. If that fails, only the metrics lack
        them.
        """
        unrecorded, self.unrecorded = self.unrecorded, []
        for facts in (*unrecorded, *batches):
            try:
                self._record.batch(facts)
            except Exception:
                logger.exception(
                    "a batch of %s was answered but is missing in the metrics; report this with "
                    "the traceback",
                    self._name,
                )

    def dropped(self, dropped: Iterable[Dropped]) -> list[Entry]:
        """Give an error to requests whose pieces are not scored. Returns the finished entries, for
        `reply`.
        """
        done: list[Entry] = []
        for piece, reason in dropped:
            self._fail(piece, reason, done)
        return done

    def reply(self, done: list[Entry]) -> None:
        """Call the replies of finished entries, once for all entries that have the same reply."""
        groups: dict[Reply, list[Entry]] = {}
        for entry in done:
            if entry.timer is not None:
                entry.timer.cancel()
            if entry.error is not None:
                self.refused(entry.error)
            group = groups.get(entry.reply)
            if group is None:
                groups[entry.reply] = [entry]
            else:
                group.append(entry)
        if self._answered is not None:
            try:
                self._answered(done)
            except Exception:
                logger.exception(
                    "answers of %s could not be kept, so feedback on them will be refused; report "
                    "this with the traceback",
                    self._name,
                )
        for reply, entries in groups.items():
            try:
                reply(entries)
            except Exception:
                logger.exception(
                    "requests of %s were scored but could not be answered; report this with the "
                    "traceback",
                    self._name,
                )

    def refused(self, error: Exception) -> None:
        """Count a request that is not scored. If counting fails, the request still gets
        its answer.
        """
        try:
            self._record.refused(error)
        except Exception:
            logger.exception(
                "a refused request of %s is missing in the metrics; report this with the traceback",
                self._name,
            )

    def _cut(
        self, pieces: list[Piece], result: GraphOutputs, seconds: float, done: list[Entry]
    ) -> None:
        """Record a graph call and give each piece its rows of the result."""
        bad = _rows_of_nan(result)
        facts = self._facts(pieces, result, seconds, bad)
        if len(pieces) == 1:
            self.unrecorded.append(facts)
        else:
            self.record(facts)
        start = 0
        for piece in pieces:
            entry, stop = piece.entry, start + piece.rows
            entry.inference_seconds += seconds
            if piece.rows != len(entry.work.inputs):
                entry.add_part(piece.start, result, start, stop)
            self._settle(piece)
            if entry.error is None:
                if bad is not None and bad[start:stop].any():
                    rows = np.flatnonzero(bad[start:stop]) + piece.start
                    entry.error = UnscorableRows(rows.tolist(), _NAN)
                    done.append(entry)
                elif entry.pieces_left == 0:
                    try:
                        entry.scored(result, start, stop)
                    except Exception as error:  # noqa: BLE001 - only this request fails, not its batch
                        entry.error = error
                    done.append(entry)
            start = stop

    def _facts(
        self,
        pieces: list[Piece],
        result: GraphOutputs,
        seconds: float,
        bad: NDArray[np.bool_] | None,
    ) -> BatchFacts:
        waited: list[float] = []
        taus: list[Any] = []
        rows = 0
        for piece in pieces:
            entry, rows = piece.entry, rows + piece.rows
            taus.append(entry.work.tau)
            if piece.start == 0:
                waited.append(entry.begun - entry.admitted)
        all_answered = bad is None and not self.explorations
        if all_answered and len(pieces) == rows and np.ndarray not in map(type, taus):
            return BatchFacts(result, rows, seconds, waited, None, rows, (), taus, pieces)
        answered = None
        if bad is not None or self.explorations:
            answered = _answered_rows(pieces, bad)
        refused = () if bad is None else _refused_rows(pieces, bad)
        by_row = _taus_of_rows(pieces)
        return BatchFacts(
            result,
            rows,
            seconds,
            waited,
            answered,
            len(pieces),
            refused,
            by_row if answered is None else by_row[answered],
            pieces,
        )

    def _trace(self, tracer: Tracer, pieces: list[Piece], seconds: float, *, failed: bool) -> None:
        """Trace a batch before the spans of its requests end."""
        parts = [
            TracedPart(p.entry.span, p.rows, None if p.start else p.entry.admitted) for p in pieces
        ]
        try:
            tracer.graph_call(parts, seconds, failed=failed)
        except Exception:
            logger.exception(
                "a batch of %s is missing in the traces; report this with the traceback",
                self._name,
            )

    def _fail(self, piece: Piece, reason: Exception, done: list[Entry]) -> None:
        """End a request whose piece is not scored."""
        entry = piece.entry
        if not entry.done():
            entry.error = reason
            done.append(entry)
        self._settle(piece)

    def _settle(self, piece: Piece) -> None:
        """Note that a piece is finished; after the last one, release the request's table slots."""
        if piece.settled:
            return
        piece.settled = True
        entry = piece.entry
        entry.pieces_left -= 1
        if entry.pieces_left == 0:
            for slot in entry.work.held_slots:
                self._table.release(slot)
            if not entry.work.is_traffic:
                self.explorations -= 1

    def release(self, entry: Entry) -> None:
        """Release the slots of the prior table that a request holds."""
        for slot in entry.work.held_slots:
            self._table.release(slot)


def _refused_rows(pieces: list[Piece], bad: NDArray[np.bool_]) -> list[int]:
    """`BatchFacts.refused` of a batch. A request that already has an error is not counted again."""
    refused: list[int] = []
    start = 0
    for piece in pieces:
        if bad[start : start + piece.rows].any() and not piece.entry.done():
            refused.append(piece.rows)
        start += piece.rows
    return refused


def _rows_of_nan(result: GraphOutputs) -> NDArray[np.bool_] | None:
    """Which rows [n] have a probability that is NaN; None when none has."""
    best, unadjusted = result.top_probability[:, 0], result.unadjusted_probability
    if len(best) == 1 and not (math.isnan(best.item()) or math.isnan(unadjusted.item())):
        return None  # as below, without a call of NumPy: a request alone in its batch
    is_nan: NDArray[np.bool_] = np.isnan(best)
    is_nan |= np.isnan(unadjusted)
    return is_nan if is_nan.any() else None


def _answered_rows(pieces: list[Piece], bad: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """`BatchFacts.answered` of a batch. If one row of a request is bad, none of its rows counts."""
    flags: list[bool] = []
    for piece in pieces:
        start = len(flags)
        refused = bad is not None and bool(bad[start : start + piece.rows].any())
        flags += [piece.entry.work.is_traffic and not refused] * piece.rows
    return None if all(flags) else np.array(flags)


def _taus_of_rows(pieces: list[Piece]) -> NDArray[np.floating]:
    """The tau of each row of a batch, [n]."""
    works = [piece.entry.work for piece in pieces]
    taus = [work.tau for work in works]
    if np.ndarray not in map(type, taus):
        return np.repeat(np.array(taus, np.float64), [piece.rows for piece in pieces])
    parts = []
    for tau, piece in zip(taus, pieces, strict=True):
        own = tau[piece.start : piece.start + piece.rows] if isinstance(tau, np.ndarray) else tau
        parts.append(np.full(piece.rows, own, np.float64))
    return np.concatenate(parts)
