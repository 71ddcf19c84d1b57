"""Every metric by name, recorded by those who know, rendered here.

Counters and histograms live in a Tally, so that a scrape of any worker sees them all; gauges are asked for when scraped.
"""

import json
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.scores import group_of
from service.exposition import NAMES, Exemplar, Exposition, Families, VectorGauge
from service.families import COUNTERS, GAUGES, HISTOGRAMS, VECTOR_GAUGES
from service.run_folder import Gauge, RunFolder
from service.tally import Cells, Series, Tally
from service.version_tallies import VersionTallies
from service.work import BatchFacts

DECISIONS = ("adjusted", "unadjusted")
OTHER = "__other__"
PUBLISH_SECONDS = 1.0
_MAX_EXEMPLAR = 118
"""Of OpenMetrics: 128 characters for the names and values of an exemplar's labels, `request_id` among them."""


class IsRequest(Protocol):
    """What is asked of a request that is counted: the time.perf_counter() when it came, and its id."""

    @property
    def begun(self) -> float:
        """See the class."""

    @property
    def request_id(self) -> str:
        """See the class."""


class Arrived(NamedTuple):
    """A request of which no more is known."""

    begun: float
    request_id: str


class Histogram:
    """Cells: one a bucket (the last is +Inf), then the sum."""

    def __init__(self, cells: Cells, bounds: Sequence[float]) -> None:
        self._cells, self._bounds = cells, bounds
        self._one = cast(MutableSequence[float], cells.data)
        """The same memory: one number of a memoryview is read and written in half the time of an array's."""

    def observe(self, value: float, times: int = 1) -> int:
        """Count a value; the bucket that it fell into."""
        cells = self._one
        bucket = bisect_left(self._bounds, value)
        cells[bucket] += times
        cells[-1] += value * times
        return bucket

    def observe_all(self, values: Sequence[float]) -> None:
        """Count many."""
        buckets = np.searchsorted(self._bounds, values)
        self._cells[:-1] += np.bincount(buckets, minlength=len(self._bounds) + 1)
        self._cells[-1] += sum(values)


class ModelMetrics:
    """What is counted for one model version, once a batch and vectorised."""

    def __init__(
        self, tally: Tally, of_version: Tally, bundle: Bundle, *, max_class_series: int
    ) -> None:
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
        self._class_names = json.dumps(["class", *names])
        self._group_names = json.dumps(["group", *present])
        self.class_series, self._group_series = len(names), len(present)
        self._classes = [
            of_version.cells(
                "priordial_predictions",
                {**labels, "decision": d, NAMES: self._class_names},
                len(names),
            )
            for d in DECISIONS
        ]
        self._groups = [
            of_version.cells(
                "priordial_group_predictions",
                {**labels, "decision": d, NAMES: self._group_names},
                len(present),
            )
            for d in DECISIONS
        ]
        self._changed = of_version.cells("priordial_decisions_changed", labels)
        self._inference = _histogram(tally, "priordial_inference_seconds", by_model)
        self._rows = _histogram(tally, "priordial_batch_rows", by_model)
        self._queue = _histogram(tally, "priordial_queue_seconds", by_model)
        self._tau = _histogram(tally, "priordial_tau", by_model)
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

    def used_tau(self, tau: float | NDArray[np.float32], rows: int) -> None:
        """Count rows that were scored with one tau, or with one each [rows]."""
        if isinstance(tau, float):
            self._tau.observe(tau, rows)
            return
        for each, times in zip(*np.unique(tau, return_counts=True), strict=True):
            self._tau.observe(float(each), int(times))

    def target(self, prior: str, target: NDArray[np.float64]) -> Iterable[VectorGauge]:
        """What is told of a prior's target [C], by class and by group."""
        labels = {**self._by_model, "prior": prior}
        for name, names, cell, series in (
            ("priordial_target_prior", self._class_names, self._class_cell, self.class_series),
            (
                "priordial_group_target_prior",
                self._group_names,
                self._group_cell,
                self._group_series,
            ),
        ):
            yield (
                name,
                {**labels, NAMES: names},
                np.bincount(cell, target, series).astype(np.float64),
            )

    def rejected(self, reason: str) -> None:
        """Count a request that was not scored: overloaded, deadline, abandoned, failed or invalid."""
        self._tally.cells("priordial_rejected", {**self._by_model, "reason": reason})[0] += 1


