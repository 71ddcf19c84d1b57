"""Running one batch: its rows joined, each with its own tau and prior; when it fails, only the guilty rows fail."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching.work import Array, Piece, RowsNotFinite, UnscorableRows
from service.graph.prior_table import PriorTable
from service.graph.session import GraphOutputs
from service.wire.arrays import is_finite, not_finite, rows_not_finite

MAX_GRAPH_TOP_K = 64
"""TopK in the graph is flat up to here; rows that want more are ranked by the caller from adjusted_logits."""

Outcome = tuple[list[Piece], GraphOutputs | Exception]


class RunGraph(Protocol):
    """What the batcher needs of a Graph."""

    def __call__(
        self,
        inputs: Array,
        *,
        tau: NDArray[np.float32],
        prior_index: NDArray[np.int64],
        prior_table: NDArray[np.float32],
        top_k: int,
        generation: int,
        with_logits: bool,
        full: bool,
    ) -> GraphOutputs:
        """See Graph.run."""
        ...


class BatchRun:
    """Runs batches on a graph, here or in another thread, one at a time."""

    def __init__(
        self, run_graph: RunGraph, table: PriorTable, wants_logits: Callable[[], bool]
    ) -> None:
        self._run_graph, self._table, self._wants_logits = run_graph, table, wants_logits

    def run_wanted(self, pieces: list[Piece]) -> list[Outcome]:
        """The same for those that somebody still waits for: since they were taken from the queue, time may have passed."""
        now = time.monotonic()
        dropped: list[Outcome] = []
        wanted: list[Piece] = []
        for piece in pieces:
            reason = piece.entry.why_drop(now)
            if reason is None:
                if piece.start == 0:
                    piece.entry.begun = now
                wanted.append(piece)
            else:
                dropped.append(([piece], reason))
        return dropped + (self.run(wanted) if wanted else [])

    def run(self, pieces: list[Piece]) -> list[Outcome]:
        """Run a batch; when it fails, run its halves, so that only the guilty row fails."""
        try:
            inputs = _joined(pieces)
            if not is_finite(inputs):
                return self._run_finite(pieces)
            return [(pieces, self._call(pieces, inputs))]
        except Exception:  # noqa: BLE001 - a foreign graph may raise anything
            if len(pieces) > 1:
                middle = len(pieces) // 2
                return self.run(pieces[:middle]) + self.run(pieces[middle:])
            return [(pieces, self._row_by_row(pieces[0]))]

    def _run_finite(self, pieces: list[Piece]) -> list[Outcome]:
        """Run those pieces whose numbers are finite: nobody pays a graph call for those that are not."""
        outcomes: list[Outcome] = []
        fine: list[Piece] = []
        for piece in pieces:
            inputs = _inputs(piece)
            if is_finite(inputs):
                fine.append(piece)
            else:
                rows = [piece.start + row for row in rows_not_finite(inputs)]
                outcomes.append(([piece], RowsNotFinite(rows, not_finite(inputs.dtype))))
        return outcomes + (self.run(fine) if fine else [])

    def _row_by_row(self, piece: Piece) -> GraphOutputs | UnscorableRows:
        """A failing piece with one graph call a row: the rows that fail alone too, or the answer when none does."""
        rows: list[int] = []
        parts: list[GraphOutputs] = []
        reason = ""
        for row in range(piece.start, piece.start + piece.rows):
            try:
                one = [Piece(piece.entry, row, 1)]
                parts.append(self._call(one, _joined(one)))
            except Exception as error:  # noqa: BLE001 - the row is what is looked for
                reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
                rows.append(row)
        if rows:
            return UnscorableRows(rows, f"the model refuses it: {reason}")
        return GraphOutputs.joined(parts)

    def _call(self, pieces: list[Piece], inputs: Array) -> GraphOutputs:
        works = [piece.entry.work for piece in pieces]
        taus: list[Any] = [_of_piece(work.tau, p) for work, p in zip(works, pieces, strict=True)]
        slots: list[Any] = [_of_piece(work.slot, p) for work, p in zip(works, pieces, strict=True)]
        # The generation first: a row written in between is then copied to the device once more, never missed.
        generation = self._table.generation
        return self._run_graph(
            inputs,
            tau=_by_row(taus, pieces, np.float32),
            prior_index=_by_row(slots, pieces, np.int64),
            prior_table=self._table.rows,
            top_k=min(MAX_GRAPH_TOP_K, max([work.top_k for work in works])),
            generation=generation,
            with_logits=self._wants_logits(),
            full=any(work.full for work in works),
        )


def _inputs(piece: Piece) -> Array:
    inputs = piece.entry.work.inputs
    whole = piece.rows == len(inputs)
    return inputs if whole else inputs[piece.start : piece.start + piece.rows]


def _joined(pieces: list[Piece]) -> Array:
    blocks = [_inputs(piece) for piece in pieces]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _of_piece(value: Any, piece: Piece) -> Any:
    """The taus or slots of a piece's rows, where the request has one for each of its rows."""
    return value[piece.start : piece.start + piece.rows] if isinstance(value, np.ndarray) else value


def _by_row(values: list[Any], pieces: list[Piece], dtype: Any) -> Array:
    """[n] a value a row; each piece's value is one number or one a row."""
    if len(pieces) == sum([piece.rows for piece in pieces]) and np.ndarray not in map(type, values):
        return np.array(values, dtype)
    parts = zip(values, pieces, strict=True)
    return np.concatenate([np.full(piece.rows, value, dtype) for value, piece in parts])
