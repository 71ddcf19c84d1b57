"""Models of the requests and answers of the scoring routes, for `/openapi.json`.

The routes read and write bytes themselves, for speed. These models only document them; a test
checks real requests and answers against their schemas.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, RootModel, WithJsonSchema
from pydantic.json_schema import models_json_schema

from service.api.openapi.routes import PRIOR
from service.contract.adjustment import MIN_TAU
from service.contract.members.switch import MAX_KEYS, MAX_TEXT, Fallback
from service.priors.revisions import REFERENCE
from service.wire.tensors import DATATYPES

Schema: TypeAlias = dict[str, Any]

BINARY: Schema = {"type": "string", "format": "binary"}
PRIOR_REFERENCE: Schema = {"type": "string", "pattern": REFERENCE}

Index: TypeAlias = Annotated[int, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
AnyPrior: TypeAlias = Annotated[Any, WithJsonSchema({"anyOf": [PRIOR_REFERENCE, PRIOR]})]
Anything: TypeAlias = Annotated[Any, WithJsonSchema({})]
Base64: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]


ContextObject: TypeAlias = dict[
    Annotated[str, Field(min_length=1, max_length=MAX_TEXT)],
    Annotated[str, Field(max_length=MAX_TEXT)],
]
Context: TypeAlias = Annotated[ContextObject, Field(max_length=MAX_KEYS)] | str


def _one_of(one: str, other: str) -> Schema:
    """A schema that requires exactly one of two members.

    Client generators turn this form into a class, but `oneOf` into an untyped union.
    """
    needs_one: Schema = {"required": [one]}
    return {"if": {"required": [other]}, "then": {"not": needs_one}, "else": needs_one}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Tau(RootModel[Literal[0] | Annotated[float, Field(ge=MIN_TAU)]]):
    """Strength of the adjustment: 0 is the model as trained, 1 the full change of prior."""


class _Open(BaseModel):
    """A schema of the Open Inference Protocol, to which clients may add members."""

    model_config = ConfigDict(extra="ignore")


class Fault(_Closed):
    """One wrong field."""

    field: str
    message: str


class Problem(_Closed):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(pattern="^/problems/[a-z-]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    errors: list[Fault] = []


class OipProblem(Problem):
    """An error, with the member that clients of the Open Inference Protocol read."""

    error: str


class Parameters(_Closed):
    """The settings that a JSON body may give instead of the query."""

    tau: Tau = Tau(0)
    prior: AnyPrior = None
    top_k: Count = 5
    version: Count = 1
    context: Context = {}


class EncodedImage(_Closed):
    """An image file, encoded in base64."""

    b64: Base64


Instances: TypeAlias = Annotated[
    list[list[Anything] | float | str | EncodedImage | dict[str, Anything]], Field(min_length=1)
]


class PredictRequest(_Closed):
    """Rows to classify: instances, or for a model of several inputs its columns by name."""

    model_config = ConfigDict(json_schema_extra=_one_of("instances", "inputs"))

    instances: Instances = []
    inputs: Annotated[dict[str, list[Anything]], Field(min_length=1)] = {}
    parameters: Parameters = Parameters()


class PredictForm(BaseModel):
    """Image files under any field name, and the parameters as text."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": BINARY})

    tau: str = ""
    prior: str = ""
    top_k: str = ""
    version: str = ""
    context: str = ""


class Choice(_Closed):
    """A class and its probability."""

    label: str
    index: Index
    probability: Probability


class Decision(_Closed):
    """The decision with the lowest expected cost, under a prior with costs; null: rejected."""

    label: str | None
    index: Index | None
    expected_cost: Annotated[float, Field(ge=0)]
    rejected: bool


class Prediction(Choice):
    """The most probable class of a row, the next ones, and the most probable class at tau = 0.

    `decision` is present if the prior has costs.
    """

    top: Annotated[list[Choice], Field(min_length=1)]
    unadjusted: Choice
    decision: Decision = Decision(label=None, index=None, expected_cost=0, rejected=True)


class UsedContext(_Closed):
    """The prior whose context or schedule chose the one used, what decided, and any fallback.

    key, value: from the request's context, or `schedule` and the number of the rule.
    """

    name: str | None
    revision: Index
    key: str | None
    value: str | None
    fallback: Fallback | None