class Metrics:
    """The metrics of one worker, and of all when it is scraped."""

    def __init__(
        self, tally: Tally, run_folder: RunFolder, *, max_class_series: int, version: str
    ) -> None:
        self._tally, self._run_folder = tally, run_folder
        self._versions = VersionTallies(run_folder)
        self._max_class_series = max_class_series
        self._requests: dict[tuple[str, int], tuple[Cells, Histogram, dict[int, Exemplar]]] = {}
        self._exemplars: dict[tuple[str, Series], dict[int, Exemplar]] = {}
        self._gauges: list[Callable[[], Iterable[Gauge]]] = [
            lambda: [("priordial_build_info", {"version": version}, 1.0)]
        ]
        self._vector_gauges: Callable[[], Iterable[VectorGauge]] = tuple
        self._exposition = Exposition(Families(COUNTERS, HISTOGRAMS, GAUGES, VECTOR_GAUGES))
        self._stopped = threading.Event()

    def model(self, bundle: Bundle) -> ModelMetrics:
        """The recorder of a model version, until `forget`."""
        of_version = self._versions.use(bundle)
        return ModelMetrics(
            self._tally, of_version, bundle, max_class_series=self._max_class_series
        )

    def forget(self, bundle: Bundle) -> None:
        """A version whose recorder was asked for is served no more."""
        self._versions.leave(bundle)

    def add_gauges(self, source: Callable[[], Iterable[Gauge]]) -> None:
        """Ask `source` at every scrape."""
        self._gauges.append(source)

    def show_vectors(self, source: Callable[[], Iterable[VectorGauge]]) -> None:
        """Ask `source` at every scrape, in its thread."""
        self._vector_gauges = source

    def publish_gauges(self) -> None:
        """Let other workers show this one's gauges, from now until `stop`."""
        threading.Thread(target=self._publish, name="gauges", daemon=True).start()

    def stop(self) -> None:
        """Stop publishing; what was counted stays in the run folder."""
        self._stopped.set()
        self._tally.close()
        self._versions.close()

    def worker_replaced(self, reason: str) -> None:
        """Count that this worker took the place of another."""
        self._tally.cells("priordial_worker_restarts", {"reason": reason})[0] += 1

    def requests(self, route: str, status: int, arrived: Iterable[IsRequest]) -> list[float]:
        """Count requests of a route template that have their answers now; the seconds that each took."""
        found = self._requests.get((route, status))
        if found is None:
            found = self._requests[route, status] = self._recorder(route, status)
        count, histogram, exemplars = found
        now, wall = time.perf_counter(), time.time()
        taken = []
        for request in arrived:
            seconds, request_id = now - request.begun, request.request_id
            bucket = histogram.observe(seconds)
            if len(request_id) <= _MAX_EXEMPLAR:
                exemplars[bucket] = (request_id, seconds, wall)
            taken.append(seconds)
        count[0] += len(taken)
        return taken

    def _recorder(self, route: str, status: int) -> tuple[Cells, Histogram, dict[int, Exemplar]]:
        count = self._tally.cells("priordial_requests", {"route": route, "status": str(status)})
        family = "priordial_request_seconds"
        series: Series = (family, (("route", route),))
        exemplars = self._exemplars.setdefault((family, series), {})
        return count, _histogram(self._tally, family, {"route": route}), exemplars

    def exposition(self, accept: str) -> tuple[list[bytes], str]:
        """The body, in blocks, and the content type of a scrape; for a thread. See Exposition."""
        gauges = [*self._own_gauges(), *self._run_folder.gauges_of_others()]
        exemplars = {key: dict(seen) for key, seen in list(self._exemplars.items())}
        for name, labels, bucket, request_id, value, at in self._run_folder.exemplars_of_others():
            series: Series = (name, tuple(sorted(labels.items())))
            of_series = exemplars.setdefault((name, series), {})
            if bucket not in of_series or of_series[bucket][2] < at:
                of_series[bucket] = (request_id, value, at)
        return self._exposition.render(
            self._run_folder.tallies(),
            gauges,
            exemplars,
            vector_gauges=self._vector_gauges(),
            accept=accept,
        )

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
