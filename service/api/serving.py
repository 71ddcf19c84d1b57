"""Routes that show and change which versions of a model serve: versions, default, rollout."""

import asyncio
from datetime import datetime
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.edge.access import Access, audit
from service.api.edge.errors import Problem
from service.api.openapi.routes import documented
from service.contract.members.body import pydantic_errors
from service.observe.metrics import Metrics
from service.priors.orders import wishes
from service.priors.orders.model_orders import ModelOrders
from service.priors.orders.wishes import AS_SET, WorkerModel
from service.repository.repository import Repository
from service.wire.json_text import parse_storable
from service.wire.shown import short

B = TypeVar("B", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Change(_Body):
    """A change to how a model is served. A member that is left out keeps its value."""

    keep_versions: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="How many of the newest versions serve; null: as --keep-versions says"
    )
    default: bool | None = Field(
        None, description="Whether it is the model of /predict; false: as --default-model says"
    )


class Trial(_Body):
    """A version to put on trial, and the share of the requests that it gets."""

    version: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(ge=1e-6, le=1)]


class Targets(BaseModel):
    """A group of addresses that Prometheus scrapes."""

    targets: list[str]
    labels: dict[str, str]


class WorkerLine(BaseModel):
    """A worker process and the versions of a model that it serves, the default version first."""

    replica: str
    worker: str
    pid: int
    seen_at: datetime
    serving: bool = Field(description="False while the worker starts")
    versions: list[int]
    order: int = Field(description="Change number of the last order that it has carried out")
    error: str | None


class ModelReplicas(BaseModel):
    """The versions that each worker serves. `agree`: all follow the newest order."""

    model: str
    order: int = Field(description="Change number of the newest order; 0 when there was none")
    loaded: bool
    keep_versions: int | None
    by: str | None
    updated_at: datetime | None
    agree: bool
    replicas: list[WorkerLine]


class VersionCounts(BaseModel):
    """The counts of a version in this replica since the replica started."""

    version: int
    requests: int
    failed: int
    rows: int
    mean_inference_ms: float | None = Field(
        description="Mean per request; null before the first request"
    )
    mean_queue_ms: float | None


class RolloutView(BaseModel):
    """The version on trial, compared with the stable one; `version` is null if none is on trial."""

    model: str
    version: int | None
    share: float | None
    stable: int | None = Field(description="The version that answers the other requests")
    withdrawn: list[int] = Field(description="Versions whose trial was taken back")
    by: str | None
    updated_at: datetime | None
    compared: list[VersionCounts]


def router(
    *, repository: Repository, metrics: Metrics, access: Access, orders: ModelOrders | None
) -> APIRouter:
    """The routes that change models, show what serves where, and list replicas for Prometheus."""
    routes, serving = APIRouter(tags=["models"]), _Serving(repository, metrics)
    change = ("malformed", "too-large", "unavailable")

    def add(method: str, path: str, endpoint: Any, role: str, **documents: Any) -> None:
        routes.add_api_route(
            f"/models/{{model}}{path}",
            endpoint,
            methods=[method],
            dependencies=[Depends(access.require(role))],
            **documented(**documents),
        )

    add(
        "GET",
        "/replicas",
        serving.model_replicas,
        "observe",
        answer=ModelReplicas,
        problems=("unavailable",),
    )
    add(
        "PATCH",
        "",
        serving.model_change,
        "operate",
        answer=ModelReplicas,
        body=Change.model_json_schema(),
        problems=change,
    )
    add("GET", "/rollout", serving.rollout, "observe", answer=RolloutView)
    add(
        "PUT",
        "/rollout",
        serving.rollout_put,
        "operate",
        answer=RolloutView,
        body=Trial.model_json_schema(),
        problems=change,
    )
    ending = ("conflict", "unavailable")
    for path, endpoint in (
        ("/rollout/promote", serving.rollout_promote),
        ("/rollout/take-back", serving.rollout_take_back),
    ):
        add("POST", path, endpoint, "operate", answer=RolloutView, problems=ending)

    @routes.get(
        "/metrics/targets",
        dependencies=[Depends(access.require("observe"))],
        tags=["health"],
        responses=_TARGET_PROBLEMS,
    )
    async def targets() -> list[Targets]:
        """The metrics port of every replica, in the form of Prometheus' HTTP service discovery."""
        found = [] if orders is None else await orders.scrape_targets()
        return [Targets(targets=found, labels={"job": "priordial"})] if found else []

    return routes


