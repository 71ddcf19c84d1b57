"""Runs one batch, on the event loop or in the model's thread. When a row fails, only its request
fails.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.batching.decisions import decided
from service.batching.queue import Batch, Piece
from service.batching.work import Array, GraphLost, RowsNotFinite, UnscorableRows
from service.contract.inputs.finite import is_finite, not_finite, rows_not_finite
from service.graph.prior_table import PriorTable
from service.graph.reasons import first_line
from service.graph.session import GraphOutputs

MAX_GRAPH_TOP_K = 64
"""The most classes that the graph ranks. A caller that needs more ranks `adjusted_logits`
itself.
"""

Outcome: TypeAlias = tuple[list[Piece], GraphOutputs | Exception]
"""Pieces that ran together, with their outputs; or pieces of one request, with its error."""


class RunGraph(Protocol):
    """The part of a Graph that a batcher uses: its `run`."""

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
        """Score inputs [n, …] with tau [n] and the rows prior_index [n] of prior_table [P, C]."""
        ...


class BatchRun:
    """Runs batches on a graph, one at a time, in the calling thread."""

    def __init__(
        self,
        run_graph: RunGraph,
        table: PriorTable,
        wants_logits: Callable[[], bool],
        *,
        try_graph: Callable[[], object] | None = None,
        least_top_k: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a runner of batches.

        run_graph, table: score a batch. wants_logits: whether the next batch should give logits.
        try_graph: runs the graph on rows that it has scored before; raises when it cannot. If None,
        a failing batch is always blamed on its rows. least_top_k: how
        many classes the next batch ranks at least; None: 1. clock: time.monotonic.
        """
        self._least_top_k = least_top_k
        self._run_graph, self._table, self._wants_logits = run_graph, table, wants_logits
        self._try_graph, self._clock = try_graph, clock

    def run_wanted(self, pieces: list[Piece]) -> list[Outcome]:
        """Run a batch that waited in the thread's inbox, except for rows that need not be scored
        any more.
        """
        now = self._clock()
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
        """Run a batch. If it fails, run its halves, so that only the row that causes the error
        fails.
        """
        try:
            inputs = _joined(pieces)
            if not is_finite(inputs):
                return self._run_finite(pieces)
            return [(pieces, self._call(pieces, inputs))]
        except GraphLost:
            raise
        except Exception as error:  # noqa: BLE001 - a foreign graph may raise anything
            self._check_graph(error)
            return self._run_apart(pieces)

    def _run_apart(self, pieces: list[Piece]) -> list[Outcome]:
        """Run the halves of a batch that failed, and a single piece row by row."""
        if len(pieces) == 1:
            return [(pieces, self._row_by_row(pieces[0]))]
        middle = len(pieces) // 2
        outcomes: list[Outcome] = []
        for half in (pieces[:middle], pieces[middle:]):
            try:
                outcomes.append((half, self._call(half, _joined(half))))
            except Exception:  # noqa: BLE001 - see run
                outcomes += self._run_apart(half)
        return outcomes

    def _check_graph(self, error: Exception) -> None:
        """Raise GraphLost when the graph no longer runs on rows that it has scored before."""
        if self._try_graph is None:
            return
        try:
            self._try_graph()
        except Exception as again:
            raise GraphLost(
                f"its graph fails on every input, even on the rows of its warm-up: {error}"
            ) from again

    def _run_finite(self, pieces: list[Piece]) -> list[Outcome]:
        """Run the pieces whose numbers are finite; the others fail without a graph call."""
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

    def _row_by_row(self, piece: Piece) -> GraphOutputs | UnscorableRows | MemoryError:
        """Run each row of a failing piece alone.

        Returns an error that names the rows that fail, or the scores if none does. Without memory
        for one row, the error does not blame it.
        """
        rows: list[int] = []
        parts: list[GraphOutputs] = []
        reason = ""
        for row in range(piece.start, piece.start + piece.rows):
            try:
                one = [Piece(piece.entry, row, 1)]
                parts.append(self._call(one, _joined(one)))
            except MemoryError as error:
                return error
            except Exception as error:  # noqa: BLE001 - this row caused the error
                reason = reason or first_line(error)
                rows.append(row)
        if rows:
            return UnscorableRows(rows, f"the model refuses it: {reason}")
        return GraphOutputs.joined(parts)

    def _call(self, pieces: list[Piece], inputs: Array) -> GraphOutputs:
        taus: list[Any] = []
        slots: list[Any] = []
        least = self._least_top_k
        top_k, full, rows = 1 if least is None else least(), False, len(inputs)
        for piece in pieces:
            work = piece.entry.work
            taus.append(work.tau)
            slots.append(work.slot)
            top_k, full = max(top_k, work.top_k), full or work.full
        prior_table = self._table.rows  # first: this writes the rows of priors that are new
        generation = self._table.generation
        outputs = self._run_graph(
            inputs,
            tau=_by_row(taus, pieces, rows, np.float32),
            prior_index=_by_row(slots, pieces, rows, np.int64),
            prior_table=prior_table,
            top_k=min(MAX_GRAPH_TOP_K, top_k),
            generation=generation,
            with_logits=self._wants_logits(),
            full=full,
        )
        return decided(outputs, pieces) if full else outputs


class GraphThread:
    """Runs batches in order. The thread ends when it gets None or when running a batch raises."""

    def __init__(
        self, name: str, run: Callable[[list[Piece]], list[Outcome]], report: "Report"
    ) -> None:
        """`report` is called in this thread with the outcomes of a batch and its seconds."""
        self.inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._run, self._report = run, report
        threading.Thread(target=self._work, name=f"graph-{name}", daemon=True).start()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            begun = time.perf_counter()
            try:
                outcomes = self._run(batch.begin())
            except BaseException as error:  # noqa: BLE001 - the loop must know; then this thread ends
                self._report(self, error, time.perf_counter() - begun)
                return
            self._report(self, outcomes, time.perf_counter() - begun)
            del batch, outcomes  # so that an idle thread keeps no request in memory


Report: TypeAlias = Callable[[GraphThread, list[Outcome] | BaseException, float], None]


def _inputs(piece: Piece) -> Array:
    inputs = piece.entry.work.inputs
    whole = piece.rows == len(inputs)
    return inputs if whole else inputs[piece.start : piece.start + piece.rows]


def _joined(pieces: list[Piece]) -> Array:
    blocks = []
    for piece in pieces:
        inputs = piece.entry.work.inputs
        whole = piece.rows == len(inputs)
        blocks.append(inputs if whole else inputs[piece.start : piece.start + piece.rows])
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _by_row(values: list[Any], pieces: list[Piece], rows: int, dtype: Any) -> Array:
    """A value for each row, [rows]. A request has one value for all its rows, or one for each."""
    if np.ndarray not in map(type, values):
        column = np.array(values, dtype)
        if len(pieces) == rows:
            return column
        return np.repeat(column, [piece.rows for piece in pieces])
    parts = []
    for value, piece in zip(values, pieces, strict=True):
        own = value
        if isinstance(value, np.ndarray):
            own = value[piece.start : piece.start + piece.rows]
        parts.append(np.full(piece.rows, own, dtype))
    return np.concatenate(parts)
