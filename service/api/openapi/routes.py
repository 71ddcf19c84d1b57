"""Describes the routes of priors for `/openapi.json`, since they read their bodies themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from service.api.edge.errors import PROBLEM_JSON, TITLES
from service.contract.members.body import PriorBody
from service.contract.members.costs import CostsBody
from service.contract.members.switch import ELSE, MAX_RULES, NAME_PATTERN, WEEKDAYS
from service.evaluate.feedback import LEAST_SAMPLED, MAX_ID, MAX_ITEMS
from service.priors.revisions import REFERENCE

ALWAYS = ("invalid", "no-key", "forbidden", "rate-limited", "unknown-model", "unknown-prior")


def documented(
    answer: type[BaseModel] | None,
    *,
    problems: Sequence[str] = (),
    also: int | None = None,
    body: dict[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return keyword arguments for `add_api_route` that describe a route's answers and body.

    answer: the model of a 200 answer; None: the route answers 204. problems: kinds of error besides
    those in ALWAYS. also: a second success status: 201 with the same body, or 304 without a body.
    body: the schema of the request body. links: operations that can follow the answer.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (*ALWAYS, *problems):
        status, title = TITLES[kind]
        entry = responses.setdefault(
            status, {"description": "", "content": {PROBLEM_JSON: {"schema": _PROBLEM}}}
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], title)))
    more: dict[str, Any] = {"status_code": 200 if answer is not None else 204}
    if answer is not None:
        responses[200] = {"model": answer, "description": "Done", **_links(links)}
        if also == 201:
            responses[201] = {"model": answer, "description": "Created", **_links(links)}
    if also == 304:
        responses[304] = {"description": "The caller already has this revision"}
    if body is not None:
        content = {"application/json": {"schema": body}}
        more["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return {**more, "responses": responses}


def prior_links(suffix: str) -> dict[str, Any]:
    """Return the OpenAPI links from a written prior to the operations that can follow.

    suffix: the end of their operation ids, for the same form of path.
    """
    where = {"name": "$response.body#/name"} | (
        {"model": "$response.body#/model"} if suffix else {}
    )

    def to(operation: str, **more: Any) -> dict[str, Any]:
        return {"operationId": operation + suffix, "parameters": where, **more}

    names = (
        "prior_one",
        "prior_put",
        "prior_add",
        "prior_delete",
        "prior_revisions",
        "prior_replicas",
        "prior_preview",
    )
    back = to("prior_rollback", requestBody={"revision": "$response.body#/revision"})
    return {name: to(name) for name in names} | {"prior_rollback": back}


def _links(links: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"links": links} if links else {}


_PROBLEM = {"$ref": "#/components/schemas/Problem"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_NOTE = {"type": "string", "maxLength": 2000}
_WEIGHTS = [
    {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0},
        "minProperties": 1,
    },
    {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2},
]
_COUNTS = {"anyOf": _WEIGHTS}


def _whole(schema: Any, parts: Mapping[str, Any]) -> Any:
    """Replace references by the parts that they name, since the schema moves to another place."""
    if isinstance(schema, list):
        return [_whole(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    part = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if part in parts:
        return _whole(parts[part], parts)
    return {name: _whole(value, parts) for name, value in schema.items() if name != "$defs"}


_BODY = PriorBody.model_json_schema()
PRIOR: dict[str, Any] = _whole(_BODY, _BODY.get("$defs", {}))
_NAME = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
PRIOR["properties"]["target"]["anyOf"] = [{"enum": ["uniform", "training"]}, *_WEIGHTS]
PRIOR["properties"]["label_frequencies"]["anyOf"] = [*_WEIGHTS, {"type": "null"}]
PRIOR["properties"]["costs"]["anyOf"][0] = CostsBody.model_json_schema()
PRIOR["properties"]["schedule"]["anyOf"][0] = _object(
    ["time_zone", "rules"],
    time_zone={"type": "string"},
    rules={
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_RULES,
        "items": _object(
            ["prior"],
            prior=_NAME,
            weekdays={"type": "array", "items": {"enum": list(WEEKDAYS)}},
            months={"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 12}},
            hours={"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 24}},
        ),
    },
    **{ELSE: {"anyOf": [_NAME, {"type": "null"}]}},
)
PATCH = _object(
    ["add"],
    add={**_object([], target=_COUNTS, label_frequencies=_COUNTS), "minProperties": 1},
    note=_NOTE,
)
ROLLBACK = _object(
    ["revision"], revision={"type": "integer", "minimum": 0, "maximum": 2**53 - 1}, note=_NOTE
)
FEEDBACK = _object(
    ["items"],
    items={
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_ITEMS,
        "items": _object(
            ["request_id", "label"],
            request_id={"type": "string", "minLength": 1, "maxLength": MAX_ID},
            row={"type": ["integer", "null"], "minimum": 0, "maximum": 2**32 - 1},
            label={"type": "string"},
            sampled={"type": ["number", "null"], "minimum": LEAST_SAMPLED, "maximum": 1},
        ),
    },
)
_TAU = {"type": ["number", "null"], "minimum": 0}
_REFERENCE = {"type": "string", "pattern": REFERENCE}
PREVIEW = {
    "anyOf": [
        {**PRIOR, "title": "A prior and tau", "properties": {**PRIOR["properties"], "tau": _TAU}},
        _object([], prior={"anyOf": [_REFERENCE, PRIOR]}, tau=_TAU),
    ]
}
