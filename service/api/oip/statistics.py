"""Triton's statistics extension, and clear refusals of Triton's other extensions."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends

from service.api.edge.access import Access
from service.api.edge.errors import Problem
from service.api.oip.infer import version_of
from service.observe.metrics import Metrics
from service.repository.repository import Repository

_SHARED_MEMORY = (
    "shared memory is not supported: send tensors in the body, where they are not copied again"
)
_TRACES = "trace settings are not supported: use --traces and the OTEL_* variables"
NOT_SERVED = {
    "/systemsharedmemory/{rest:path}": _SHARED_MEMORY,
    "/cudasharedmemory/{rest:path}": _SHARED_MEMORY,
    "/trace/setting": _TRACES,
    "/models/{model}/trace/setting": _TRACES,
    "/logging": "log settings are not supported: the log is set with --log-format",
}


def router(*, repository: Repository, metrics: Metrics, access: Access) -> APIRouter:
    """Make the routes GET /v2/models/stats and /v2/models/{model}[/versions/{version}]/stats.

    Include this router before the others under /v2/models, whose paths would match `stats`.
    """
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    observing: dict[str, Any] = {
        "dependencies": [Depends(access.require("observe"))],
        "responses": {200: {"content": {"application/json": {"schema": _SCHEMA}}}, **_ERRORS},
    }

    async def statistics_of(versions: Sequence[tuple[str, int]]) -> dict[str, Any]:
        return {"model_stats": await asyncio.to_thread(metrics.statistics, versions)}

    @routes.get("/models/stats", **observing)
    async def every() -> dict[str, Any]:
        """The statistics of every version that serves, of all models, summed over all workers."""
        loaded = repository.all()
        return await statistics_of(
            [(name, version) for name in sorted(loaded) for version in loaded[name]]
        )

    @routes.get("/models/{model}/stats", **observing)
    async def of_model(model: str) -> dict[str, Any]:
        """The statistics of every version of a model."""
        repository.find(model)
        return await statistics_of([(model, version) for version in repository.all()[model]])

    @routes.get("/models/{model}/versions/{version}/stats", **observing)
    async def of_version(model: str, version: str) -> dict[str, Any]:
        """The statistics of one version."""
        return await statistics_of(
            [(model, repository.find(model, version_of(version)).bundle.version)]
        )

    for path, reason in NOT_SERVED.items():
        routes.add_api_route(
            path, _not_served(reason), methods=["GET", "POST"], include_in_schema=False
        )
    return routes


def _not_served(reason: str) -> Any:
    async def tell() -> None:
        raise Problem("not-found", reason)

    return tell


_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API key is needed"},
    403: {"description": "The API key may not do this"},
    429: {"description": "The API key's rate limit is reached"},
}
_COUNT = {"type": "integer", "minimum": 0}


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_DURATION = _of(count=_COUNT, ns=_COUNT)
_INFERENCE = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    "cache_hit", "cache_miss",
)  # fmt: skip
_BATCH = _of(
    batch_size=_COUNT,
    compute_input=_DURATION,
    compute_infer=_DURATION,
    compute_output=_DURATION,
)
_STATISTICS = _of(
    name={"type": "string"},
    version={"type": "string"},
    last_inference={**_COUNT, "description": "Milliseconds since 1970; 0 before the first"},
    inference_count={**_COUNT, "description": "Rows that were scored"},
    execution_count={**_COUNT, "description": "Graph calls"},
    inference_stats=_of(**dict.fromkeys(_INFERENCE, _DURATION)),
    batch_stats={"type": "array", "items": _BATCH},
)
_SCHEMA = _of(model_stats={"type": "array", "items": _STATISTICS})
