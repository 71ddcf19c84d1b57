"""Every metric by name, recorded by those who know, rendered here.

Counters and histograms live in a Tally, so that a scrape of any worker sees them all; gauges are asked for when scraped.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from service.contract.bundle import Bundle
from service.observe.exposition import Exemplar, Exposition, Families, VectorGauge
from service.observe.families import COUNTERS, GAUGES, HISTOGRAMS, VECTOR_GAUGES
from service.observe.histogram import Histogram
from service.observe.model_metrics import ModelMetrics
from service.observe.run_folder import Gauge, RunFolder
from service.observe.statistics import StatisticsReader, VersionStatistics
from service.observe.tally import Cells, Series, Tally
from service.observe.version_tallies import VersionTallies

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


class Metrics:
    """The metrics of one worker, and of all when it is scraped."""

    def __init__(
        self,
        tally: Tally,
        run_folder: RunFolder,
        *,
        max_class_series: int,
        max_batch_rows: int,
        version: str,
    ) -> None:
        self._tally, self._run_folder = tally, run_folder
        self._versions = VersionTallies(run_folder)
        self._statistics = StatisticsReader(run_folder)
        self._max_class_series, self._max_batch_rows = max_class_series, max_batch_rows
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
        statistics = VersionStatistics(
            of_version, bundle, max_batch_rows=self._max_batch_rows, worker=self._run_folder.slot
        )
        return ModelMetrics(
            self._tally,
            of_version,
            bundle,
            statistics=statistics,
            max_class_series=self._max_class_series,
        )

    def forget(self, bundle: Bundle) -> None:
        """A version whose recorder was asked for is served no more."""
        self._versions.leave(bundle)

    def statistics(self, versions: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
        """What Triton calls the statistics of (model, version), of all workers together; for a thread."""
        return self._statistics.read(versions)

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
        return count, Histogram.of(self._tally, family, {"route": route}), exemplars

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
