"""Server metadata, model metadata and health of the Open Inference Protocol V2."""

from typing import Any

from fastapi import APIRouter

from service.api.edge.errors import Problem
from service.api.health import Health
from service.api.oip.infer import version_of
from service.contract.bundle import Bundle
from service.contract.inputs.spec import InputSpec
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.tensors import BY_DTYPE

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
]


def router(*, repository: Repository, health: Health, version: str) -> APIRouter:
    """Make the GET routes under /v2. version: of the service."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("")
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {"name": "priordial", "version": version, "extensions": EXTENSIONS}

    @routes.get("/health/live", responses=_RED)
    async def live() -> dict[str, bool]:
        """200 while the process makes progress."""
        _must_be_well(health.live())
        return {"live": True}

    @routes.get("/health/ready", responses=_RED)
    async def ready() -> dict[str, bool]:
        """200 while requests should be sent here."""
        _must_be_well(health.ready())
        return {"ready": True}

    @routes.get("/models/{model}")
    async def metadata(model: str) -> dict[str, Any]:
        """A model's inputs and outputs, with the optional ones marked."""
        return _metadata(repository.find(model).bundle, list(repository.all()[model]))

    @routes.get("/models/{model}/versions/{version}")
    async def version_metadata(model: str, version: str) -> dict[str, Any]:
        """A version's inputs and outputs, with the optional ones marked."""
        found = repository.find(model, version_of(version))
        return _metadata(found.bundle, list(repository.all()[model]))

    @routes.get("/models/{model}/config")
    async def config(model: str) -> dict[str, Any]:
        """A model's configuration in Triton's form, as far as its fields apply here."""
        return _config(repository.find(model))

    @routes.get("/models/{model}/versions/{version}/config")
    async def version_config(model: str, version: str) -> dict[str, Any]:
        """A version's configuration in Triton's form, as far as its fields apply here."""
        return _config(repository.find(model, version_of(version)))

    @routes.get("/models/{model}/ready", responses=_RED)
    async def model_ready(model: str) -> dict[str, Any]:
        """200 while the model can answer requests."""
        return _ready(repository.find(model))

    @routes.get("/models/{model}/versions/{version}/ready", responses=_RED)
    async def version_ready(model: str, version: str) -> dict[str, Any]:
        """200 while the version can answer requests."""
        return _ready(repository.find(model, version_of(version)))

    return routes


def _ready(model: ServedModel) -> dict[str, Any]:
    _must_be_well(model.batcher.lost or model.batcher.failure)
    return {"name": model.bundle.name, "ready": True}


def _metadata(bundle: Bundle, versions: list[int]) -> dict[str, Any]:
    classes = len(bundle.class_names)
    optional = {"optional": True}
    specs = bundle.input.columns or (bundle.input,)
    own = [_tensor(spec.name, BY_DTYPE[spec.dtype], _shape(spec)) for spec in specs]
    if bundle.input.kind == "image":
        own[0]["parameters"] = {"also": "BYTES [-1, 1]: encoded JPEG, PNG or WebP images"}
    names = {spec.name for spec in specs}
    per_row = [
        _tensor("tau", "FP32", [-1, 1], optional),
        _tensor("prior", "BYTES", [-1, 1], optional),
    ]
    return {
        "name": bundle.name,
        "versions": [str(each) for each in versions],
        "platform": "onnx_onnxv1",
        "inputs": [*own, *(each for each in per_row if each["name"] not in names)],
        "outputs": [
            _tensor("probabilities", "FP32", [-1, classes]),
            _tensor("adjusted_logits", "FP32", [-1, classes], optional),
            _tensor("logits", "FP32", [-1, classes], optional),
            _tensor("class_index", "INT64", [-1, -1], optional),
            _tensor("class_probability", "FP32", [-1, -1], optional),
            _tensor("class_name", "BYTES", [-1, -1], optional),
            _tensor("decision", "BYTES", [-1, 1], optional),
            _tensor("decision_index", "INT64", [-1, 1], optional),
            _tensor("expected_cost", "FP32", [-1, 1], optional),
        ],
        "properties": {
            "class_digest": bundle.class_digest,
            "default_tau": str(bundle.tau),
            "loss_tau": str(bundle.loss_tau),
        },
    }


def _config(model: ServedModel) -> dict[str, Any]:
    """A model's configuration in the form of Triton's model_config.proto.

    There, shapes leave out the batch, types have the prefix TYPE_, and BYTES is STRING.
    """
    about = _metadata(model.bundle, [model.bundle.version])
    return {
        "name": about["name"],
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "version_policy": {"specific": {"versions": [model.bundle.version]}},
        "max_batch_size": model.batcher.max_request_rows,
        "input": [_configured(each) for each in about["inputs"]],
        "output": [_configured(each) for each in about["outputs"]],
        "dynamic_batching": {},
    }


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    kind = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    found = {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": tensor["shape"][1:]}
    is_optional = tensor.get("parameters", {}).get("optional", False)
    return {**found, "optional": True} if is_optional else found


def _tensor(
    name: str, datatype: str, shape: list[int], parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    return found if parameters is None else {**found, "parameters": parameters}


def _shape(spec: InputSpec) -> list[int]:
    """The shape with a free batch: the service accepts any batch, even if the graph does not."""
    return [-1, *(-1 if n is None else n for n in spec.shape[1:])]


def _must_be_well(reason: str | None) -> None:
    if reason is not None:
        raise Problem("unavailable", reason)


_RED: dict[int | str, dict[str, Any]] = {503: {"description": "The probe fails; the body says why"}}
