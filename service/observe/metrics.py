"""Collects the metrics of a worker, and renders those of all workers for a scrape.

Counters and histograms live in a `Tally`, a file that any worker can read. Gauges are computed at
each scrape.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from service.contract.bundle import Bundle
from service.observe.exposition import Exemplar, Exposition, Families, VectorGauge
from service.observe.families import COUNTERS, GAUGES, HISTOGRAMS, VECTOR_GAUGES
from service.observe.model_metrics import ClassSeries, ModelMetrics
from service.observe.run_folder import Gauge, RunFolder
from service.observe.statistics import StatisticsReader, VersionStatistics
from service.observe.tally import Cells, Histogram, Series, Tally
from service.observe.version_tallies import VersionTallies
from service.process.machine import NO_FOLDER
from service.process.repeated import Repeated

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
ENDS = ("killed", "hung", "failed")
"""The ways in which a worker that was replaced may have ended."""
_MAX_EXEMPLAR = 118
"""Longest request id: OpenMetrics allows 128 characters for an exemplar's names and values."""


class IsRequest(Protocol):
    """What counting a request needs to know of it."""

    @property
    def begun(self) -> float:
        """time.perf_counter() when the request arrived."""

    @property
    def request_id(self) -> str:
        """The id that the client sent or the service assigned."""


class Arrived(NamedTuple):
    """A request of which only the arrival time and the id are known."""

    begun: float
    request_id: str


class Metrics:
    """The metrics of one worker; a scrape of it shows those of all workers."""

    def __init__(
        self,
        tally: Tally,
        run_folder: RunFolder,
        *,
        max_class_series: int,
        max_batch_rows: int,
        version: str,
    ) -> None:
        """Count in `tally`, and share gauges with the other workers through `run_folder`.

        max_class_series: most series by class of a model; further classes are counted together.
        max_batch_rows: the service's largest batch, which sizes the statistics of every version.
        version: of the service, for `priordial_build_info`.
        """
        self._tally, self._run_folder = tally, run_folder
        self._versions = VersionTallies(run_folder)
        self._statistics = StatisticsReader(run_folder)
        self._max_class_series, self._max_batch_rows = max_class_series, max_batch_rows
        for reason in ENDS:  # at 0 from the start, so that rate() sees the first
            self._tally.cells("priordial_worker_restarts", {"reason": reason})
        self._requests: dict[tuple[str, int], tuple[Cells, Histogram, dict[int, Exemplar]]] = {}
        self._exemplars: dict[tuple[str, Series], dict[int, Exemplar]] = {}
        self._gauges: list[Callable[[], Iterable[Gauge]]] = [
            lambda: [("priordial_build_info", {"version": version}, 1.0)]
        ]
        self._vector_gauges: Callable[[], Iterable[VectorGauge]] = tuple
        self._exposition = Exposition(Families(COUNTERS, HISTOGRAMS, GAUGES, VECTOR_GAUGES))
        self._publishing = Repeated(
            self._publish, name="gauges", every_seconds=PUBLISH_SECONDS, at_once=True,
            failure="other workers do not see this worker's gauges",
        )  # fmt: skip
        self._publish_fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why metrics are incomplete, for readiness; None while they are complete."""
        return self._tally.fault or self._versions.fault or self._publish_fault

    def series_of(self, bundle: Bundle) -> ClassSeries:
        """The series of a model's classes. Call it in a thread: it takes long for many classes."""
        return ClassSeries.of(bundle, most=self._max_class_series)

    def model(self, bundle: Bundle, series: ClassSeries | None = None) -> ModelMetrics:
        """Return the recorder of a model version. It counts until `forget` is called.

        series: of its classes; None: work them out now.
        """
        of_version = self._versions.use(bundle)
        statistics = VersionStatistics(
            of_version, bundle, max_batch_rows=self._max_batch_rows, worker=self._run_folder.slot
        )
        return ModelMetrics(
            self._tally,
            of_version,
            bundle,
            statistics=statistics,
            series=self.series_of(bundle) if series is None else series,
        )

    def forget(self, bundle: Bundle) -> None:
        """End the recorder of a retired version."""
        self._versions.leave(bundle)

    def statistics(self, versions: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
        """Sum Triton's statistics of (model, version) over all workers. Call it in a thread."""
        return self._statistics.read(versions, in_memory=self._versions.in_memory())

    def add_gauges(self, source: Callable[[], Iterable[Gauge]]) -> None:
        """Call `source` for gauges at every scrape, in the thread that answers it."""
        self._gauges.append(source)

    def show_vectors(self, source: Callable[[], Iterable[VectorGauge]]) -> None:
        """Call `source` for the gauges by class at every scrape, in the thread that answers it."""
        self._vector_gauges = source

    def publish_gauges(self) -> None:
        """Show this worker's gauges to the others every second until `stop`, given a folder."""
        if self._run_folder.root == NO_FOLDER:
            return
        self._publishing.start()

    def stop(self) -> None:
        """Stop publishing; the counts stay in the run folder."""
        self._publishing.stop()
        self._tally.close()
        self._versions.close()

    def worker_replaced(self, reason: str) -> None:
        """Count that this worker replaced one that ended. reason: how that one ended."""
        self._tally.cells("priordial_worker_restarts", {"reason": reason})[0] += 1

    def requests(
        self, route: str, status: int, arrived: Iterable[IsRequest], now: float | None = None
    ) -> list[float]:
        """Count answered requests of a route template, and return the seconds that each took.

        now: time.perf_counter() when they were answered; None for this moment.
        """
        found = self._requests.get((route, status))
        if found is None:
            found = self._requests[route, status] = self._recorder(route, status)
        count, histogram, exemplars = found
        now, wall = time.perf_counter() if now is None else now, time.time()
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
        """Return a scrape's body, in blocks, and its content type. Call it in a thread."""
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
            in_memory=[*self._tally.in_memory(), *self._versions.in_memory()],
            accept=accept,
        )

    def _own_gauges(self) -> list[Gauge]:
        return [sample for source in self._gauges for sample in source()]

    def _publish(self) -> None:
        try:
            self._publish_once()
        except OSError as error:
            if self._publish_fault is None:
                logger.warning(
                    "this worker's gauges are missing in scrapes of other workers: %s; make room "
                    "there",
                    error,
                )
            self._publish_fault = (
                f"other workers do not see this worker's gauges: {error.strerror or error}"
            )
        else:
            self._publish_fault = None

    def _publish_once(self) -> None:
        self._run_folder.publish_gauges(self._own_gauges())
        self._run_folder.publish_exemplars(
            (name, dict(series[1]), bucket, *seen)
            for (name, series), buckets in list(self._exemplars.items())
            for bucket, seen in dict(buckets).items()
        )
