"""Builds every object of the service and connects them; decides nothing itself."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from service.api import feedback
from service.api.edge.access import Access
from service.api.edge.keys import parse_key_setting
from service.api.priors.automatic import AutomaticSteps
from service.batching.pool import Pool
from service.classifier import Classifier
from service.contract.bundle import Bundle
from service.contract.extras import VERSION
from service.contract.nearest import did_you_mean
from service.contract.resources import available_threads
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
from service.priors.shift.watch import Automatic, ShiftWatch
from service.priors.store import open_store, store_url
from service.priors.webhook import Changed, Webhook
from service.process.machine import own_address
from service.repository.loading import Loader, queue_bounds
from service.repository.repository import Repository
from service.repository.views import ModelViews
from service.server.assembly.gauges import Gauges
from service.server.assembly.health import ServiceHealth
from service.server.assembly.loop_turns import LoopTurns
from service.server.assembly.routes import build_edge
from service.server.assembly.source import ModelSource
from service.server.assembly.watchdog import Watchdog
from service.settings import InvalidSetting, Settings, check_extras, check_paths, check_threads

if TYPE_CHECKING:
    from service.api.rpc.front import Front

logger = logging.getLogger(__name__)

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
        check_extras(settings)
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
        self.source = ModelSource(settings)
        self.repository = Repository(
            self.source.folder,
            prepare=self.source.preparing(self._loader().prepare),
            refresh=None if self.source.mirror is None else self.source.refresh,
            keep_versions=settings.keep_versions,
            load_seconds=settings.load_seconds,
            default_model=settings.default_model,
            rollout=settings.rollout,
            max_loaded_bytes=settings.max_loaded_mib * 2**20,
            orders=self.priors.orders,
            retired=self._retired,
        )
        self.views = ModelViews(self.repository)
        self.classifier = Classifier(self.priors, tau_cap=settings.tau_cap)
        self.kept = feedback.kept(self.answers, self.repository, self.priors, self.views.reservoir)
        self.drift = Drift(self.priors, self.views.with_logits)
        self.shift = ShiftWatch(
            self.priors,
            self.views.followed,
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
            lost=self.views.lost_graph,
            end=os._exit if owns_process else None,
        )
        self.request_log = request_log(settings.log_format)
        self.start_done = asyncio.Event()
        self.health = ServiceHealth(
            settings,
            repository=self.repository,
            views=self.views,
            priors=self.priors,
            metrics=self.metrics,
            watchdog=self.watchdog,
            mirror=self.source.mirror,
            start_done=self.start_done,
            request_log=self.request_log,
        )
        self._polling: asyncio.Task[None] | None = None
        self.webhook: Webhook | None = None
        self.turns: LoopTurns | None = None
        self.steps: AutomaticSteps | None = None
        self.grpc: Front | None = None
        self.pool = Pool(self.threads, max_waiting_bytes=settings.max_queued_mib * 2**20)
        self.asgi = build_edge(
            settings,
            version=VERSION,
            repository=self.repository,
            views=self.views,
            classifier=self.classifier,
            priors=self.priors,
            kept=self.kept,
            shift=self.shift,
            access=self.access,
            health=self.health,
            metrics=self.metrics,
            history=self.history,
            pool=self.pool,
            request_log=self.request_log,
            traces=self.traces,
            announce=self._announce,
        )

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
        self.request_log.start()
        self.pool.start()
        await self.priors.start(optional=self.settings.store_optional)
        if store_url(self.settings.store) != self.settings.store:
            logger.info("priors are kept in %s", store_url(self.settings.store))
        await self.source.refresh()
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
            find_reservoir=self.views.reservoir,
            max_flip_share=self.settings.max_flip_share,
            announce=self._announce,
        )
        self.shift.start()
        self.answers.start(lambda: self.kept.evaluation.refresh(self.views.bundles()))
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
            self.turns = LoopTurns()
            self.turns.start()
            self.metrics.add_gauges(self.turns.gauges)
        if self.source.poll_seconds:
            poll = self.source.poll(self.repository.load_all)
            self._polling = asyncio.get_running_loop().create_task(poll)
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
        for thread in (self.drift, self.history, self.shift, self.answers):
            await asyncio.to_thread(thread.stop)
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
        await asyncio.to_thread(self.metrics.stop)
        self.watchdog.stop()
        if self.turns is not None:
            self.turns.stop()

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

    def _adopt(self, bundle: Bundle, automatic: Automatic) -> None:
        if self.steps is not None and not self.health.draining:
            self.steps.take(bundle, automatic)

    def _announce(self, changed: Changed) -> None:
        if self.webhook is not None:
            self.webhook.announce(changed)

    def _retired(self, bundle: Bundle) -> None:
        self.source.release(bundle)
        self.priors.forget(bundle)
        self.answers.forget(bundle)
        self.metrics.forget(bundle)

    def _busy(self) -> Iterable[tuple[str, float | None]]:
        """Yield each kind of work that the watchdog checks, and when its current piece began."""
        yield "work in the pool", self.pool.busy_since
        for batcher in self.views.batchers():
            yield f"a graph call of {batcher.name}", batcher.busy_since

    @property
    def queued_rows(self) -> int:
        """The number of rows that wait in the queues of all models."""
        return self.views.queued_rows

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
        self.repository.prepare_with(self.source.preparing(self._loader().prepare))

    def _check_default_model(self) -> None:
        """Raise InvalidSetting when no model has the name of --default-model."""
        default, names = self.settings.default_model, self.repository.names_on_disk()
        if default is None or default in names or self.settings.allow_no_models:
            return
        raise InvalidSetting(
            f"--default-model is '{default}'; expected a model of {self.settings.models}, which "
            f"holds {', '.join(names) or 'none'}{did_you_mean(default, names)}"
        )
