"""The composition root: builds every object and connects them; decides nothing."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from service import graph as graphs
from service.api import console, description, health, models, oip, oip_repository, priors, web
from service.api.access import Access, check_exposure, parse_keys
from service.api.adjust import Adjust
from service.api.edge import Edge
from service.api.hot import HotLane, HotRoute
from service.api.oip_infer import Infer
from service.api.predict import Predict
from service.batch_size import efficient_rows
from service.batcher import Batcher
from service.classifier import Classifier
from service.contract.bundle import Bundle, load_bundle
from service.drift import Drift
from service.machine import available_threads
from service.metrics import Metrics
from service.metrics_port import MetricsPort
from service.payloads import example_input
from service.pool import Pool
from service.prior_store import open_store
from service.prior_table import PriorTable
from service.priors import Priors
from service.repository import Repository, ServedModel, UnknownModel
from service.request_log import request_log
from service.reservoir import LogitReservoir
from service.revisions import DEFAULT
from service.run_folder import Gauge, RunFolder
from service.settings import Settings
from service.tally import Tally
from service.watchdog import Watchdog
from service.work import BatchFacts

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
MAX_REPORT_BYTES = 16 * 2**20


class NothingToServe(RuntimeError):
    """There are models, and none of them can be served; the log says why for each."""


class Service:
    """Everything that serves, built from settings. Make it, `start` it on a running loop, serve `asgi`, `stop` it."""

    def __init__(
        self,
        settings: Settings,
        run_folder: RunFolder,
        *,
        unloaded: Sequence[str] = (),
        replaces: str = "",
        everywhere: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        """With several workers: `unloaded` names models that stay out, `replaces` says why the worker before this one
        ended, and `everywhere` has all workers load or unload a model.
        """
        self.settings = settings
        self.access = Access(parse_keys(settings.api_keys), file=settings.keys)
        check_exposure(
            settings.host,
            has_keys=not self.access.open_to_all,
            allow_anonymous=settings.allow_anonymous,
        )
        graphs.check_runtime()
        self.provider = graphs.resolve_provider(settings.provider)
        self.metrics = Metrics(
            Tally(run_folder.own),
            run_folder,
            max_class_series=settings.max_class_series,
            version=VERSION,
        )
        if replaces:
            self.metrics.worker_replaced(replaces)
        self.repository = Repository(
            settings.models,
            prepare=self._prepare,
            keep_versions=settings.keep_versions,
            default_model=settings.default_model,
            unloaded=unloaded,
            everywhere=everywhere,
        )
        self.priors = Priors(open_store(settings.store))
        self.classifier = Classifier(self.priors, tau_cap=settings.tau_cap)
        self.drift = Drift(self.priors, self._newest)
        self.metrics_port: MetricsPort | None = None
        self.watchdog = Watchdog(self._busy, hang_seconds=settings.hang_seconds)
        self.threads = max(1, available_threads() // settings.workers)
        self.pool = Pool(self.threads, max_waiting_bytes=settings.max_queued_mib * 2**20)
        self.request_log = request_log(settings.log_format)
        self.start_done = asyncio.Event()
        self.draining = False
        self.asgi = self._asgi()

    @property
    def started(self) -> bool:
        """Whether models and priors are there."""
        return self.start_done.is_set()

    def drain(self) -> None:
        """Not ready from now on, and each answer closes its connection, so that clients go elsewhere."""
        self.draining = self.asgi.draining = True

    async def start(self) -> None:
        """Read priors, load and warm every model. Raises StoreUnavailable or NothingToServe."""
        await self.priors.start(optional=self.settings.store_optional)
        await self.repository.load_all()
        if self.repository.faults and not self.repository.all():
            first = next(iter(self.repository.faults.values()))
            raise NothingToServe(f"no model can be served: {first}")
        self.metrics.add_gauges(self._gauges)
        self.metrics.add_gauges(self.drift.gauges)
        self.drift.start()
        if self.settings.metrics_port:
            self.metrics_port = MetricsPort(
                self.settings.host,
                self.settings.metrics_port,
                render=self.metrics.exposition,
                allowed=self.access.status_for_observing,
            )
        if self.settings.workers > 1:
            self.metrics.publish_gauges()
        self.watchdog.start()
        self.start_done.set()

    async def stop(self) -> None:
        """Finish what was admitted, then let go of everything."""
        self.drift.stop()
        if self.metrics_port is not None:
            self.metrics_port.close()
        await self.repository.close()
        await self.priors.stop()
        self.pool.close()
        self.request_log.close()
        self.metrics.stop()
        self.watchdog.stop()

    def _prepare(self, folder: Path) -> Callable[[], ServedModel]:
        """Open and warm a version (in a worker thread); its queue is made on the loop."""
        settings = self.settings
        bundle = load_bundle(folder)
        graph = graphs.open_graph(
            folder,
            bundle,
            provider=self.provider,
            intra_op_threads=settings.intra_op_threads or self.threads,
        )
        largest = graph.fixed_rows or settings.max_batch_rows
        sizes = [graph.fixed_rows] if graph.fixed_rows else warm_sizes(largest)
        cost = _measured(graph, bundle, sizes)
        report = _report(folder)
        best = graph.fixed_rows or efficient_rows(cost)
        logger.info(
            "model %s version %d is ready on %s: %.2f ms for one row, %.2f ms for %d; batches of up to %d",
            bundle.name, bundle.version, graph.provider, 1e3 * cost[sizes[0]], 1e3 * cost[largest], largest, best,
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
        settings = self.settings
        table = PriorTable(len(bundle.class_names))
        counted = self.metrics.model(bundle)
        recent = LogitReservoir(
            len(bundle.class_names),
            max_rows=settings.recent_rows,
            max_bytes=settings.recent_mib * 2**20,
        )

        def on_batch(facts: BatchFacts) -> None:
            counted.batch(facts)
            answered, logits = facts.answered, facts.outputs.logits
            if logits is None:
                recent.pass_over(facts.rows if answered is None else int(answered.sum()))
            else:
                recent.add(logits if answered is None else logits[answered])

        batcher = Batcher(
            graph.run,
            table,
            cost_seconds=cost_seconds.__getitem__,
            max_batch_rows=largest,
            max_queued_rows=max(settings.max_queued_rows, largest),
            max_queued_bytes=settings.max_queued_mib * 2**20,
            inline_seconds=settings.inline_us * 1e-6,
            on_batch=on_batch,
            wants_logits=recent.wants_rows,
            name=f"{bundle.name} version {bundle.version}",
        )
        return ServedModel(bundle, graph, table, batcher, counted, recent, report)

    def _asgi(self) -> Edge:
        settings = self.settings
        probes = health.Health(
            live=self._why_not_live, ready=self._why_not_ready, degraded=self._why_degraded
        )
        app = web.application(
            routers=[
                health.router(probes, self.metrics, self.access),
                oip.router(repository=self.repository, health=probes, version=VERSION),
                oip_repository.router(repository=self.repository, access=self.access),
                models.router(self.repository),
                priors.router(
                    priors=self.priors,
                    find_model=lambda name: self.repository.find(name).bundle,
                    find_reservoir=self._reservoir,
                    access=self.access,
                    require_if_match=settings.require_if_match,
                    tau_cap=settings.tau_cap,
                ),
                console.router(),
            ],
            version=VERSION,
        )
        description.describe(app, tau_cap=settings.tau_cap, models=self._serving)
        scoring: dict[str, Any] = {
            "pool": self.pool,
            "timeout_seconds": settings.timeout_ms / 1000,
        }
        hot: list[HotRoute] = [
            *(
                Predict(self.repository, self.classifier, default=default, **scoring)
                for default in (True, False)
            ),
            Adjust(self.repository, self.classifier, **scoring),
            Infer(self.repository, self.classifier, **scoring),
        ]
        common: dict[str, Any] = {
            "metrics": self.metrics,
            "max_body_bytes": settings.max_body_mib * 2**20,
            "read_seconds": settings.read_seconds,
            "log_request": self.request_log,
        }
        return Edge(app, lane=HotLane(hot, access=self.access, **common), **common)

    def _reservoir(self, bundle: Bundle) -> LogitReservoir | None:
        try:
            return self.repository.find(bundle.name, bundle.version).recent
        except UnknownModel:  # unloaded since
            return None

    def _serving(self) -> list[Bundle]:
        """The newest version of each model, the default one first."""
        newest = [next(iter(found.values())).bundle for found in self.repository.all().values()]
        first = self.repository.default_name() if len(newest) == 1 else self.settings.default_model
        return sorted(newest, key=lambda bundle: (bundle.name != first, bundle.name))

    def _busy(self) -> Iterable[tuple[str, float | None]]:
        """What the watchdog watches, and since when it is at the same piece of work."""
        yield "work in the pool", self.pool.busy_since
        for batcher in self._batchers():
            yield f"a graph call of {batcher.name}", batcher.busy_since

    def _batchers(self) -> list[Batcher]:
        return [model.batcher for model in self._served()]

    def _served(self) -> list[ServedModel]:
        return [
            model for by_version in self.repository.all().values() for model in by_version.values()
        ]

    def _why_not_live(self) -> str | None:
        return self.watchdog.hung or next((b.failure for b in self._batchers() if b.failure), None)

    def _why_not_ready(self) -> str | None:
        if self.draining:
            return "draining"
        return None if self.started else "models are being loaded"

    def _why_degraded(self) -> str | None:
        state = self.priors.store_state
        if not state.degraded:
            return None
        return "; ".join(filter(None, [f"prior store {state.kind}", state.detail, *state.faults]))

    def _newest(self) -> list[tuple[Bundle, LogitReservoir]]:
        """The newest version of each model, with its recent logits."""
        newest = [next(iter(versions.values())) for versions in self.repository.all().values()]
        return [(model.bundle, model.recent) for model in newest]

    def _gauges(self) -> Iterable[Gauge]:
        for name in self.repository.all():
            for prior in {DEFAULT, *self.priors.names(name)}:
                entry = self.priors.newest(name, prior)
                revision = 0 if entry is None else entry.revision
                yield "priordial_prior_revision", {"model": name, "prior": prior}, float(revision)
        for model in self._served():
            bundle = model.bundle
            labels = {"model": bundle.name, "version": str(bundle.version)}
            yield "priordial_queued_rows", labels, float(model.batcher.queued_rows)
            yield "priordial_model_info", {**labels, "provider": model.graph.provider}, 1.0


_MEASURING = threading.Lock()
"""Models are loaded side by side; two that are measured at once would slow each other down, and look dearer than they are."""
FREE_SIZES = (1, 8, 32, 224)
"""What a dimension that a model leaves free is warmed up at: the first that the graph takes."""


def _measured(graph: graphs.Graph, bundle: Bundle, sizes: list[int]) -> dict[int, float]:
    """See graph.measure. Raises its UnusableModel, of the first free size, when the graph takes none."""
    first: graphs.UnusableModel | None = None
    for free in FREE_SIZES if None in bundle.input.shape[1:] else FREE_SIZES[:1]:
        try:
            example = example_input(bundle.input, free=free)
            with _MEASURING:
                return graphs.measure(graph, example, len(bundle.class_names), sizes)
        except graphs.UnusableModel as error:
            first = first or error
    assert first is not None
    raise first


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
