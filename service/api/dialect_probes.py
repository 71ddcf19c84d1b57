"""Answers the status and health requests that clients of other servers send before they score.

KServe V1 and TensorFlow Serving share GET /v1/models/{model}: one reads `ready`, the other
`model_version_status`. SageMaker requests GET /ping, and Vertex AI the path that it chooses.
"""

from typing import Any

from fastapi import APIRouter, Response

from service.api.edge.errors import Problem
from service.api.health import Health
from service.repository.repository import Repository


def router(*, repository: Repository, health: Health, health_route: str = "") -> APIRouter:
    """Make the routes GET /v1/models…, /ping, and `health_route` if it is not empty."""
    routes = APIRouter(tags=["other servers' protocols"])

    @routes.get("/v1/models")
    async def listed() -> dict[str, list[str]]:
        """The names of the models, as KServe lists them."""
        return {"models": sorted(repository.known())}

    @routes.get("/v1/models/{model}")
    async def status(model: str) -> dict[str, Any]:
        """Whether a model answers, for KServe V1 and for TensorFlow Serving."""
        repository.find(model)
        return _status(model, list(repository.all()[model]))

    @routes.get("/v1/models/{model}/versions/{version}")
    async def version_status(model: str, version: int) -> dict[str, Any]:
        """Whether a version answers, for TensorFlow Serving."""
        repository.find(model, version)
        return _status(model, [version])

    async def other_verb(model: str, verb: str) -> None:
        """Refuse `classify`, `regress` and `explain`, which need more than a classifier has."""
        raise Problem(
            "not-found",
            f"'{verb[:40]}' is not served; use POST /v1/models/{model[:80]}:predict",
        )

    for place in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
        routes.post(place + ":{verb}", include_in_schema=False)(other_verb)

    async def ping() -> Response:
        """Answer 200 while the service is live and ready for requests."""
        reason = health.live() or health.ready()
        if reason is not None:
            raise Problem("unavailable", reason)
        return Response()

    for path in filter(None, ("/ping", health_route)):
        routes.get(path, response_class=Response)(ping)
    return routes


def _status(model: str, versions: list[int]) -> dict[str, Any]:
    states = [
        {
            "version": str(version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        for version in versions
    ]
    return {"name": model, "ready": True, "model_version_status": states}