class UsedPrior(_Closed):
    """The prior revision with which an answer was computed; `name` is null for an inline prior."""

    name: str | None
    revision: Index
    context: UsedContext = UsedContext(name=None, revision=0, key=None, value=None, fallback=None)


Predictions: TypeAlias = Annotated[list[Prediction], Field(min_length=1)]


class Answer(_Closed):
    """Predictions under one tau and prior."""

    tau: Annotated[float, Field(ge=0)]
    prior: UsedPrior
    predictions: Predictions
    warnings: list[str] = []


class PredictAnswer(Answer):
    """Predictions, and the model version that made them."""

    model: str
    version: Count


class AdjustSetting(_Closed):
    """A tau and a prior. What a setting leaves out comes from the parameters of the request."""

    tau: Tau = Tau(0)
    prior: AnyPrior = None
    context: Context = {}


class AdjustRequest(_Closed):
    """Rows or logits, and the settings to answer for."""

    model_config = ConfigDict(json_schema_extra=_one_of("instances", "logits"))

    instances: Instances = []
    logits: Annotated[list[list[float]], Field(min_length=1)] = []
    settings: Annotated[list[AdjustSetting], Field(min_length=1, max_length=100)]
    parameters: Parameters = Parameters()


class AdjustAnswer(_Closed):
    """The predictions of each setting, in the order of the request."""

    model: str
    version: Count
    results: Annotated[list[Answer], Field(min_length=1)]


class InferTensor(_Open):
    """A tensor, as JSON or as part of the binary body."""

    name: str
    shape: Annotated[list[Index], Field(min_length=1, max_length=16)]
    datatype: Literal[tuple(DATATYPES)]  # type: ignore[valid-type]
    data: list[Anything] = []


class BinarySize(_Open):
    """The number of a tensor's bytes in the binary part of the body."""

    binary_data_size: Index = 0


class InferInput(InferTensor):
    """An input of the model, or `tau` or `prior` for each row."""

    parameters: BinarySize = BinarySize()


class InferParameters(_Open):
    """The settings of every row of the request."""

    tau: Tau = Tau(0)
    prior: str = ""
    context: str = ""
    top_k: Count = 5
    timeout: Annotated[int, Field(ge=0, description="Microseconds")] = 0
    binary_data_output: bool = False


class OutputParameters(_Open):
    """How one output is sent."""

    binary_data: bool = False
    classification: Count = 1


class WantedOutput(_Open):
    """An output that the client wants."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Open):
    """A request of the Open Inference Protocol."""

    id: str = ""
    model_name: str | None = None
    model_version: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InferInput], Field(min_length=1)]
    outputs: list[WantedOutput] = []


class InferOutput(InferTensor):
    """An output of the model."""

    parameters: dict[str, Anything] = {}


class InferAnswer(_Closed):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, str | float] = {}
    outputs: Annotated[list[InferOutput], Field(min_length=1)]


_MODELS: tuple[type[BaseModel], ...] = (
    OipProblem, Problem, PredictRequest, PredictForm, PredictAnswer, AdjustRequest, AdjustAnswer,
    InferRequest, InferAnswer,
)  # fmt: skip


def components(tau_cap: float) -> dict[str, Schema]:
    """Return every schema that the scoring routes refer to, by name. tau_cap: the largest tau."""
    _, document = models_json_schema(
        [(model, "validation") for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Schema] = document["$defs"]
    for schema in schemas.values():
        for member in schema.get("properties", {}).values():
            member.pop("default", None)  # here a default only means that the member is optional
    schemas["Tau"]["anyOf"][1]["maximum"] = tau_cap
    return schemas


def ref(name: str) -> Schema:
    """Return a reference to a component schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def parameter(name: str, schema: Schema, description: str, *, where: str = "query") -> Schema:
    """Return the description of an operation's parameter. where: "query", "path" or "header".

    Parameters of the path are required.
    """
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": schema,
        "description": description,
    }


def binary(*media_types: str) -> dict[str, Any]:
    """Return the field `content` of a body that is raw bytes, of these media types."""
    return {each: {"schema": BINARY} for each in media_types}
