"""GET /health/live, /health/ready, /metrics and /metrics/recent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import StreamingResponse

from service.api.edge.access import Access
from service.observe.exposition import PAUSE_SECONDS
from service.observe.history import History
from service.observe.metrics import Metrics


@dataclass
class Health:
    """The state behind the probes: each callable returns a reason, or None while all is well."""

    live: Callable[[], str | None]
    ready: Callable[[], str | None]
    degraded: Callable[[], str | None]


def router(health: Health, metrics: Metrics, history: History, access: Access) -> APIRouter:
    """Make the routes GET /health/live, /health/ready, /metrics and /metrics/recent."""
    routes = APIRouter()

    @routes.get("/health/live", tags=["health"], responses=_RED)
    async def live(response: Response) -> dict[str, Any]:
        """Whether the process makes progress. If not, restart it."""
        reason = health.live()
        if reason is not None:
            response.status_code = 503
            return {"live": False, "reason": reason}
        return {"live": True}

    @routes.get("/health/ready", tags=["health"], responses=_RED)
    async def ready(response: Response) -> dict[str, Any]:
        """Whether to send requests here. `degraded` names what does not work for now."""
        reason = health.ready()
        if reason is not None:
            response.status_code = 503
            return {"ready": False, "status": "not ready", "reason": reason}
        degraded = health.degraded()
        if degraded is not None:
            return {"ready": True, "status": "degraded", "reason": degraded}
        return {"ready": True, "status": "ready"}

    @routes.get(
        "/metrics",
        tags=["health"],
        response_class=Response,
        responses=_SCRAPE,
        dependencies=[Depends(access.require("observe"))],
    )
    async def scrape(request: Request) -> Response:
        """Prometheus text, or OpenMetrics where it is accepted."""
        blocks, content_type = await asyncio.to_thread(
            metrics.exposition, request.headers.get("accept", "")
        )
        headers = {"content-type": content_type, "content-length": str(sum(map(len, blocks)))}
        return StreamingResponse(_in_turns(blocks), headers=headers)

    @routes.get(
        "/metrics/recent", tags=["health"], dependencies=[Depends(access.require("observe"))]
    )
    async def recent(model: str) -> dict[str, Any]:
        """The counters of a model at each of the last fifteen minutes."""
        found = await asyncio.to_thread(history.readings, model)
        return {"readings": [{"at": at, "metrics": text} for at, text in found]}

    return routes


async def _in_turns(blocks: list[bytes]) -> AsyncIterator[bytes]:
    """Yield a block at a time, with pauses: megabytes at once would delay predictions."""
    for block in blocks:
        yield block
        await asyncio.sleep(PAUSE_SECONDS)


_RED: dict[int | str, dict[str, Any]] = {503: {"description": "The probe fails; the body says why"}}
_SCRAPE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
