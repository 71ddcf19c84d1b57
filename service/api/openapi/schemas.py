"""JSON schemas of what the scoring routes take and answer; they read and write bytes themselves, so nothing derives these."""

from typing import Any

from service.api.openapi.routes import PRIOR
from service.contract.adjustment import MIN_TAU
from service.wire.tensors import DATATYPES

Schema = dict[str, Any]
_REFERENCE = r"^[a-z0-9][a-z0-9._-]{0,63}(@(>=)?[0-9]{1,16})?$"


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def parameter(name: str, schema: Schema, description: str, *, where: str = "query") -> Schema:
    """A parameter of an operation; those of the path are required."""
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": schema,
        "description": description,
    }


def _object(required: list[str], properties: Schema, *, closed: bool = True) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "required": required}
    return {**found, "additionalProperties": False} if closed else found


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


_TEXT: Schema = {"type": "string"}
_INDEX: Schema = {"type": "integer", "minimum": 0}
_CHANCE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_BINARY: Schema = {"type": "string", "format": "binary"}
_ENCODED = _object(["b64"], {"b64": {"type": "string", "contentEncoding": "base64"}})
PRIOR_NAME: Schema = {"type": "string", "pattern": _REFERENCE}
_USED = _object(
    ["name", "revision"],
    {"name": {"type": ["string", "null"]}, "revision": {"type": "integer", "minimum": 0}},
)
_RANKED = {"label": _TEXT, "index": _INDEX, "probability": _CHANCE}
_CHOICE = _object(["label", "index", "probability"], _RANKED)
_WARNINGS = _list(_TEXT)


def components(tau_cap: float) -> dict[str, Schema]:
    """Every schema that the scoring routes refer to, by name."""
    tau: Schema = {
        "anyOf": [
            {"type": "number", "enum": [0]},
            {"type": "number", "minimum": MIN_TAU, "maximum": tau_cap},
        ],
        "description": "Strength of the adjustment: 0 is the model as trained, 1 the whole change of prior",
    }
    prior: Schema = {"anyOf": [PRIOR_NAME, PRIOR]}
    every = {"tau": ref("Tau"), "prior": prior, "top_k": _COUNT, "version": _COUNT}
    instances = _list({"anyOf": [_list({}), {"type": "number"}, _TEXT, _ENCODED]}, minItems=1)
    return {
        "Problem": _problem(),
        "OipProblem": _oip_problem(),
        "Tau": tau,
        "Parameters": _object([], every),
        "PredictRequest": _object(
            ["instances"], {"instances": instances, "parameters": ref("Parameters")}
        ),
        "PredictForm": {
            "type": "object",
            "properties": {"tau": _TEXT, "prior": _TEXT, "top_k": _TEXT, "version": _TEXT},
            "additionalProperties": _BINARY,
            "description": "Image files under any field name, and the parameters as text",
        },
        "Prediction": _object(
            ["label", "index", "probability", "top", "unadjusted"],
            {**_RANKED, "top": _list(_CHOICE, minItems=1), "unadjusted": _CHOICE},
        ),
        "PredictAnswer": _object(
            ["model", "version", "tau", "prior", "predictions"],
            {
                "model": _TEXT,
                "version": _COUNT,
                "tau": {"type": "number", "minimum": 0},
                "prior": _USED,
                "predictions": _list(ref("Prediction"), minItems=1),
                "warnings": _WARNINGS,
            },
        ),
        "AdjustRequest": {
            **_object(
                ["settings"],
                {
                    "instances": instances,
                    "logits": _list(_list({"type": "number"}), minItems=1),
                    "settings": _list(
                        _object([], {"tau": ref("Tau"), "prior": prior}), minItems=1, maxItems=100
                    ),
                    "parameters": ref("Parameters"),
                },
            ),
            "oneOf": [{"required": ["instances"]}, {"required": ["logits"]}],
        },
        "AdjustAnswer": _object(
            ["model", "version", "results"],
            {
                "model": _TEXT,
                "version": _COUNT,
                "results": _list(
                    _object(
                        ["tau", "prior", "predictions"],
                        {
                            "tau": {"type": "number", "minimum": 0},
                            "prior": _USED,
                            "predictions": _list(ref("Prediction"), minItems=1),
                            "warnings": _WARNINGS,
                        },
                    ),
                    minItems=1,
                ),
            },
        ),
        "InferRequest": _infer_request(),
        "InferAnswer": _infer_answer(),
    }


def _problem() -> Schema:
    return _object(
        ["type", "title", "status", "detail"],
        {
            "type": {"type": "string", "pattern": "^/problems/[a-z-]+$"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "errors": _list(_object(["field", "message"], {"field": _TEXT, "message": _TEXT})),
        },
    )


def _oip_problem() -> Schema:
    found = _problem()
    found["properties"]["error"] = _TEXT
    found["required"].append("error")
    return found


def _tensor(required: list[str], **more: Schema) -> Schema:
    return _object(
        ["name", "shape", "datatype", *required],
        {
            "name": _TEXT,
            "shape": _list(_INDEX, minItems=1, maxItems=16),
            "datatype": {"type": "string", "enum": list(DATATYPES)},
            **more,
        },
        closed=False,
    )


def _infer_request() -> Schema:
    parameters = _object(
        [],
        {
            "tau": ref("Tau"),
            "prior": _TEXT,
            "top_k": _COUNT,
            "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds"},
            "binary_data_output": {"type": "boolean"},
        },
        closed=False,
    )
    output = _object(
        ["name"],
        {
            "name": _TEXT,
            "parameters": _object(
                [], {"binary_data": {"type": "boolean"}, "classification": _COUNT}, closed=False
            ),
        },
        closed=False,
    )
    size = _object([], {"binary_data_size": _INDEX}, closed=False)
    return _object(
        ["inputs"],
        {
            "id": _TEXT,
            "parameters": parameters,
            "inputs": _list(_tensor([], data=_list({}), parameters=size), minItems=1),
            "outputs": _list(output),
        },
    )


def _infer_answer() -> Schema:
    return _object(
        ["model_name", "model_version", "outputs"],
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": {
                "type": "object",
                "additionalProperties": {"type": ["string", "number"]},
            },
            "outputs": _list(
                _tensor([], data=_list({}), parameters={"type": "object"}), minItems=1
            ),
        },
    )


def binary(*media_types: str) -> dict[str, Any]:
    """`content` of bodies that are bytes."""
    return {each: {"schema": _BINARY} for each in media_types}
