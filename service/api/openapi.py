"""How routes that read their bodies themselves are told to /openapi.json."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from service.api.errors import PROBLEM_JSON, TITLES
from service.api.prior_views import Problem
from service.contract.prior import PriorBody

ALWAYS = ("invalid", "no-key", "forbidden", "rate-limited", "unknown-model", "unknown-prior")


def documented(
    answer: type[BaseModel] | None,
    *,
    problems: Sequence[str] = (),
    also: int | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of add_api_route: the answers a route gives and the body it takes.

    `also` is a second good status: 201 with the same body, or 304 with none. `answer` None is 204.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (*ALWAYS, *problems):
        status, title = TITLES[kind]
        told = responses.setdefault(
            status, {"description": "", "content": {PROBLEM_JSON: {"schema": _PROBLEM}}}
        )
        told["description"] = "; ".join(filter(None, (told["description"], title)))
    more: dict[str, Any] = {"status_code": 200 if answer is not None else 204}
    if answer is not None:
        responses[200] = {"model": answer, "description": "Done"}
        if also == 201:
            responses[201] = {"model": answer, "description": "Created"}
    if also == 304:
        responses[304] = {"description": "The caller has this revision already"}
    if body is not None:
        content = {"application/json": {"schema": body}}
        more["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return {**more, "responses": responses}


_PROBLEM = {"$ref": f"#/components/schemas/{Problem.__name__}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_NOTE = {"type": "string", "maxLength": 2000}
_COUNTS = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": 0},
            "minProperties": 1,
        },
        {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1},
    ]
}

PRIOR = PriorBody.model_json_schema()
PATCH = _object(
    ["add"],
    add={**_object([], target=_COUNTS, label_frequencies=_COUNTS), "minProperties": 1},
    note=_NOTE,
)
ROLLBACK = _object(
    ["revision"], revision={"type": "integer", "minimum": 1, "maximum": 2**53 - 1}, note=_NOTE
)
_TAU = {"type": "number", "minimum": 0}
PREVIEW = {
    "anyOf": [
        {**PRIOR, "title": "A prior and tau", "properties": {**PRIOR["properties"], "tau": _TAU}},
        _object([], prior={"anyOf": [{"type": "string"}, PRIOR]}, tau=_TAU),
    ]
}
