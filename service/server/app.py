"""Builds every object of the service and connects them; decides nothing itself."""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request

from service.api import console, dialect_probes, feedback, health, models, serving, web, whoami
from service.api.adjust import Adjust
from service.api.dialects import V1, Invocations
from service.api.edge.access import Access
from service.api.edge.asgi import Edge
from service.api.edge.bodies import Room
from service.api.edge.keys import parse_key_setting
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Route
from service.api.oip import metadata as oip
from service.api.oip import repository as oip_repository
from service.api.oip import statistics as oip_statistics
from service.api.oip.infer import Infer
from service.api.openapi import document as description
from service.api.predict import Predict
from service.api.priors import router as priors
from service.api.priors.automatic import AutomaticSteps
from service.batching.pool import Pool
from service.classifier import Classifier
from service.contract.bundle import Bundle
from service.contract.nearest import did_you_mean
from service.evaluate.answers import Answers
from service.evaluate.shared import AnswerStore, SharedAnswers
from service.graph import providers
from service.observe.history import History
from service.observe.log import request_log
from service.observe.metrics import Metrics
from service.observe.port import MetricsPort
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally
from service.observe.traces import open_traces
from service.priors.drift import Drift
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.shift.watch import Automatic, Served, ShiftWatch
from service.priors.store import open_store, store_url
from service.priors.webhook import Changed, Webhook
from service.process.machine import available_threads, own_address
from service.repository.loading import Loader, queue_bounds
from service.repository.on_demand import ModelRests, UnknownModel
from service.repository.report import sample_instance
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.server.gauges import Gauges
from service.server.health import ServiceHealth, batchers
from service.server.loop_turns import LoopTurns
from service.server.watchdog import Watchdog
from service.settings import InvalidSetting, Settings, check_paths, check_threads
from service.stores.mirror import open_mirror
from service.stores.remote import RemoteUnavailable

if TYPE_CHECKING:
    from service.api.rpc.front import Front

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
URL_POLL_SECONDS = 30.0
"""Seconds between two polls of a URL of models, unless --models-poll-seconds is set."""
GRPC_STOP_SECONDS = 10.0
"""Seconds that running gRPC calls get at shutdown, after HTTP requests have finished."""


class NothingToServe(RuntimeError):
    """Models exist, but none can be served; the log gives the reason for each."""