class _Serving:
    """The handlers of the routes."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics

    async def model_replicas(self, model: str) -> ModelReplicas:
        """The versions of a model that each worker of each replica serves, by its last report."""
        order, workers = self._repository.order(model), await self._repository.workers(model)
        if order is None and not any(each.versions for each in workers):
            self._repository.find(model)  # raises, and names the models there are
        wish = AS_SET if order is None else order.wish
        number = 0 if order is None else order.change
        done = all(each.order >= number and each.error is None for each in workers)
        alike = len({each.versions for each in workers if each.serving}) <= 1
        return ModelReplicas(
            model=model,
            order=number,
            loaded=wish.loaded,
            keep_versions=wish.keep_versions,
            by=None if order is None else order.by,
            updated_at=None if order is None else order.updated_at,
            agree=done and alike,
            replicas=[_line(each) for each in workers],
        )

    async def model_change(self, model: str, request: Request) -> ModelReplicas:
        """Change how many versions serve, or the default model, in every worker."""
        change, by = await _read(request, Change), request.state.by
        if "keep_versions" in change.model_fields_set:
            keep = partial(wishes.keep, versions=change.keep_versions)
            await self._repository.change(model, keep, by=by)
        if change.default is not None:
            self._repository.find(model)
            if change.default or self._repository.wanted_default == model:
                await self._repository.make_default(model if change.default else None, by=by)
        _audit(request, "change model", model, **change.model_dump(exclude_unset=True))
        return await self.model_replicas(model)

    async def rollout(self, model: str) -> RolloutView:
        """The version on trial, its share, and this replica's counts for both versions."""
        order = self._repository.order(model)
        found, wish = self._repository.find(model), self._repository.wish(model)
        trial = wish.rollout
        compared = [found.bundle.version]
        if trial is not None and trial.version in self._repository.all()[model]:
            compared.append(trial.version)
        counted = await asyncio.to_thread(
            self._metrics.statistics, [(model, each) for each in compared]
        )
        return RolloutView(
            model=model,
            version=None if trial is None else trial.version,
            share=None if trial is None else trial.share,
            stable=None if trial is None else found.bundle.version,
            withdrawn=list(wish.withdrawn),
            by=None if order is None else order.by,
            updated_at=None if order is None else order.updated_at,
            compared=[_counts(each) for each in counted],
        )

    async def rollout_put(self, model: str, request: Request) -> RolloutView:
        """Put a version on trial in every worker, or change its share."""
        trial = await _read(request, Trial)
        await self._repository.start_rollout(model, trial.version, trial.share, by=request.state.by)
        _audit(request, "put on trial", model, **trial.model_dump())
        return await self.rollout(model)

    async def rollout_promote(self, model: str, request: Request) -> RolloutView:
        """Let the version on trial answer every request, in every worker."""
        await self._repository.change(model, wishes.promote, by=request.state.by)
        _audit(request, "promote", model)
        return await self.rollout(model)

    async def rollout_take_back(self, model: str, request: Request) -> RolloutView:
        """Stop serving the version on trial, in every worker; it will not return by itself."""
        await self._repository.change(model, wishes.take_back, by=request.state.by)
        _audit(request, "take back", model)
        return await self.rollout(model)


def _audit(request: Request, action: str, model: str, **more: Any) -> None:
    audit(request, action=action, model=model, name="", **more)


async def _read(request: Request, kind: type[B]) -> B:
    """Read the body as an object of a class. Raises Problem, which names every wrong member."""
    found = parse_storable(await request.body())
    if not isinstance(found, dict):
        raise Problem(
            "invalid",
            f"the body is {short(found)}; expected an object with {', '.join(kind.model_fields)}",
        )
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        faults = [{"field": name, "message": text} for name, text in pydantic_errors(error)]
        detail = "; ".join(f"{each['field']}: {each['message']}" for each in faults)
        raise Problem("invalid", detail, errors=faults) from None


def _line(worker: WorkerModel) -> WorkerLine:
    return WorkerLine(
        replica=worker.replica,
        worker=worker.worker,
        pid=worker.pid,
        seen_at=worker.seen_at,
        serving=worker.serving,
        versions=list(worker.versions),
        order=worker.order,
        error=worker.error,
    )


def _counts(stat: dict[str, Any]) -> VersionCounts:
    times = stat["inference_stats"]
    answered = times["success"]["count"]

    def mean_ms(name: str) -> float | None:
        part = times[name]
        return part["ns"] / part["count"] / 1e6 if part["count"] else None

    return VersionCounts(
        version=int(stat["version"]),
        requests=answered,
        failed=times["fail"]["count"],
        rows=stat["inference_count"],
        mean_inference_ms=mean_ms("compute_infer"),
        mean_queue_ms=mean_ms("queue"),
    )


_TARGET_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API key is needed"},
    403: {"description": "The API key may not do this"},
    503: {"description": "The store cannot be read now"},
}
