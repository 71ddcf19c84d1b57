"""The repository extension of the Open Inference Protocol V2: index, load and unload."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from service.api.edge.access import Access
from service.api.edge.errors import Problem
from service.repository.repository import LOADING, Repository
from service.wire.json_text import parse_storable


def router(*, repository: Repository, access: Access) -> APIRouter:
    """Make the routes POST /v2/repository/index and /v2/repository/models/{model}/load, …/unload.

    access: loading and unloading need the role `operate`.
    """
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    changing: dict[str, Any] = {
        "dependencies": [Depends(access.require("operate"))],
        "response_class": Response,
        "responses": {200: {"description": "Done"}, **_INDEX_ERRORS, **_RED},
        "openapi_extra": _body("parameters", {"type": "object"}),
    }

    @routes.post(
        "/repository/index",
        dependencies=[Depends(access.require("observe"))],
        responses=_INDEX_ERRORS,
        openapi_extra=_body("ready", {"type": "boolean"}),
    )
    async def index(request: Request) -> list[dict[str, str]]:
        """Every version with its state. The body {"ready": true} selects those that serve."""
        only_ready = await _member(request, "ready", bool)
        return [item for item in _index(repository) if not only_ready or item["state"] == "READY"]

    @routes.post("/repository/models/{model}/load", **changing)
    async def load(model: str, request: Request) -> Response:
        """Load the newest versions of a model. They replace the versions that serve."""
        await _refuse_overrides(request)
        await repository.load(model, by=request.state.by)
        return Response(media_type="application/json")

    @routes.post("/repository/models/{model}/unload", **changing)
    async def unload(model: str, request: Request) -> Response:
        """Stop serving a model. It is not served again until it is loaded."""
        await _refuse_overrides(request)
        await repository.unload(model, by=request.state.by)
        return Response(media_type="application/json")

    return routes


def _index(repository: Repository) -> Iterator[dict[str, str]]:
    loaded = repository.all()
    for name, version, reason in repository.on_disk():
        ready = version in loaded.get(name, {})
        state = "READY" if ready else "LOADING" if reason == LOADING else "UNAVAILABLE"
        yield {
            "name": name,
            "version": str(version),
            "state": state,
            "reason": "" if ready else reason,
        }


async def _refuse_overrides(request: Request) -> None:
    """Refuse the configuration or files that Triton's clients can send: versions are immutable."""
    for name in await _member(request, "parameters", dict):
        if name != "unload_dependents":
            raise Problem(
                "malformed",
                f"parameter '{name[:60]}' is not supported; write the model's files to the "
                "--models folder, then send this request without parameters",
            )


async def _member(request: Request, name: str, kind: type) -> Any:
    """Read the only member that a body may have; its empty value if it is missing.

    The body may be empty, and its content type is not checked.
    """
    raw = await request.body()
    body = parse_storable(raw) if raw else {}
    if not isinstance(body, dict) or set(body) - {name}:
        raise Problem("malformed", f"expected a JSON object with only '{name}', or an empty body")
    value = body.get(name, kind())
    if not isinstance(value, kind):
        raise Problem(
            "malformed", f"{name} must be {'true or false' if kind is bool else 'an object'}"
        )
    return value


def _body(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"type": "object", "properties": {name: schema}, "additionalProperties": False}
    return {"requestBody": {"content": {"application/json": {"schema": content}}}}


_RED: dict[int | str, dict[str, Any]] = {
    503: {"description": "Not possible now; the body says why"}
}
_INDEX_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body has an unknown or wrong member"},
    401: {"description": "An API key is needed"},
    403: {"description": "The API key may not do this"},
    413: {"description": "The body is too large"},
    422: {"description": "The model cannot be loaded, or a text of the body is invalid"},
    429: {"description": "The API key's rate limit is reached"},
}
