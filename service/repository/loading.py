"""A published folder → a model that serves: opened, warmed and timed, with its queue, its metrics and its recent logits."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from service.batching.batcher import Batcher
from service.batching.work import BatchFacts, Tracer
from service.contract.bundle import Bundle, load_bundle
from service.graph import session as graphs
from service.graph import warm_up
from service.graph.batch_size import efficient_rows
from service.graph.prior_table import PriorTable
from service.observe.metrics import Metrics
from service.priors.recent import LogitReservoir
from service.repository.loads import Turn
from service.repository.repository import ServedModel
from service.wire.arrays import example_input

logger = logging.getLogger(__name__)

BURST_ROWS = 64
"""So many rows may wait even of a slow model: a request each of as many connections that come at once."""
FLOOD_SHARE = 1 / 30
"""Of the time that rows may wait, while others are refused; one full batch at least, so that the session is never idle."""
MAX_REPORT_BYTES = 16 * 2**20
_MEASURING = Turn()
"""Models are loaded side by side; two that are measured at once would slow each other down, and look dearer than they are."""
FREE_SIZES = (1, 8, 32, 224)
"""What a dimension that a model leaves free is warmed up at: the first that the graph takes."""


@dataclass(frozen=True)
class Loader:
    """How every model version of this process is opened and served."""

    provider: str
    intra_op_threads: int
    max_batch_rows: int
    max_queued_rows: int
    max_queue_ms: int
    max_queued_bytes: int
    inline_seconds: float
    recent_rows: int
    recent_bytes: int
    metrics: Metrics
    tracer_of: Callable[[Bundle], Tracer] | None = None

    def prepare(self, folder: Path) -> Callable[[], ServedModel]:
        """Open and warm a version (in a worker thread); its queue is made on the loop, by what is returned."""
        bundle = load_bundle(folder)
        if bundle.input.kind == "image":
            import_module("service.wire.images")  # Pillow, 2 MiB, comes here and not with a request
        graph = graphs.open_graph(
            folder, bundle, provider=self.provider, intra_op_threads=self.intra_op_threads
        )
        largest = graph.fixed_rows or self.max_batch_rows
        sizes = [graph.fixed_rows] if graph.fixed_rows else warm_sizes(largest)
        warm = _warm(graph, bundle, sizes)
        cost = warm.cost_seconds
        report = _report(folder)
        best = graph.fixed_rows or efficient_rows(cost)
        logger.info(
            "model %s version %d is ready on %s: %.2f ms for one row, %.2f ms for %d; batches of up to %d%s",
            bundle.name, bundle.version, graph.provider, 1e3 * cost[sizes[0]], 1e3 * cost[largest], largest, best, warm.told(),
        )  # fmt: skip
        return lambda: self._serve(bundle, graph, _interpolated(cost, best), best, report)

    def _serve(
        self,
        bundle: Bundle,
        graph: graphs.Graph,
        cost_seconds: list[float],
        largest: int,
        report: dict[str, Any],
    ) -> ServedModel:
        classes = len(bundle.class_names)
        table = PriorTable(classes)
        counted = self.metrics.model(bundle)
        recent = LogitReservoir(classes, max_rows=self.recent_rows, max_bytes=self.recent_bytes)

        def on_batch(facts: BatchFacts) -> None:
            counted.batch(facts)
            answered, logits = facts.answered, facts.outputs.logits
            if logits is None:
                recent.pass_over(facts.rows if answered is None else int(answered.sum()))
            else:
                recent.add(logits if answered is None else logits[answered])

        row_seconds = cost_seconds[largest] / largest
        batcher = Batcher(
            graph.run,
            table,
            cost_seconds=cost_seconds.__getitem__,
            max_batch_rows=largest,
            max_queued_rows=max(self.max_queued_rows, largest),
            max_waiting_rows=_most_waiting(row_seconds, self.max_queue_ms, floor=BURST_ROWS),
            max_flood_rows=_most_waiting(
                row_seconds, self.max_queue_ms * FLOOD_SHARE, floor=largest
            ),
            max_queued_bytes=self.max_queued_bytes,
            inline_seconds=self.inline_seconds,
            on_batch=on_batch,
            wants_logits=recent.wants_rows,
            name=f"{bundle.name} version {bundle.version}",
            tracer=None if self.tracer_of is None else self.tracer_of(bundle),
        )
        return ServedModel(bundle, graph, table, batcher, counted, recent, report)


def _warm(graph: graphs.Graph, bundle: Bundle, sizes: list[int]) -> warm_up.WarmUp:
    """See warm_up. Raises its UnusableModel, of the first free size, when the graph takes none."""
    first: graphs.UnusableModel | None = None
    for free in FREE_SIZES if None in bundle.input.shape[1:] else FREE_SIZES[:1]:
        try:
            example = example_input(bundle.input, free=free)
            with _MEASURING:
                return warm_up.warm_up(graph, example, len(bundle.class_names), sizes)
        except graphs.UnusableModel as error:
            first = first or error
    assert first is not None
    raise first


def _most_waiting(seconds_of_row: float, milliseconds: float, *, floor: int) -> int | None:
    """Rows that are scored within so many milliseconds, at this cost of each in a full batch, but at least floor; 0 ms: any."""
    return max(floor, int(milliseconds / 1000 / seconds_of_row)) if milliseconds else None


def warm_sizes(largest: int) -> list[int]:
    """1, 2, 4 … and the largest batch."""
    return sorted({2**i for i in range(largest.bit_length())} | {largest})


def _interpolated(cost: dict[int, float], largest: int) -> list[float]:
    """[largest + 1] seconds of a batch by its rows."""
    sizes = sorted(cost)
    values: list[float] = np.interp(
        np.arange(largest + 1), sizes, [cost[s] for s in sizes]
    ).tolist()
    return values


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file() or path.stat().st_size > MAX_REPORT_BYTES:
        return {}
    try:
        found = orjson.loads(path.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