class Service:
    """The whole service of one process, built from settings.

    Construct it, await `start` on a running event loop, serve `asgi`, then `drain` and await
    `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        run_folder: RunFolder,
        *,
        replaces: str = "",
        owns_process: bool = True,
    ) -> None:
        """Build the service without loading anything.

        replaces: how the worker before this one ended; empty for the first.
        owns_process: whether the process may be ended when it hangs.
        """
        check_paths(settings)
        check_threads(settings, processors=available_threads())
        self.settings = settings
        self.access = Access(parse_key_setting(settings.api_keys), file=settings.keys)
        providers.check_runtime()
        self.traces = open_traces(VERSION) if settings.traces else None
        self.device = providers.Device(
            settings.device_id, memory_mib=settings.gpu_memory_mib, tf32=settings.tf32
        )
        self.provider = providers.resolve_provider(settings.provider, self.device)
        self.metrics = Metrics(
            Tally(run_folder.own),
            run_folder,
            max_class_series=settings.max_class_series,
            max_batch_rows=settings.max_batch_rows,
            version=VERSION,
        )
        self.history = History(lambda: self.metrics.exposition("")[0])
        if replaces:
            self.metrics.worker_replaced(replaces)
        self.threads = max(1, available_threads() // settings.workers)
        store = open_store(settings.store, reads=settings.store_reads)
        self.answers = Answers(
            run_folder.version,
            run_folder.version_tallies,
            max_bytes=settings.feedback_mib * 2**20,
            seconds=settings.feedback_hours * 3600,
            shared=self._shared(store.answers, run_folder.slot),
            share_seconds=settings.shift_seconds,
        )
        self.priors = Priors(store)
        self.mirror = open_mirror(
            settings.models,
            settings.models_cache,
            max_bytes=settings.models_cache_mib * 2**20,
        )
        self.repository = Repository(
            self._models_folder(),
            prepare=self._prepare(),
            refresh=None if self.mirror is None else self._refresh_mirror,
            keep_versions=settings.keep_versions,
            load_seconds=settings.load_seconds,
            default_model=settings.default_model,
            rollout=settings.rollout,
            max_loaded_bytes=settings.max_loaded_mib * 2**20,
            orders=self.priors.orders,
            retired=self._retired,
        )
        self.classifier = Classifier(self.priors, tau_cap=settings.tau_cap)
        self.kept = feedback.kept(self.answers, self.repository, self.priors, self._reservoir)
        self.drift = Drift(self.priors, self._newest)
        self.shift = ShiftWatch(
            self.priors,
            self._followed,
            kept=store.kept,
            every_seconds=settings.shift_seconds,
            replica=self._replica,
            slot=run_folder.slot,
            act=self._adopt,
        )
        self.metrics_port: MetricsPort | None = None
        self.watchdog = Watchdog(
            self._busy,
            hang_seconds=settings.hang_seconds,
            lost=self._lost_graph,
            end=os._exit if owns_process else None,
        )
        self.request_log = request_log(settings.log_format)
        self.start_done = asyncio.Event()
        self.health = ServiceHealth(
            settings,
            repository=self.repository,
            priors=self.priors,
            metrics=self.metrics,
            watchdog=self.watchdog,
            mirror=self.mirror,
            start_done=self.start_done,
            request_log=self.request_log,
        )
        self._polling: asyncio.Task[None] | None = None
        self.webhook: Webhook | None = None
        self.steps: AutomaticSteps | None = None
        self.grpc: Front | None = None
        self.pool = Pool(self.threads, max_waiting_bytes=settings.max_queued_mib * 2**20)
        self.asgi = self._asgi()

    @property
    def _replica(self) -> str:
        """This replica's name in the store: its host and a port that it alone listens on.

        Behind Ray only the port of the metrics is a replica's own.
        """
        return f"{socket.gethostname()}:{self.settings.metrics_port or self.settings.port}"

    def drain(self) -> None:
        """Make readiness fail, and close each connection after its next answer.

        Requests are still answered.
        """
        self.health.draining = self.asgi.draining = True
        self.repository.end_loading("the service is shutting down")

    async def start(self) -> None:
        """Read priors, load and warm every model.

        Raises StoreUnavailable, NothingToServe, PortTaken, or InvalidSetting for --default-model.
        """
        await self.priors.start(optional=self.settings.store_optional)
        if store_url(self.settings.store) != self.settings.store:
            logger.info("priors are kept in %s", store_url(self.settings.store))
        await self._refresh_mirror()
        self._check_default_model()
        await self.repository.load_all()
        if self.repository.faults and not self.repository.known():
            first = next(iter(self.repository.faults.values()))
            raise NothingToServe(f"no model can be served: {first}")
        gauges = Gauges(
            self.repository,
            self.priors,
            self.drift,
            self.shift,
            self.kept.evaluation,
            max_class_series=self.settings.max_class_series,
        )
        self.metrics.add_gauges(gauges.numbers)
        self.metrics.add_gauges(self.health.gauges)
        self.metrics.show_vectors(gauges.vectors)
        self.drift.start()
        self.history.start()
        self.steps = AutomaticSteps(
            self.priors,
            find_reservoir=self._reservoir,
            max_flip_share=self.settings.max_flip_share,
            announce=self._announce,
        )
        self.shift.start()
        self.answers.start(lambda: self.kept.evaluation.refresh(self._serving()))
        if self.settings.metrics_port:
            self.metrics_port = MetricsPort(
                self.settings.host,
                self.settings.metrics_port,
                render=self.metrics.exposition,
                allowed=self.access.status_for_observing,
            )
            if self.priors.orders is not None:
                host = own_address(self.settings.host)
                self.priors.orders.show_metrics(f"{host}:{self.metrics_port.port}")
        if self.settings.grpc_port:
            await self._start_grpc()
        if self.settings.workers > 1:
            self.metrics.publish_gauges()
        if self.settings.webhook:
            self.webhook = Webhook(self.settings.webhook, self.settings.webhook_secret)
        if self.settings.measure_loop_turns:
            turns = LoopTurns()
            turns.start()
            self.metrics.add_gauges(turns.gauges)
        if self._poll_seconds:
            self._polling = asyncio.get_running_loop().create_task(self._poll_models())
        self.watchdog.start()
        self.start_done.set()

    async def _start_grpc(self) -> None:
        from service.api.rpc.front import Front

        front = Front(
            self.asgi,
            ready=self.health.why_not_ready,
            max_request_bytes=min(self.settings.max_grpc_mib, self.settings.max_body_mib) * 2**20,
            max_answer_bytes=self.settings.max_body_mib * 2**20,
            shares_port=self.settings.workers > 1,
        )
        await front.start(self.settings.host, self.settings.grpc_port)
        self.grpc = front

    async def stop(self) -> None:
        """Finish the admitted requests, then release everything."""
        if self.grpc is not None:
            await self.grpc.stop(seconds=GRPC_STOP_SECONDS)
        if self._polling is not None:
            self._polling.cancel()
        self.drift.stop()
        self.history.stop()
        await asyncio.to_thread(self.shift.stop)
        await asyncio.to_thread(self.answers.stop)
        if self.metrics_port is not None:
            self.metrics_port.close()
        await self.repository.close()
        await self.priors.stop()
        if self.webhook is not None:
            self.webhook.close()
        self.pool.close()
        self.request_log.close()
        if self.traces is not None:
            await self.traces.close()
        self.metrics.stop()
        self.watchdog.stop()

    def _shared(self, store: AnswerStore, slot: int) -> SharedAnswers | None:
        """The part that shares kept answers through the store; None if they stay on this host."""
        if not self.settings.feedback_store_rows:
            return None
        return SharedAnswers(
            store,
            replica=self._replica,
            slot=slot,
            workers=self.settings.workers,
            max_rows=self.settings.feedback_store_rows,
            seconds=self.settings.feedback_hours * 3600,
        )

    def _loader(self) -> Loader:
        settings = self.settings
        return Loader(
            provider=self.provider,
            device=self.device,
            intra_op_threads=settings.intra_op_threads or self.threads,
            max_batch_rows=settings.max_batch_rows,
            max_queued_rows=settings.max_queued_rows,
            max_queue_ms=settings.max_queue_ms,
            max_queued_bytes=settings.max_queued_mib * 2**20,
            inline_seconds=settings.inline_us * 1e-6,
            recent_rows=settings.recent_rows,
            recent_bytes=settings.recent_mib * 2**20,
            calibrated_source=settings.calibrated_source,
            metrics=self.metrics,
            tracer_of=None if self.traces is None else self.traces.of_model,
            answers=self.answers,
        )

    def _asgi(self) -> Edge:
        settings = self.settings
        probes = health.Health(
            live=self.health.why_not_live,
            ready=self.health.why_not_ready,
            degraded=self.health.why_degraded,
        )
        app = web.application(
            first=self._load_named if settings.max_loaded_mib else None,
            routers=[
                health.router(probes, self.metrics, self.history, self.access),
                oip_statistics.router(
                    repository=self.repository, metrics=self.metrics, access=self.access
                ),
                oip.router(repository=self.repository, health=probes, version=VERSION),
                oip_repository.router(repository=self.repository, access=self.access),
                dialect_probes.router(
                    repository=self.repository, health=probes, health_route=settings.health_route
                ),
                models.router(self.repository, self.access),
                serving.router(
                    repository=self.repository,
                    metrics=self.metrics,
                    access=self.access,
                    orders=self.priors.orders,
                ),
                whoami.router(self.access),
                priors.router(
                    priors=self.priors,
                    find_model=lambda name: self.repository.find(name).bundle,
                    find_reservoir=self._reservoir,
                    shift=self.shift,
                    access=self.access,
                    require_if_match=settings.require_if_match,
                    tau_cap=settings.tau_cap,
                    max_flip_share=settings.max_flip_share,
                    announce=self._announce,
                ),
                feedback.router(
                    self.kept,
                    repository=self.repository,
                    priors=self.priors,
                    access=self.access,
                    workers=settings.workers,
                ),
                console.router(),
            ],
            version=VERSION,
        )
        description.describe(
            app, tau_cap=settings.tau_cap, models=self._serving, sample_of=self._sample
        )
        scoring: dict[str, Any] = {
            "pool": self.pool,
            "timeout_seconds": settings.timeout_ms / 1000,
        }
        by_default, by_name = (
            Predict(
                self.repository,
                self.classifier,
                default=default,
                max_body_bytes=settings.max_body_mib * 2**20,
                **scoring,
            )
            for default in (True, False)
        )
        routes: list[Route] = [
            by_default,
            by_name,
            Adjust(self.repository, self.classifier, **scoring),
            Infer(self.repository, self.classifier, **scoring),
            V1(by_name, self.repository.find, template="/v1/models/{model}:predict"),
            Invocations(by_default, self.repository.find, template="/invocations"),
        ]
        if path := settings.predict_route:
            routes.append(Invocations(by_default, self.repository.find, template=path))
        log = self.request_log
        common: dict[str, Any] = {
            "metrics": self.metrics,
            "max_body_bytes": settings.max_body_mib * 2**20,
            "read_seconds": settings.read_seconds,
            "log_requests": log if self.traces is None else self.traces.log(log),
        }
        edge: dict[str, Any] = {
            "max_header_bytes": settings.max_header_kib * 1024,
            "max_url_bytes": settings.max_url_kib * 1024,
            "root_path": settings.root_path,
        }
        room = Room.of_worker(
            bodies_mib=settings.max_bodies_mib,
            body_mib=settings.max_body_mib,
            workers=settings.workers,
        )
        lane: dict[str, Any] = {"access": self.access, "room": room}
        if self.traces is None:
            return Edge(app, lane=ScoringLane(routes, **lane, **common), **common, **edge)
        from service.api.edge.traced_lane import TracedLane

        traced = TracedLane(routes, start_span=self.traces.begin, **lane, **common)
        return Edge(self.traces.cold(app), lane=traced, **common, **edge)

    def _adopt(self, bundle: Bundle, automatic: Automatic) -> None:
        if self.steps is not None and not self.health.draining:
            self.steps.take(bundle, automatic)

    def _announce(self, changed: Changed) -> None:
        if self.webhook is not None:
            self.webhook.announce(changed)

    # -- models from a URL, and polling for new versions

    def _models_folder(self) -> Path:
        return Path(self.settings.models) if self.mirror is None else self.mirror.folder

    def _prepare(self) -> Callable[[Path], Callable[[], ServedModel]]:
        prepare = self._loader().prepare
        return prepare if self.mirror is None else self.mirror.loading(prepare)

    async def _refresh_mirror(self) -> None:
        """Bring the local copy up to date; while the store is away, the existing copy serves."""
        if self.mirror is None:
            return
        try:
            await asyncio.to_thread(self.mirror.refresh)
        except RemoteUnavailable as error:
            logger.warning(
                "cannot look for new versions, so the copied ones keep serving: %s", error
            )

    @property
    def _poll_seconds(self) -> float:
        return self.settings.models_poll_seconds or (URL_POLL_SECONDS if self.mirror else 0.0)

    async def _poll_models(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.repository.load_all()
            except Exception:
                logger.exception(
                    "looking for new versions failed; the next poll tries again; report this with "
                    "the traceback"
                )

    async def _load_named(self, request: Request) -> None:
        """Load the model that a path names, if it rests and the caller may use the service."""
        name = request.path_params.get("model")
        if name is None or request.scope["path"].endswith(("/load", "/unload")):
            return
        self.access.identify(request.scope["headers"])
        try:
            self.repository.find(name)
        except ModelRests as rests:
            await rests.load()
        except UnknownModel:
            pass  # the route answers with this error in its own format

    def _retired(self, bundle: Bundle) -> None:
        if self.mirror is not None:
            self.mirror.release((bundle.name, bundle.version))
        self.priors.forget(bundle)
        self.answers.forget(bundle)
        self.metrics.forget(bundle)

    def _reservoir(self, bundle: Bundle) -> LogitReservoir | None:
        try:
            return self.repository.find(bundle.name, bundle.version).recent
        except UnknownModel:  # unloaded since
            return None

    def _sample(self, bundle: Bundle) -> Any | None:
        """Return a sample input from the model's report, if anyone may see it."""
        if not self.access.open_to_all:
            return None
        try:
            return sample_instance(self.repository.find(bundle.name, bundle.version).report)
        except UnknownModel:  # unloaded since
            return None

    def _serving(self) -> list[Bundle]:
        """Return the newest version of each model, the default model first."""
        newest = [model.bundle for model in self.repository.newest()]
        first = (
            self.repository.default_name() if len(newest) == 1 else self.repository.wanted_default
        )
        return sorted(newest, key=lambda bundle: (bundle.name != first, bundle.name))

    def _busy(self) -> Iterable[tuple[str, float | None]]:
        """Yield each kind of work that the watchdog checks, and when its current piece began."""
        yield "work in the pool", self.pool.busy_since
        for batcher in batchers(self.repository):
            yield f"a graph call of {batcher.name}", batcher.busy_since

    def _lost_graph(self) -> str | None:
        return next((each.lost for each in batchers(self.repository) if each.lost), None)

    @property
    def queued_rows(self) -> int:
        """The number of rows that wait in the queues of all models."""
        return sum(batcher.queued_rows for batcher in batchers(self.repository))

    def reconfigure(self, settings: Settings) -> None:
        """Apply a new `max_queue_ms` to models that serve and to those loaded later."""
        self.settings = settings
        for by_version in self.repository.all().values():
            for model in by_version.values():
                model.batcher.bound(
                    *queue_bounds(
                        model.row_seconds, settings.max_queue_ms, full_batch=model.full_batch
                    )
                )
        self.repository.prepare_with(self._prepare())

    def _check_default_model(self) -> None:
        """Raise InvalidSetting when no model has the name of --default-model."""
        default, names = self.settings.default_model, self.repository.names_on_disk()
        if default is None or default in names or self.settings.allow_no_models:
            return
        raise InvalidSetting(
            f"--default-model is '{default}'; expected a model of {self.settings.models}, which "
            f"holds {', '.join(names) or 'none'}{did_you_mean(default, names)}"
        )

    def _followed(self) -> list[Served]:
        """Return the newest version of each model, with the data that its tracker reads."""
        return [
            Served(model.bundle, model.recent, model.stream) for model in self.repository.newest()
        ]

    def _newest(self) -> list[tuple[Bundle, LogitReservoir]]:
        """Return the newest version of each model, with its recent logits."""
        return [(model.bundle, model.recent) for model in self.repository.newest()]
