"""Answers what clients of other servers request before they score: state, inputs and health.

KServe V1 and TensorFlow Serving share GET /v1/models/{model}: one reads `ready`, the other
`model_version_status`. TensorFlow Serving also has GET …/metadata. SageMaker requests GET /ping,
MLflow that or /health, and Vertex AI the path that it chooses.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from service.api.edge.errors import Problem
from service.api.edge.numbers import Whole
from service.api.health import Health
from service.contract.bundle import Bundle
from service.contract.inputs.spec import InputSpec
from service.repository.repository import Repository

_TF_TYPES = {
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "string": "DT_STRING",
}
"""TensorFlow's names of types; an integer type is our name with DT_ in front."""
_OF_A_ROW = {"label": "DT_STRING", "index": "DT_INT64", "probability": "DT_FLOAT"}
"""The members of a prediction that have one value."""
_VERSION = "/v1/models/{model}/versions/{version}"
_LABEL = "/v1/models/{model}/labels/{label}"


def router(*, repository: Repository, health: Health, health_route: str = "") -> APIRouter:
    """Make the routes GET /v1/models…, /ping, /health, and `health_route` if it is not empty."""
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

    @routes.get("/v1/models/{model}/metadata")
    async def metadata(model: str) -> dict[str, Any]:
        """A model's inputs and outputs, for TensorFlow Serving."""
        return _metadata(repository.find(model).bundle)

    @routes.get(_VERSION + "/metadata")
    async def version_metadata(model: str, version: Whole) -> dict[str, Any]:
        """A version's inputs and outputs, for TensorFlow Serving."""
        return _metadata(repository.find(model, version).bundle)

    @routes.get(_VERSION)
    async def version_status(model: str, version: Whole) -> dict[str, Any]:
        """Whether a version answers, for TensorFlow Serving."""
        repository.find(model, version)
        return _status(model, [version])

    _add_refusals(routes)

    async def ping() -> Response:
        """Answer 200 while the service is live and ready for requests."""
        reason = health.live() or health.ready()
        if reason is not None:
            raise Problem("unavailable", reason)
        return Response()

    names = {"/ping": "ping", "/health": "health"}
    if health_route:
        names.setdefault(health_route, "health_route")
    for path, name in names.items():
        routes.get(path, name=name, response_class=Response)(ping)
    return routes


def _add_refusals(routes: APIRouter) -> None:
    """Add paths of TensorFlow Serving and KServe that are refused, with what to use instead."""

    async def other_verb(model: str, verb: str) -> None:
        """Refuse `classify`, `regress` and `explain`, which need more than a classifier has."""
        raise Problem(
            "not-found",
            f"'{verb[:40]}' is not served; use POST /v1/models/{model[:80]}:predict",
        )

    async def labelled(model: str, label: str) -> None:
        """Refuse labels of versions, which only TensorFlow Serving's configuration gives."""
        asked = f"/v1/models/{model[:80]}"
        raise Problem(
            "not-found",
            f"versions have no labels, such as '{label[:40]}', here; leave the label out for the "
            f"newest version, or use {asked}/versions/N; GET {asked} lists the versions",
        )

    for place in ("/v1/models/{model}", _VERSION):
        routes.post(place + ":{verb}", include_in_schema=False)(other_verb)
    for path in (_LABEL, _LABEL + "/metadata"):
        routes.get(path, include_in_schema=False)(labelled)
    routes.post(_LABEL + ":{verb}", include_in_schema=False)(labelled)


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


def _metadata(bundle: Bundle) -> dict[str, Any]:
    """A model's inputs and outputs as a signature of TensorFlow Serving."""
    specs = bundle.input.columns or (bundle.input,)
    signature = {
        "inputs": {spec.name: _tensor(spec.name, _tf_type(spec), spec.shape[1:]) for spec in specs},
        "outputs": {name: _tensor(name, dtype, ()) for name, dtype in _OF_A_ROW.items()},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {
            "name": bundle.name,
            "signature_name": "",
            "version": str(bundle.version),
        },
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _tf_type(spec: InputSpec) -> str:
    return _TF_TYPES.get(spec.dtype, f"DT_{spec.dtype.upper()}")


def _tensor(name: str, dtype: str, row: Sequence[int | None]) -> dict[str, Any]:
    """A tensor of rows of this shape; None and -1 stand for a free size."""
    sizes = [-1, *(-1 if size is None else size for size in row)]
    return {
        "dtype": dtype,
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": False,
        },
        "name": name,
    }
