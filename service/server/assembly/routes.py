"""Builds every route of the service, and the edge in front of them."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import fastapi

from service.api import console, dialect_probes, feedback, models, serving, web, whoami
from service.api import health as health_routes
from service.api.adjust import Adjust
from service.api.dialects import INVOCATIONS, V1, Invocations
from service.api.edge.access import Access
from service.api.edge.asgi import Edge
from service.api.edge.bodies import Room
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Route
from service.api.oip import metadata as oip
from service.api.oip import repository as oip_repository
from service.api.oip import statistics as oip_statistics
from service.api.oip.infer import Infer
from service.api.openapi import document as description
from service.api.predict import Predict
from service.api.priors import router as prior_routes
from service.batching.pool import Pool
from service.classifier import Classifier
from service.contract.bundle import Bundle
from service.observe.history import History
from service.observe.log import RequestLog
from service.observe.metrics import Metrics
from service.priors.priors import Priors
from service.priors.shift.watch import ShiftWatch
from service.priors.webhook import Changed
from service.repository.on_demand import ModelRests, UnknownModel
from service.repository.repository import Repository
from service.repository.views import ModelViews
from service.server.assembly.health import ServiceHealth
from service.settings import Settings

if TYPE_CHECKING:
    from service.observe.spans import Traces


def build_edge(
    settings: Settings,
    *,
    version: str,
    repository: Repository,
    views: ModelViews,
    classifier: Classifier,
    priors: Priors,
    kept: feedback.Kept,
    shift: ShiftWatch,
    access: Access,
    health: ServiceHealth,
    metrics: Metrics,
    history: History,
    pool: Pool,
    request_log: RequestLog,
    traces: "Traces | None",
    announce: Callable[[Changed], None],
) -> Edge:
    """Build every route and the edge in front of them.

    version: of the program. health: the reasons for which the service is not live or not ready.
    kept: answers that feedback may refer to. pool: the threads that decode bodies and encode large
    answers. announce: called with each change of a prior, for the webhook. traces: None without.
    """
    probes = health_routes.Health(
        live=health.why_not_live,
        ready=health.why_not_ready,
        degraded=health.why_degraded,
    )
    app = web.application(
        first=_loading_named(repository, access) if settings.max_loaded_mib else None,
        routers=[
            health_routes.router(probes, metrics, history, access),
            oip_statistics.router(repository=repository, metrics=metrics, access=access),
            oip.router(repository=repository, health=probes, version=version),
            oip_repository.router(repository=repository, access=access),
            dialect_probes.router(
                repository=repository, health=probes, health_route=settings.health_route
            ),
            models.router(repository, access),
            serving.router(
                repository=repository,
                metrics=metrics,
                access=access,
                orders=priors.orders,
            ),
            whoami.router(access),
            prior_routes.router(
                priors=priors,
                find_model=views.bundle,
                find_reservoir=views.reservoir,
                shift=shift,
                access=access,
                require_if_match=settings.require_if_match,
                tau_cap=settings.tau_cap,
                max_flip_share=settings.max_flip_share,
                announce=announce,
            ),
            feedback.router(
                kept,
                repository=repository,
                priors=priors,
                access=access,
                workers=settings.workers,
            ),
            console.router(),
        ],
        version=version,
    )
    description.describe(
        app, tau_cap=settings.tau_cap, models=views.bundles, sample_of=_sample_of(views, access)
    )
    routes = _scoring_routes(settings, repository, classifier, pool)
    common: dict[str, Any] = {
        "metrics": metrics,
        "max_body_bytes": settings.max_body_mib * 2**20,
        "read_seconds": settings.read_seconds,
        "log_requests": request_log if traces is None else traces.log(request_log),
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
    edge["max_unread_bytes"] = room.most
    lane: dict[str, Any] = {"access": access, "room": room}
    if traces is None:
        return Edge(app, lane=ScoringLane(routes, **lane, **common), **common, **edge)
    from service.api.edge.traced_lane import TracedLane

    traced = TracedLane(routes, start_span=traces.begin, **lane, **common)
    return Edge(traces.cold(app), lane=traced, **common, **edge)


def _scoring_routes(
    settings: Settings, repository: Repository, classifier: Classifier, pool: Pool
) -> list[Route]:
    """Return the routes that score rows. They do not pass through FastAPI."""
    scoring: dict[str, Any] = {"pool": pool, "timeout_seconds": settings.timeout_ms / 1000}
    by_default, by_name = (
        Predict(
            repository,
            classifier,
            default=default,
            max_body_bytes=settings.max_body_mib * 2**20,
            **scoring,
        )
        for default in (True, False)
    )
    routes: list[Route] = [
        by_default,
        by_name,
        Adjust(repository, classifier, **scoring),
        Infer(repository, classifier, **scoring),
        V1(by_name, repository.find, template="/v1/models/{model}:predict"),
        *(Invocations(by_default, repository.find, template=path) for path in INVOCATIONS),
    ]
    if path := settings.predict_route:
        routes.append(Invocations(by_default, repository.find, template=path))
    return routes


def _loading_named(
    repository: Repository, access: Access
) -> Callable[[fastapi.Request], Awaitable[None]]:
    """Return the function that is called before each route, where models are loaded on demand."""

    async def load_named(request: fastapi.Request) -> None:
        """Load the model that a path names, if it rests and the caller may use the service."""
        name = request.path_params.get("model")
        if name is None or request.scope["path"].endswith(("/load", "/unload")):
            return
        access.identify(request.scope["headers"])
        try:
            repository.find(name)
        except ModelRests as rests:
            await rests.load()
        except UnknownModel:
            pass  # the route answers with this error in its own format

    return load_named


def _sample_of(views: ModelViews, access: Access) -> Callable[[Bundle], Any]:
    """Return the function that finds a sample input of a version, if anyone may see it."""
    return lambda bundle: views.sample(bundle) if access.open_to_all else None
