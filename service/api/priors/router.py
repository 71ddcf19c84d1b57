"""The routes of priors: /priors for the default model, /models/{model}/priors for each model."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from service.api.edge.access import Access
from service.api.openapi import routes as openapi
from service.api.priors import views
from service.api.priors.insight import Insight
from service.api.priors.routes import Announce, FindModel, PriorRoutes
from service.api.priors.shift import ShiftRoutes, ShiftView
from service.contract.bundle import Bundle
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.shift.watch import ShiftWatch

FindReservoir = Callable[[Bundle], LogitReservoir | None]


def router(
    *,
    priors: Priors,
    find_model: FindModel,
    find_reservoir: FindReservoir,
    shift: ShiftWatch,
    access: Access,
    require_if_match: bool = False,
    tau_cap: float,
    max_flip_share: float = 1.0,
    announce: Announce = lambda _: None,
) -> APIRouter:
    """Make all routes of priors.

    find_model: returns the model of a name, or the default model for None; may raise UnknownModel.
    find_reservoir: returns the recent logits of a model version, or None when none are kept.
    shift: tracks the class mix of traffic.
    require_if_match: refuse a write without If-Match. tau_cap: largest tau of a request.
    max_flip_share: largest share of recent answers that a write may change without `force`.
    announce: called with every change that was stored.
    """
    insight = Insight(
        priors,
        find_model,
        find_reservoir,
        tau_cap=tau_cap,
        max_flip_share=max_flip_share,
        tracked=shift.tracked,
    )
    prior = PriorRoutes(
        priors, find_model, insight, require_if_match=require_if_match, announce=announce
    )
    watched = ShiftRoutes(priors, find_model, shift)
    routes = APIRouter(tags=["priors"])

    def add(
        method: str,
        path: str,
        call: Callable[..., Any],
        *,
        role: str,
        answer: Any,
        linked: bool = False,
        **more: Any,
    ) -> None:
        needs = [Depends(access.require(role))]
        for prefix, suffix, names_model in (
            ("", "", []),
            ("/models/{model}", "_of_model", [Depends(_model_in_path)]),
        ):
            links = openapi.prior_links(suffix) if linked else None
            routes.add_api_route(
                prefix + path,
                call,
                methods=[method],
                operation_id=f"prior_{call.__name__}{suffix}",
                dependencies=[*needs, *names_model],
                response_class=Response,
                **openapi.documented(answer, links=links, **more),
            )

    change = (
        "malformed",
        "conflict",
        "stale",
        "too-large",
        "unsupported-media-type",
        "precondition-required",
        "unavailable",
    )
    judged = (*change, "too-many-flips")
    put: dict[str, Any] = {"linked": True, "also": 201, "body": openapi.PRIOR, "problems": judged}
    add("GET", "/priors", prior.all, role="observe", answer=views.PriorList)
    add("PUT", "/priors", prior.put_default, role="operate", answer=views.PriorView, **put)
    add("PUT", "/priors/{name}", prior.put, role="operate", answer=views.PriorView, **put)
    add("GET", "/priors/{name}", prior.one, role="observe", answer=views.PriorView, also=304,
        problems=("malformed", "conflict", "unavailable"))  # fmt: skip
    add(
        "PATCH",
        "/priors/{name}",
        prior.add,
        role="operate",
        answer=views.PriorView,
        body=openapi.PATCH,
        problems=judged,
    )
    add("DELETE", "/priors/{name}", prior.delete, role="operate", answer=None, problems=change)
    add(
        "GET",
        "/priors/{name}/revisions",
        prior.revisions,
        role="observe",
        answer=views.RevisionPage,
        problems=("unavailable",),
    )
    add(
        "POST",
        "/priors/{name}/rollback",
        prior.rollback,
        role="operate",
        answer=views.PriorView,
        body=openapi.ROLLBACK,
        problems=change,
    )
    add(
        "GET",
        "/priors/{name}/replicas",
        prior.replicas,
        role="observe",
        answer=views.Replicas,
        problems=("unavailable",),
    )
    add(
        "POST",
        "/priors/{name}/preview",
        insight.preview,
        role="observe",
        answer=views.PreviewView,
        body=openapi.PREVIEW,
        problems=(
            "malformed",
            "conflict",
            "too-large",
            "unsupported-media-type",
            "overloaded",
            "unavailable",
        ),
    )
    add(
        "GET",
        "/priors/{name}/estimate",
        insight.estimate,
        role="observe",
        answer=views.EstimateView,
        problems=("malformed", "conflict", "overloaded"),
    )
    add(
        "POST",
        "/priors/{name}/estimate/adopt",
        prior.adopt,
        role="operate",
        answer=views.PriorView,
        problems=(*judged, "overloaded", "not-adoptable"),
    )
    add(
        "GET",
        "/priors/{name}/shift",
        watched.shift,
        role="observe",
        answer=ShiftView,
        problems=("malformed", "conflict"),
    )
    return routes


async def _model_in_path(model: Annotated[str, Path(description="A model's name")]) -> None:
    """Declare the path parameter for /openapi.json; PriorRoutes reads it from the request."""
