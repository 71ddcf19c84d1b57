"""Loads a published model folder: opens and warms its graph, and builds its queue and metrics."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import Batcher
from service.batching.facts import Tracer
from service.contract.bundle import Bundle, load_bundle
from service.evaluate.answers import Answers
from service.evaluate.ring import TOP
from service.graph import session as graphs
from service.graph import warm_up
from service.graph.prior_table import PriorTable
from service.graph.providers import Device
from service.graph.trial import influence
from service.graph.warm_up import efficient_rows
from service.observe.metrics import Metrics
from service.observe.model_metrics import ClassSeries
from service.priors.recent import LogitReservoir
from service.priors.shift.stream import Stream
from service.repository.loads import Turn
from service.repository.record import ModelRecord, keeper
from service.repository.report import read_report
from service.repository.served import ServedModel
from service.wire.arrays import example_input

logger = logging.getLogger(__name__)

BURST_ROWS = 64
"""How many rows may wait even for a slow model: a burst of 64 one-row requests is accepted."""
FLOOD_SHARE = 1 / 30
"""In flood mode, rows may wait for this share of `max_queue_ms`.

At least one full batch may always wait, so that the session is never idle.
"""
SMALL_BATCH_ROWS = 8
"""On a GPU, batches of up to this many rows are padded to this size, larger ones to the largest."""
_MEASURING = Turn()
"""Loads run in parallel, but are measured one at a time: two would slow each other down."""
FREE_SIZES = (1, 8, 32, 224)
"""Sizes tried for a dimension that a model leaves free; warm-up uses the first that runs."""


@dataclass(frozen=True)
class Loader:
    """Opens the model versions of this process, all with the same settings.

    provider, device, intra_op_threads: for the session. max_batch_rows: rows of the largest batch,
    unless the graph takes only one size. max_queued_rows, max_queue_ms, max_queued_bytes: limits of
    the queue, in rows, in time by the measured cost, and in bytes. inline_seconds: a batch below
    this cost runs on the event loop. recent_rows, recent_bytes: limits of the sample of recent
    logits. calibrated_source: whether models with an estimation block are adjusted with it.
    metrics: counts the requests of versions. tracer_of: returns the tracer of a version; None: no
    traces. answers: keeps answers for feedback.
    """

    provider: str
    device: Device
    intra_op_threads: int
    max_batch_rows: int
    max_queued_rows: int
    max_queue_ms: int
    max_queued_bytes: int
    inline_seconds: float
    recent_rows: int
    recent_bytes: int
    calibrated_source: bool
    metrics: Metrics
    tracer_of: Callable[[Bundle], Tracer] | None = None
    answers: Answers | None = None

    def prepare(self, folder: Path) -> Callable[[], ServedModel]:
        """Open and warm a version. Call it in a worker thread.

        Returns a function that makes the served model; call that on the event loop. Raises what
        `open_graph` and `warm_up` raise.
        """
        bundle = load_bundle(folder)
        if not self.calibrated_source:
            bundle = bundle.without_calibrated_source()
        bundle.work_out()
        if bundle.input.kind == "image":
            import_module("service.wire.images")  # imports Pillow now rather than during a request
        graph = graphs.open_graph(
            folder,
            bundle,
            provider=self.provider,
            intra_op_threads=self.intra_op_threads,
            device=self.device,
            size_classes=self._size_classes(),
        )
        largest = _largest_batch(graph, bundle, self.max_batch_rows)
        sizes = [largest] if graph.fixed_rows else warm_sizes(largest)
        warm, example = _warm(graph, bundle, sizes)
        cost = warm.cost_seconds
        report = read_report(folder)
        series, stream = self.metrics.series_of(bundle), Stream(bundle)
        best = largest if graph.fixed_rows else efficient_rows(cost)
        logger.info(
            "model %s version %d is ready on %s: %.2f ms for one row, %.2f ms for %d; "
            "batches of up to %d%s",
            bundle.name, bundle.version, graph.provider, 1e3 * cost[sizes[0]],
            1e3 * cost[largest], largest, best, warm.selection_note(),
        )  # fmt: skip
        costs = _interpolated(cost, best)
        return lambda: self._serve(
            bundle, graph, costs, best, example=example, report=report, series=series, stream=stream
        )

    def _size_classes(self) -> tuple[int, int] | None:
        """Rows of a small and a large batch on a GPU. None on a CPU, where batches are not
        padded.
        """
        if self.provider == "cpu" or self.max_batch_rows <= SMALL_BATCH_ROWS:
            return None
        return SMALL_BATCH_ROWS, self.max_batch_rows

    def _serve(
        self,
        bundle: Bundle,
        graph: graphs.Graph,
        cost_seconds: list[float],
        largest: int,
        *,
        example: NDArray[Any],
        report: dict[str, Any],
        series: ClassSeries,
        stream: Stream,
    ) -> ServedModel:
        classes = len(bundle.class_names)
        table = PriorTable(classes)
        counted = self.metrics.model(bundle, series)
        recent = LogitReservoir(classes, max_rows=self.recent_rows, max_bytes=self.recent_bytes)
        record = ModelRecord(counted, recent, stream)

        kept = None if self.answers is None else self.answers.of(bundle)
        row_seconds = cost_seconds[largest] / largest
        waiting, flood = queue_bounds(row_seconds, self.max_queue_ms, full_batch=largest)
        batcher = Batcher(
            graph.run,
            table,
            record=record,
            cost_seconds=cost_seconds.__getitem__,
            max_batch_rows=largest,
            max_queued_rows=max(self.max_queued_rows, largest),
            max_waiting_rows=waiting,
            max_flood_rows=flood,
            max_queued_bytes=self.max_queued_bytes,
            inline_seconds=self.inline_seconds if _has_one_cost(bundle) else 0.0,
            try_graph=partial(warm_up.try_out, graph, example, classes),
            name=f"{bundle.name} version {bundle.version}",
            tracer=None if self.tracer_of is None else self.tracer_of(bundle),
            answered=None if kept is None else keeper(kept),
            least_top_k=record.least_top_k(1 if kept is None else min(TOP, classes)),
        )
        return ServedModel(
            bundle,
            graph,
            table,
            batcher,
            counted,
            recent,
            stream,
            report,
            row_seconds=row_seconds,
            full_batch=largest,
        )


def _largest_batch(graph: graphs.Graph, bundle: Bundle, configured: int) -> int:
    """Rows of the largest batch: 1 when model.json says so or the rows influence each other."""
    largest = graph.fixed_rows or min(configured, bundle.max_batch_rows or configured)
    if bundle.max_batch_rows == 1 or largest == 1:
        return 1
    found = (
        influence(graph, bundle.input, len(bundle.class_names), free=free)
        for free in _free_sizes(bundle)
    )
    share = next((each for each in found if each is not None), 0.0)
    if not share:
        return largest
    logger.warning(
        "model %s version %d: a row's answer depends on the other rows of its batch "
        "(a logit moves by %.2g of the largest), so its rows run one at a time; "
        "to run them in batches, export the model in evaluation mode or quantise it statically",
        bundle.name, bundle.version, share,
    )  # fmt: skip
    return 1


def _has_one_cost(bundle: Bundle) -> bool:
    """Whether every row costs the same as the rows of the warm-up.

    Where rows are texts or of free size, one may be far longer. Such a model's batches never run on
    the event loop.
    """
    specs = bundle.input.columns or (bundle.input,)
    return all(spec.kind != "text" and None not in spec.shape[1:] for spec in specs)


def _free_sizes(bundle: Bundle) -> tuple[int, ...]:
    return FREE_SIZES if None in bundle.input.shape[1:] else FREE_SIZES[:1]


def _warm(
    graph: graphs.Graph, bundle: Bundle, sizes: list[int]
) -> tuple[warm_up.WarmUp, NDArray[Any]]:
    """Warm up at the first of FREE_SIZES that the graph takes.

    Returns what was measured, and the row that the graph scored, [1, …]. Raises the UnusableModel
    of the first size when it takes none.
    """
    first: graphs.UnusableModel | None = None
    for free in _free_sizes(bundle):
        try:
            example = example_input(bundle.input, free=free)
            with _MEASURING:
                return warm_up.warm_up(graph, example, len(bundle.class_names), sizes), example
        except graphs.UnusableModel as error:
            first = first or error
    assert first is not None
    raise first


def queue_bounds(
    seconds_of_row: float, max_queue_ms: float, *, full_batch: int
) -> tuple[int | None, int | None]:
    """(rows that may wait when a request arrives, this limit while requests are being refused)."""
    return (
        _most_waiting(seconds_of_row, max_queue_ms, floor=BURST_ROWS),
        _most_waiting(seconds_of_row, max_queue_ms * FLOOD_SHARE, floor=full_batch),
    )


def _most_waiting(seconds_of_row: float, milliseconds: float, *, floor: int) -> int | None:
    """How many rows full batches score within this many milliseconds, but at least `floor`.

    Returns None, for no bound, when `milliseconds` is 0.
    """
    return max(floor, int(milliseconds / 1000 / seconds_of_row)) if milliseconds else None


def warm_sizes(largest: int) -> list[int]:
    """The batch sizes of the warm-up: 1, 2, 4 … and the largest batch."""
    return sorted({2**i for i in range(largest.bit_length())} | {largest})


def _interpolated(cost: dict[int, float], largest: int) -> list[float]:
    """Seconds of a batch by its rows [largest + 1], interpolated between the measured sizes."""
    sizes = sorted(cost)
    values: list[float] = np.interp(
        np.arange(largest + 1), sizes, [cost[s] for s in sizes]
    ).tolist()
    return values
