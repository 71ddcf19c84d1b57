"""The form of a prior in JSON, and the checks of it that need no model (docs/priors.md)."""

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from service.contract.automatic import AutoAdopt, quiet_hours_faults
from service.contract.members import costs as of_costs
from service.contract.members import switch as of_switch
from service.contract.members.costs import CostsBody
from service.contract.members.switch import ContextBody, ScheduleBody
from service.contract.portions import MORE_FAULTS
from service.contract.strict import Strict

VectorSpec: TypeAlias = dict[str, float] | list[float] | tuple[float, ...]

MAX_LISTED_ERRORS = 50
_MAX_FIELD = 200
"""Characters of a field's name in an error: a client's class name may be as long as its body."""


class InvalidPrior(ValueError):
    """An invalid prior; `errors` lists every wrong field as {"field": ..., "message": ...}."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        listed = [(clip(name, _MAX_FIELD), text) for name, text in errors[:MAX_LISTED_ERRORS]]
        if len(errors) > len(listed):
            listed.append(("", f"and {len(errors) - len(listed)} more"))
        self.errors = [{"field": name, "message": message} for name, message in listed]
        super().__init__("; ".join(f"{n}: {m}" if n else m for n, m in listed[:5]))


class PriorBody(Strict):
    """A prior as JSON: each member, with its type and its range."""

    label_frequencies: VectorSpec | None = None
    target: Literal["uniform", "training"] | VectorSpec = "uniform"
    smoothing: Annotated[float, Field(ge=0)] = 0.0
    others: Annotated[float, Field(ge=0)] | None = None
    expected: bool = False
    note: Annotated[str, Field(max_length=2000)] = ""
    auto_adopt: AutoAdopt | None = None
    costs: CostsBody | None = None
    context: ContextBody | None = None
    schedule: ScheduleBody | None = None

    @field_validator("label_frequencies", "target")
    @classmethod
    def _kept(cls, given: Any) -> Any:
        return kept_vector(given) if isinstance(given, (dict, list)) else given

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unused members that an older release does not know and would refuse."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if name not in STRUCTURED or value}


STRUCTURED = ("auto_adopt", "costs", "context", "schedule")
"""Members of a prior that are not vectors; they are written only where they are set."""


def parse_prior(body: object) -> PriorBody:
    """Check the form of a decoded JSON body. Raises InvalidPrior naming every wrong field."""
    if not isinstance(body, dict):
        wanted = "an object with target or label_frequencies"
        raise InvalidPrior([("", f"the prior is {_kind(body)}; expected {wanted}")])
    errors: list[tuple[str, str]] = []
    for name in ("label_frequencies", "target"):
        if name in body:
            errors += _vector_form_errors(name, body[name])
    errors += of_costs.form_faults(body.get("costs"))
    errors += of_switch.form_faults(body)
    errors += quiet_hours_faults(body.get("auto_adopt"))
    if errors:
        raise InvalidPrior(errors)
    try:
        return body_of(body)
    except ValidationError as error:
        raise InvalidPrior(pydantic_errors(error)) from None


_VECTORS = ("label_frequencies", "target")
_LONG = 4096
"""Vectors of more values than this are checked without pydantic."""


def kept_vector(vector: VectorSpec) -> VectorSpec:
    """The vector as a body keeps it: a long list becomes a tuple.

    Each full garbage collection visits every entry of a list, in one go. It visits the entries of a
    tuple of numbers only once.
    """
    return tuple(vector) if isinstance(vector, list) and len(vector) > _LONG else vector


def body_of(document: Mapping[str, Any]) -> PriorBody:
    """The body that a document describes. Raises ValidationError.

    Long vectors are checked here, entry by entry: pydantic would let no other thread run meanwhile.
    """
    longs = {}
    for name in _VECTORS:
        found = document.get(name)
        if isinstance(found, (dict, list)) and len(found) > _LONG:
            entries = found.values() if isinstance(found, dict) else found
            if all(type(each) in (int, float) and _finite(each) for each in entries):
                longs[name] = found
    if not longs:
        return PriorBody.model_validate(document)
    short = {name: value for name, value in document.items() if name not in longs}
    vectors = {
        name: {key: float(value) for key, value in found.items()}
        if isinstance(found, dict)
        else kept_vector([float(value) for value in found])
        for name, found in longs.items()
    }
    return PriorBody.model_validate(short).model_copy(update=vectors)


def document_of(body: PriorBody, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The body as JSON values, in the order of its fields; long vectors are copied at most once."""
    longs = {
        name: list(value) if isinstance(value, tuple) else value
        for name in _VECTORS
        if isinstance(value := getattr(body, name), (dict, list, tuple)) and len(value) > _LONG
    }
    found = {**body.model_dump(mode="json", exclude={*without, *longs}), **longs}
    return {name: found[name] for name in PriorBody.model_fields if name in found}


def pydantic_errors(error: ValidationError) -> list[tuple[str, str]]:
    """(field, message) of each fault; the message names the value that was given."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == MORE_FAULTS:
            continue
        if item["type"] == "extra_forbidden":
            message = "unknown member; correct its name, or leave it out"
        elif item["type"] == "missing":
            message = "missing; this member is required"
        else:
            message = f"{item['msg']}; got {short(item['input'])}"
        found.setdefault(name, message)
    return list(found.items())


def _vector_form_errors(name: str, value: Any) -> list[tuple[str, str]]:
    """One error for each wrong entry; pydantic's union would report each of them three times."""
    entries: Iterable[tuple[object, object]]
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    elif value in ("uniform", "training") if name == "target" else value is None:
        return []
    else:
        words = " or 'uniform' or 'training'" if name == "target" else " or null"
        return [(name, f"expected an object by class name, a list{words}; got {short(value)}")]
    return [
        (f"{name}.{key}", f"expected a number of at least 0; got {short(item)}")
        for key, item in entries
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not _finite(item)
    ]


def _finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(
        type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__
    )


_REPR = reprlib.Repr()
"""Writes the beginning of a value: the whole of a long one would be written in one call."""
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxlevel = 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 200


def short(value: object) -> str:
    """The beginning of a value, as an error names it."""
    return clip(_REPR.repr(value))


def clip(text: str, limit: int = 60) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
