"""Every metric by name, recorded by those who know, rendered here.

Counters and histograms live in a Tally, so that a scrape of any worker sees them all; gauges are asked for when scraped.
"""

import json
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.scores import group_of
from service.exposition import NAMES, Exemplar, Exposition, Families
from service.run_folder import Gauge, RunFolder
from service.tally import Cells, Series, Tally
from service.work import BatchFacts

DECISIONS = ("adjusted", "unadjusted")
OTHER = "__other__"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

COUNTERS = {
    "priordial_predictions": "Answers by predicted class, with and without the adjustment",
    "priordial_group_predictions": "Answers by the group (many, medium, few) of the predicted class",
    "priordial_decisions_changed": "Answers whose class the adjustment changed",
    "priordial_requests": "HTTP requests by route template and status",
    "priordial_rejected": "Requests that were not scored, by reason",
    "priordial_worker_restarts": "Workers that took the place of one that ended, by how that ended",
}
HISTOGRAMS = {
    "priordial_request_seconds": ("Time from the first byte of a request to its answer", SECONDS),
    "priordial_queue_seconds": ("Time that a request's rows waited for a batch", SECONDS),
    "priordial_inference_seconds": ("Time of one graph call", SECONDS),
    "priordial_batch_rows": ("Rows of one graph call", ROWS),
}
GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "priordial_queued_rows": ("Rows that wait for a batch", sum),
    "priordial_prior_revision": ("The revision of each prior that every worker serves", min),
    "priordial_prior_divergence": (
        "Jensen-Shannon divergence (nats) of the mean adjusted probability from what is expected",
        max,
    ),
    "priordial_model_info": ("1 for each model version that is served, with its provider", max),
    "priordial_build_info": ("1, with the version of the service", max),
}
"""Family → its help, and what makes one value of those of several workers."""

PUBLISH_SECONDS = 1.0
_MAX_EXEMPLAR = 118
"""Of OpenMetrics: 128 characters for the names and values of an exemplar's labels, `request_id` among them."""


class Histogram:
    """Cells: one a bucket (the last is +Inf), then the sum."""

    def __init__(self, cells: Cells, bounds: Sequence[float]) -> None:
        self._cells, self._bounds = cells, bounds

    def observe(self, value: float) -> int:
        """Count one value; the bucket that it fell into."""
        cells = self._cells
        bucket = bisect_left(self._bounds, value)
        cells[bucket] += 1
        cells[-1] += value
        return bucket

    def observe_all(self, values: Sequence[float]) -> None:
        """Count many."""
        buckets = np.searchsorted(self._bounds, values)
        self._cells[:-1] += np.bincount(buckets, minlength=len(self._bounds) + 1)
        self._cells[-1] += sum(values)


