"""Builds `/openapi.json` from FastAPI's description of its routes and ours of scoring routes."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api.edge.errors import PROBLEM_JSON, TITLES, WITH_ERROR
from service.api.openapi.routes import PATCH, PREVIEW, PRIOR, ROLLBACK
from service.api.openapi.schemas import (
    PRIOR_REFERENCE,
    Schema,
    binary,
    components,
    parameter,
    ref,
)
from service.api.openapi.titles import TAGS, title
from service.contract.bundle import Bundle
from service.contract.inputs.spec import InputSpec
from service.wire.arrays import example_input
from service.wire.tables.reader import TYPES

PATH = "/openapi.json"
SCORING_PROBLEMS = (
    "malformed",
    "no-key",
    "forbidden",
    "unknown-model",
    "unknown-prior",
    "not-acceptable",
    "too-slow",
    "unknown-label-frequencies",
    "prior-does-not-fit",
    "too-large",
    "unsupported-media-type",
    "invalid",
    "overloaded",
    "rate-limited",
    "unavailable",
    "deadline",
)
_BODIES: dict[str, Schema] = {
    "PriorBody": PRIOR,
    "PriorCounts": PATCH,
    "PriorRollback": ROLLBACK,
    "PriorPreview": PREVIEW,
}
_TAG = "prediction"
_MODEL = parameter("model", {"type": "string"}, "A model's name", where="path")
_VERSION = parameter("version", {"type": "string"}, "A version's number", where="path")
_INLINE: Schema = {"type": "string", "pattern": r"^\{"}


def describe(
    app: FastAPI,
    *,
    tau_cap: float,
    models: Callable[[], Sequence[Bundle]],
    sample_of: Callable[[Bundle], Any | None],
) -> None:
    """Make `app.openapi()` describe every route and every answer of each, errors included.

    app: the application whose `openapi` is replaced. tau_cap: the largest tau. models: returns the
    serving models, the default first; their names and inputs become the examples. sample_of:
    returns a real instance of a model, or None.
    """
    own = app.openapi
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    turn = asyncio.Lock()

    def made_for(serving: Sequence[Bundle]) -> dict[str, Any]:
        names = tuple(dict.fromkeys(bundle.name for bundle in serving))
        if names not in made:
            made.clear()
            app.openapi_schema = None
            made[names] = _whole(own, tau_cap, serving, sample_of)
        return made[names]

    def page(serving: Sequence[Bundle], root: str) -> bytes:
        document = made_for(serving)
        return orjson.dumps({**document, "servers": [{"url": root}]} if root else document)

    async def answer(request: Request) -> Response:
        """Build it in a thread: that takes 0.2 s at first, and after other models are loaded."""
        root = request.scope.get("root_path", "").rstrip("/")
        async with turn:
            body = await asyncio.to_thread(page, models(), root)
        return Response(body, media_type="application/json")

    app.openapi = lambda: made_for(models())  # type: ignore[method-assign]
    app.add_route(PATH, answer, include_in_schema=False)


def _whole(
    own: Callable[[], dict[str, Any]],
    tau_cap: float,
    serving: Sequence[Bundle],
    sample_of: Callable[[Bundle], Any | None],
) -> dict[str, Any]:
    document = own()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, operation)
            _name_body(operation)
            operation["summary"] = title(method, path) or operation["summary"]
    document["paths"].update(_scoring())
    parts = document.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in (
        "HTTPValidationError",
        "ValidationError",
    ):  # FastAPI's own errors, which never leave
        schemas.pop(name, None)
    schemas.update(components(tau_cap))
    schemas.update(_BODIES)
    if serving:
        _add_examples(document, serving, sample_of(serving[0]))
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    document["security"] = [{}, {"bearer": []}, {"key": []}]
    return document


def _add_examples(document: dict[str, Any], serving: Sequence[Bundle], sample: Any | None) -> None:
    """Fill the forms of `/docs` with existing names, and with a row that the first model accepts.

    sample: a real instance for that model; if None, the row is zeros or an empty text.
    """
    names = list(dict.fromkeys(bundle.name for bundle in serving))
    for operations in document["paths"].values():
        for operation in operations.values():
            for each in operation.get("parameters", ()):
                if each["in"] == "path" and each["name"] == "model":
                    each["schema"] = {**each["schema"], "examples": names[:_MAX_EXAMPLES]}
    instance = _blank(serving[0].input) if sample is None else sample
    if instance is not None:
        instances = {"instances": [instance]}
        schemas = document["components"]["schemas"]
        schemas["PredictRequest"]["examples"] = [
            {**instances, "parameters": {"tau": 1.0, "top_k": 2}}
        ]
        schemas["AdjustRequest"]["examples"] = [{**instances, "settings": [{"tau": 0}, {}]}]


def _blank(spec: InputSpec) -> Any | None:
    """An instance of zeros or empty texts; None if it would be too long to read."""
    example = example_input(spec)
    if example.size > _MAX_EXAMPLE_NUMBERS:
        return None
    if spec.kind == "text":
        return example.ravel().tolist()[0]
    return example.tolist()[0]


_MAX_EXAMPLES, _MAX_EXAMPLE_NUMBERS = 100, 1000


def _name_body(operation: dict[str, Any]) -> None:
    """Refer to the body of a prior's route by name, so that generated clients name its class so."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, schema in _BODIES.items():
            if content["schema"] == schema:
                content["schema"] = ref(name)


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Describe errors as the service sends them, and add those that FastAPI does not describe."""
    responses = operation["responses"]
    if "{model}" in path or operation.get("parameters"):
        responses.pop("422", None)
        responses.update(_problems(("invalid",), path))
    if "{model}" in path:
        responses.setdefault("404", _problems(("unknown-model",), path)["404"])
    for status, response in responses.items():
        if status >= "400" and "content" not in response:
            response["content"] = _content(path)


def _problems(kinds: Iterable[str], path: str) -> dict[str, Any]:
    """The error responses by status; kinds with the same status share a description."""
    found: dict[str, Any] = {}
    for kind in kinds:
        status, title = TITLES[kind]
        entry = found.setdefault(str(status), {"description": "", "content": _content(path)})
        entry["description"] += f"; {title}" if entry["description"] else title
    return found


def _content(path: str) -> dict[str, Any]:
    if path.startswith(WITH_ERROR):
        return {"application/json": {"schema": ref("OipProblem")}}
    if path.startswith("/health/"):
        return {"application/json": {"schema": {"type": "object"}}}
    return {PROBLEM_JSON: {"schema": ref("Problem")}}


def _scoring() -> dict[str, Any]:
    predict = {
        "application/json": {"schema": ref("PredictRequest")},
        **binary(
            "application/jsonlines",
            "application/x-npy",
            *TYPES,
            "image/jpeg",
            "image/png",
            "image/webp",
        ),
        "multipart/form-data": {"schema": ref("PredictForm")},
    }
    adjust = {"application/json": {"schema": ref("AdjustRequest")}}
    infer = {
        "application/json": {"schema": ref("InferRequest")},
        **binary("application/octet-stream"),
    }
    inferred = {
        "application/json": {"schema": ref("InferAnswer")},
        **binary("application/octet-stream"),
    }
    one = {"application/json": {"schema": ref("PredictAnswer")}}
    many = {"application/json": {"schema": ref("AdjustAnswer")}}
    json_only = [*_query("tau", "prior", "top_k", "version", "context"), _timeout()]
    length = parameter(
        "Inference-Header-Content-Length",
        {"type": "integer", "minimum": 0},
        "Length in bytes of the JSON before the binary tensors; 0: the body is one row of the "
        "model's input",
        where="header",
    )
    return {
        "/predict": _post(
            "/predict", "Classify with the default model", _PREDICT, json_only, predict, one
        ),
        "/models/{model}/predict": _post(
            "/models/{model}/predict",
            "Classify with a model",
            _PREDICT,
            [_MODEL, *json_only],
            predict,
            one,
        ),
        "/models/{model}/adjust": _post(
            "/models/{model}/adjust",
            "Score once, answer for many settings",
            _ADJUST,
            [_MODEL, *json_only],
            adjust,
            many,
        ),
        **{
            path: _post(
                path, "Infer (Open Inference Protocol V2)", _INFER,
                [*names, *json_only, length], infer, inferred,
            )
            for path, names in (
                ("/v2/models/{model}/infer", [_MODEL]),
                ("/v2/models/{model}/versions/{version}/infer", [_MODEL, _VERSION]),
            )
        },
    }  # fmt: skip


def _post(  # noqa: PLR0917 - the parts of an operation in the order in which they are written
    path: str,
    summary: str,
    description: str,
    parameters: list[Schema],
    body: dict[str, Any],
    answer: dict[str, Any],
) -> dict[str, Any]:
    names = {each["name"] for each in parameters if each["in"] == "path"}
    return {
        "post": {
            "tags": [_TAG],
            "summary": summary,
            "description": description,
            "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
            "parameters": [p for p in parameters if p["in"] == "path" or p["name"] not in names],
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {"description": "Scored", "content": answer},
                **_problems(SCORING_PROBLEMS, path),
            },
        }
    }


def _query(*names: str) -> list[Schema]:
    known = {
        "tau": parameter(
            "tau", ref("Tau"), "Strength of the adjustment; default: the model's default_tau"
        ),
        "prior": parameter(
            "prior",
            {"anyOf": [PRIOR_REFERENCE, _INLINE]},
            "NAME, NAME@REVISION, NAME@>=REVISION or an inline prior as JSON; default: `default`",
        ),
        "top_k": parameter(
            "top_k",
            {"type": "integer", "minimum": 1},
            "Classes in `top`, 1 to C; default: 5 at most",
        ),
        "version": parameter(
            "version",
            {"type": "integer", "minimum": 1, "maximum": 999_999_999},
            "Pins a version; default: the newest",
        ),
        "context": parameter(
            "context",
            {"type": "string"},
            "Key and value for a prior with contexts: KEY:VALUE, or a JSON object as text",
        ),
    }
    return [known[name] for name in names]


def _timeout() -> Schema:
    return parameter(
        "X-Request-Timeout-Ms",
        {"type": "integer", "minimum": 1, "maximum": 86_400_000},
        "Milliseconds until the request's deadline; later it is answered with 504",
        where="header",
    )


_PREDICT = (
    "Takes instances as JSON, one .npy array [batch, …], one image, or several images in a form. "
    "The answer names the model, the tau and the prior revision with which it was computed. For "
    "every row it also gives the class at tau = 0."
)
_ADJUST = (
    "Takes logits, or instances, which are scored once. Answers for each of up to 100 settings of "
    "tau and prior. What a setting leaves out comes from the parameters of the request."
)
_INFER = (
    "Inputs: the model's own, and optionally tau FP32 [batch, 1] and prior BYTES [batch, 1] for "
    "each row. Outputs: probabilities (default), adjusted_logits, logits, class_index, "
    "class_probability, class_name. Binary tensors and the classification extension work as in "
    "Triton."
)
