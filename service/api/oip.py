"""The Open Inference Protocol V2 but for inference: server and model metadata, health, and the repository extension."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from service.api.access import Access
from service.api.errors import Problem
from service.api.health import Health
from service.api.json_body import decode_json
from service.api.oip_infer import version_of
from service.contract.bundle import Bundle, InputSpec
from service.oip_tensors import BY_DTYPE
from service.repository import Repository

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "parameters"]


def router(*, repository: Repository, health: Health, access: Access, version: str) -> APIRouter:
    """Every GET under /v2, and POST /v2/repository/…"""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    operate = [Depends(access.require("operate"))]

    @routes.get("")
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {"name": "priordial", "version": version, "extensions": EXTENSIONS}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """200 while the process makes progress."""
        _must_be_well(health.live())
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """200 while requests should be sent here."""
        _must_be_well(health.ready())
        return {"ready": True}

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """A model's inputs and outputs; those that are optional say so."""
        found = repository.find(model, None if version is None else version_of(version))
        return _metadata(found.bundle, list(repository.all()[found.bundle.name]))

    @routes.get("/models/{model}/ready")
    @routes.get("/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> dict[str, Any]:
        """200 while the model answers."""
        found = repository.find(model, None if version is None else version_of(version))
        _must_be_well(found.batcher.failure)
        return {"name": found.bundle.name, "ready": True}

    @routes.post("/repository/index", dependencies=[Depends(access.require("observe"))])
    async def index(request: Request) -> list[dict[str, str]]:
        """Every version that is in the repository, with its state; {"ready": true} leaves out those that do not serve."""
        only_ready = await _member(request, "ready", bool)
        return [item for item in _index(repository) if not only_ready or item["state"] == "READY"]

    @routes.post("/repository/models/{model}/load", dependencies=operate, response_class=Response)
    async def load(model: str, request: Request) -> Response:
        """Load the newest versions of a model from the repository, in place of those that serve."""
        await _refuse_overrides(request)
        await repository.load(model)
        return Response(media_type="application/json")

    @routes.post("/repository/models/{model}/unload", dependencies=operate, response_class=Response)
    async def unload(model: str, request: Request) -> Response:
        """Stop serving a model; it stays out until it is loaded again."""
        await _refuse_overrides(request)
        await repository.unload(model)
        return Response(media_type="application/json")

    return routes


def _metadata(bundle: Bundle, versions: list[int]) -> dict[str, Any]:
    classes = len(bundle.class_names)
    optional = {"optional": True}
    own = _tensor(bundle.input.name, BY_DTYPE[bundle.input.dtype], _shape(bundle.input))
    if bundle.input.kind == "image":
        own["parameters"] = {"also": "BYTES [-1, 1]: encoded JPEG, PNG or WebP images"}
    per_row = [
        _tensor("tau", "FP32", [-1, 1], optional),
        _tensor("prior", "BYTES", [-1, 1], optional),
    ]
    return {
        "name": bundle.name,
        "versions": [str(each) for each in versions],
        "platform": "onnx_onnxv1",
        "inputs": [own, *(each for each in per_row if each["name"] != bundle.input.name)],
        "outputs": [
            _tensor("probabilities", "FP32", [-1, classes]),
            _tensor("adjusted_logits", "FP32", [-1, classes], optional),
            _tensor("logits", "FP32", [-1, classes], optional),
            _tensor("class_index", "INT64", [-1, -1], optional),
            _tensor("class_probability", "FP32", [-1, -1], optional),
            _tensor("class_name", "BYTES", [-1, -1], optional),
        ],
        "properties": {
            "class_digest": bundle.class_digest,
            "default_tau": str(bundle.tau),
            "loss_tau": str(bundle.loss_tau),
        },
    }


def _tensor(
    name: str, datatype: str, shape: list[int], parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    return found if parameters is None else {**found, "parameters": parameters}


def _shape(spec: InputSpec) -> list[int]:
    """A fixed batch is the graph's own affair: smaller and larger ones are taken."""
    return [-1, *(-1 if n is None else n for n in spec.shape[1:])]


def _index(repository: Repository) -> Iterator[dict[str, str]]:
    loaded = repository.all()
    for name, version, reason in repository.on_disk():
        ready = version in loaded.get(name, {})
        state = "READY" if ready else "UNAVAILABLE"
        yield {
            "name": name,
            "version": str(version),
            "state": state,
            "reason": "" if ready else reason,
        }


def _must_be_well(reason: str | None) -> None:
    if reason is not None:
        raise Problem("unavailable", reason)


async def _refuse_overrides(request: Request) -> None:
    """Triton's clients can send a configuration or files along; a published version is never edited."""
    for name in await _member(request, "parameters", dict) or ():
        if name != "unload_dependents":
            raise Problem(
                "malformed",
                f"parameter '{name[:60]}' is not supported: models are published as files",
            )


async def _member(request: Request, name: str, kind: type) -> Any:
    """The one member that a body may have; None when it has none. The body may be empty, and of any content type."""
    raw = await request.body()
    body = decode_json(raw) if raw else {}
    if not isinstance(body, dict) or set(body) - {name}:
        raise Problem("malformed", f"expected an object with '{name}' or nothing")
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise Problem(
            "malformed", f"{name} must be {'true or false' if kind is bool else 'an object'}"
        )
    return value