class ModelMetrics:
    """What is counted for one model version, once a batch and vectorised."""

    def __init__(self, tally: Tally, bundle: Bundle, *, max_class_series: int) -> None:
        labels = {"model": bundle.name, "version": str(bundle.version)}
        by_model = {"model": bundle.name}
        classes = len(bundle.class_names)
        shown = min(classes, max_class_series)
        self._class_cell = (
            np.minimum(_by_frequency(bundle), shown) if shown < classes else np.arange(classes)
        )
        counts = bundle.class_counts
        groups = ["unknown"] * classes if counts is None else [group_of(count) for count in counts]
        present: list[str] = [g for g in ("many", "medium", "few", "unknown") if g in groups]
        self._group_cell = np.array([present.index(g) for g in groups])
        names = _shown_names(bundle.class_names, self._class_cell, shown)
        self._classes = [
            _vector(tally, "priordial_predictions", {**labels, "decision": d}, "class", names)
            for d in DECISIONS
        ]
        self._groups = [
            _vector(
                tally, "priordial_group_predictions", {**labels, "decision": d}, "group", present
            )
            for d in DECISIONS
        ]
        self._changed = tally.cells("priordial_decisions_changed", labels)
        self._inference = _histogram(tally, "priordial_inference_seconds", by_model)
        self._rows = _histogram(tally, "priordial_batch_rows", by_model)
        self._queue = _histogram(tally, "priordial_queue_seconds", by_model)
        self._tally, self._by_model = tally, by_model

    def batch(self, facts: BatchFacts) -> None:
        """Count one graph call; of its rows only those that answer traffic count as predictions."""
        outputs = facts.outputs
        adjusted, unadjusted = outputs.top_index[:, 0], outputs.unadjusted_index
        if facts.answered is not None:
            adjusted, unadjusted = adjusted[facts.answered], unadjusted[facts.answered]
        for which, decided in enumerate((adjusted, unadjusted)):
            _count(self._classes[which], self._class_cell[decided])
            _count(self._groups[which], self._group_cell[decided])
        self._changed[0] += np.count_nonzero(adjusted != unadjusted)
        self._inference.observe(facts.seconds)
        self._rows.observe(facts.rows)
        self._queue.observe_all(facts.queue_seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was not scored: overloaded, deadline, abandoned, failed or invalid."""
        self._tally.cells("priordial_rejected", {**self._by_model, "reason": reason})[0] += 1


class Metrics:
    """The metrics of one worker, and of all when it is scraped."""

    def __init__(
        self, tally: Tally, run_folder: RunFolder, *, max_class_series: int, version: str
    ) -> None:
        self._tally, self._run_folder = tally, run_folder
        self._max_class_series = max_class_series
        self._requests: dict[tuple[str, int], tuple[Cells, Histogram, dict[int, Exemplar]]] = {}
        self._exemplars: dict[tuple[str, Series], dict[int, Exemplar]] = {}
        self._gauges: list[Callable[[], Iterable[Gauge]]] = [
            lambda: [("priordial_build_info", {"version": version}, 1.0)]
        ]
        self._exposition = Exposition(Families(COUNTERS, HISTOGRAMS, GAUGES))
        self._stopped = threading.Event()

    def model(self, bundle: Bundle) -> ModelMetrics:
        """The recorder of a model version."""
        return ModelMetrics(self._tally, bundle, max_class_series=self._max_class_series)

    def add_gauges(self, source: Callable[[], Iterable[Gauge]]) -> None:
        """Ask `source` at every scrape."""
        self._gauges.append(source)

    def publish_gauges(self) -> None:
        """Let other workers show this one's gauges, from now until `stop`."""
        threading.Thread(target=self._publish, name="gauges", daemon=True).start()

    def stop(self) -> None:
        """Stop publishing; what was counted stays in the run folder."""
        self._stopped.set()
        self._tally.close()

    def worker_replaced(self, reason: str) -> None:
        """Count that this worker took the place of another."""
        self._tally.cells("priordial_worker_restarts", {"reason": reason})[0] += 1

    def request(self, route: str, status: int, begun: float, request_id: str) -> float:
        """Count a request of a route template that began at time.perf_counter() `begun`; the seconds that it took."""
        found = self._requests.get((route, status))
        if found is None:
            found = self._requests[route, status] = self._recorder(route, status)
        count, histogram, exemplars = found
        count[0] += 1
        seconds = time.perf_counter() - begun
        bucket = histogram.observe(seconds)
        if len(request_id) <= _MAX_EXEMPLAR:
            exemplars[bucket] = (request_id, seconds, time.time())
        return seconds

    def _recorder(self, route: str, status: int) -> tuple[Cells, Histogram, dict[int, Exemplar]]:
        count = self._tally.cells("priordial_requests", {"route": route, "status": str(status)})
        family = "priordial_request_seconds"
        series: Series = (family, (("route", route),))
        exemplars = self._exemplars.setdefault((family, series), {})
        return count, _histogram(self._tally, family, {"route": route}), exemplars

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The body and content type of a scrape; for a thread. See Exposition."""
        gauges = [*self._own_gauges(), *self._run_folder.gauges_of_others()]
        exemplars = {key: dict(seen) for key, seen in list(self._exemplars.items())}
        for name, labels, bucket, request_id, value, at in self._run_folder.exemplars_of_others():
            series: Series = (name, tuple(sorted(labels.items())))
            of_series = exemplars.setdefault((name, series), {})
            if bucket not in of_series or of_series[bucket][2] < at:
                of_series[bucket] = (request_id, value, at)
        return self._exposition.render(self._run_folder.all(), gauges, exemplars, accept=accept)

    def _own_gauges(self) -> list[Gauge]:
        return [sample for source in self._gauges for sample in source()]

    def _publish(self) -> None:
        while True:
            self._run_folder.publish_gauges(self._own_gauges())
            self._run_folder.publish_exemplars(
                (name, dict(series[1]), bucket, *seen)
                for (name, series), buckets in list(self._exemplars.items())
                for bucket, seen in dict(buckets).items()
            )
            if self._stopped.wait(PUBLISH_SECONDS):
                return


_FEW_CELLS = 256


def _count(cells: Cells, at: NDArray[np.int64]) -> None:
    """Add 1 at each position, as often as it occurs; for a few cells a histogram is quicker than scattered additions."""
    if len(cells) <= _FEW_CELLS:
        cells += np.bincount(at, minlength=len(cells))
    else:
        np.add.at(cells, at, 1)


def _vector(
    tally: Tally, family: str, labels: dict[str, str], label: str, names: Sequence[str]
) -> Cells:
    """A block with one cell a value of `label`; the values travel as a label of the block."""
    return tally.cells(family, {**labels, NAMES: json.dumps([label, *names])}, len(names))


def _histogram(tally: Tally, family: str, labels: dict[str, str]) -> Histogram:
    bounds = HISTOGRAMS[family][1]
    return Histogram(tally.cells(family, labels, len(bounds) + 2), bounds)


def _by_frequency(bundle: Bundle) -> NDArray[np.int64]:
    """[C] rank of each class, the most frequent first; output order where counts are unknown."""
    classes = len(bundle.class_names)
    if bundle.class_counts is None:
        return np.arange(classes)
    rank = np.empty(classes, np.int64)
    rank[np.argsort(-np.asarray(bundle.class_counts), kind="stable")] = np.arange(classes)
    return rank


def _shown_names(
    class_names: Sequence[str], class_cell: NDArray[np.int64], shown: int
) -> list[str]:
    if shown == len(class_names):
        return list(class_names)
    names = [""] * shown + [OTHER]
    for name, cell in zip(class_names, class_cell.tolist(), strict=True):
        if cell < shown:
            names[cell] = name
    return names
