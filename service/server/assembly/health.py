"""What the health routes say of the service: whether it is live, ready and not degraded."""

import asyncio
import shlex
from collections.abc import Iterator

from service.observe.log import RequestLog
from service.observe.metrics import Metrics
from service.observe.run_folder import Gauge
from service.priors.priors import Priors
from service.repository.repository import Repository
from service.repository.views import ModelViews
from service.server.assembly.watchdog import Watchdog
from service.settings import Settings
from service.stores.mirror import Mirror


class ServiceHealth:
    """Collects the faults of all parts into one reason for each health route."""

    def __init__(
        self,
        settings: Settings,
        *,
        repository: Repository,
        views: ModelViews,
        priors: Priors,
        metrics: Metrics,
        watchdog: Watchdog,
        mirror: Mirror | None,
        start_done: asyncio.Event,
        request_log: RequestLog,
    ) -> None:
        """Note which parts to ask; no fault is collected yet.

        settings: decide whether a service without a model is ready. repository, views: the models
        and their batchers. priors, metrics, watchdog, request_log: the parts whose faults count.
        mirror: the local copy of a URL of models, if any. start_done: set once models and priors
        are loaded; until then the service is not ready.
        """
        self._request_log = request_log
        self._settings, self._repository, self._priors = settings, repository, priors
        self._views = views
        self._metrics, self._watchdog, self._mirror = metrics, watchdog, mirror
        self._start_done = start_done
        self.draining = False

    def why_not_live(self) -> str | None:
        """The reason for which the process must be restarted; None while it is live."""
        failures = (each.lost or each.failure for each in self._views.batchers())
        return self._watchdog.hung or next(filter(None, failures), None)

    def why_not_ready(self) -> str | None:
        """The reason for which no requests should be sent here; None while it is ready."""
        if self.draining:
            return "draining"
        if not self._start_done.is_set():
            return "models are being loaded"
        if not self._repository.known() and not self._settings.allow_no_models:
            return self._why_no_model()
        return None

    def _why_no_model(self) -> str:
        if self._mirror is not None and self._mirror.fault is not None:
            return f"no model is served yet, and it is tried again: {self._mirror.fault}"
        for reason in list(self._repository.faults.values()):  # a scrape asks while models load
            return f"no model is served: {reason}; correct this, then load the model again"
        for reason in self._repository.misplaced():
            return f"no model is served: {reason}; move it, and load the model (SIGHUP)"
        return (
            f"no model is served from '{self._settings.models}': publish one there "
            f"({self._how_to_publish()}) and load it "
            "(SIGHUP, or POST /v2/repository/models/NAME/load)"
        )

    def why_degraded(self) -> str | None:
        """Every fault that the service works around; None while there is none."""
        state, repository = self._priors.store_state, self._repository
        reasons = [f"the load of {what} hangs" for what in repository.loads.hanging()]
        if self._mirror is not None and self._mirror.fault is not None:
            reasons.append(f"models: {self._mirror.fault}")
        if state.degraded:
            reasons += [f"prior store {state.kind}", state.detail, *state.faults]
        default = repository.wanted_default
        if default is not None and default not in repository.all():
            reasons.append(f"the default model '{default}' is not served (GET /models says why)")
        faults = (repository.folder_fault, self._metrics.fault, self._request_log.fault)
        reasons += [each or "" for each in faults]
        return "; ".join(filter(None, reasons)) or None

    def gauges(self) -> Iterator[Gauge]:
        """Yield the state of /health/ready as gauges."""
        ready = self.why_not_ready() is None
        yield "priordial_ready", {}, float(ready)
        yield "priordial_degraded", {}, float(ready and self.why_degraded() is not None)

    def _how_to_publish(self) -> str:
        models = str(self._settings.models)
        if self._mirror is not None:
            return f"copy a published folder NAME/VERSION to {models}"
        return f"priordial import FILE.onnx --name NAME --models {shlex.quote(models)}"
