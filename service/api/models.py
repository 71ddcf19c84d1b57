"""GET /models: the models and versions that serve, their origin, and why a version does not."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Response

from service.api.edge.access import Access
from service.api.edge.errors import Problem
from service.api.edge.numbers import Whole
from service.api.long_views import MANY_CLASSES, members
from service.process.slices import long_json
from service.repository.report import sample_pictures
from service.repository.repository import Repository
from service.repository.served import ServedModel


def router(repository: Repository, access: Access) -> APIRouter:
    """Make the routes GET /models, /models/{model}, and its /report and /samples/{number}.png."""
    routes = APIRouter(tags=["models"])

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """Every loaded model, and the versions that could not be loaded.

        If --max-loaded-mib is set, `on_demand` lists the models that are loaded only when a request
        names them.
        """
        loaded, resting = repository.all(), repository.resting()
        return {
            **({} if resting is None else {"on_demand": resting}),
            "models": [_summary(loaded[name]) for name in sorted(loaded)],
            "default": _default(repository),
            "faults": [
                {"model": name, "version": version, "reason": reason}
                for (name, version), reason in sorted(repository.faults.items())
            ],
        }

    @routes.get("/models/{model}", responses=_UNKNOWN, response_model=dict[str, Any])
    async def model(model: str, version: Whole | None = None) -> Response:
        """One model: its model.json, where it runs, and which versions are loaded."""
        bundle = repository.find(model, version).bundle
        summary = _summary(repository.all()[model])

        def encoded() -> bytes:
            return long_json({**summary, "bundle": members(bundle)})

        if len(bundle.class_names) > MANY_CLASSES:
            content = await asyncio.to_thread(encoded)
        else:
            content = encoded()
        return Response(content, media_type="application/json")

    @routes.get(
        "/models/{model}/report",
        responses=_UNKNOWN,
        response_model=dict[str, Any],
        dependencies=[Depends(access.require("observe"))],
    )
    async def report(model: str, version: Whole | None = None) -> Response:
        """The report.json that was published with the model; an empty object when there is none."""
        found = repository.find(model, version).report
        return Response(orjson.dumps(found), media_type="application/json")

    @routes.get(
        "/models/{model}/samples/{number}.png",
        responses=_SAMPLE,
        response_class=Response,
        dependencies=[Depends(access.require("observe"))],
    )
    async def sample(model: str, number: Whole, version: Whole | None = None) -> Response:
        """One test input that was published with the model, as a picture; the first is number 1."""
        pictures = sample_pictures(repository.find(model, version).report)
        if number not in pictures:
            raise Problem("not-found", _no_sample(model, number, list(pictures)))
        return Response(pictures[number], media_type="image/png")

    return routes


def _no_sample(model: str, number: int, there: list[int]) -> str:
    if not there:
        return (
            f"model '{model}' was published without sample pictures; publish it again to have some"
        )
    return f"model '{model}' has no sample {number}; expected {there[0]} to {there[-1]}"


def _default(repository: Repository) -> str | None:
    try:
        return repository.find().bundle.name
    except LookupError:
        return None


def _summary(by_version: Any) -> dict[str, Any]:
    newest: ServedModel = next(iter(by_version.values()))
    bundle = newest.bundle
    return {
        "name": bundle.name,
        "versions": list(by_version),
        "description": bundle.description,
        "classes": len(bundle.class_names),
        "input": bundle.input.kind,
        "default_tau": bundle.tau,
        "loss_tau": bundle.loss_tau,
        "temperature": bundle.temperature,
        "source": "class_counts" if bundle.calibrated_log_source is None else "calibrated",
        "provider": newest.graph.provider,
    }


_SAMPLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The picture"},
    404: {"description": "No such model, version or sample"},
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such model or version is loaded"}
}
