"""The settings of a request (tau, prior, top_k, version, context), from its query string, form
fields or JSON body.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from service.contract.members.switch import MAX_KEYS, MAX_TEXT
from service.wire.digits import decimal_number, whole_number
from service.wire.faults import InvalidParameter, Malformed, TooLarge
from service.wire.json_text import parse_json
from service.wire.shown import short

T = TypeVar("T")

MAX_INLINE_PRIOR_VALUES = 100_000
_MAX_FIELDS = 16
_PARAMETERS = ("tau", "prior", "top_k", "version", "context")
_MAX_TAU_DIGITS = 20
_MAX_CACHED_QUERY_BYTES = 256
"""Queries up to this length are cached, since clients repeat them. Longer ones hold inline priors
and are parsed each time.
"""


class Parameters(NamedTuple):
    """The settings of a request, from its query string or its body; None where it sets nothing."""

    tau: float | None = None
    prior: str | dict[str, Any] | None = None
    top_k: int | None = None
    version: int | None = None
    context: Mapping[str, str] | None = None
    """Keys and values by which a prior's `context` chooses another, such as {"site": "north"}."""

    def merged(self, other: "Parameters") -> "Parameters":
        """The settings of both. Raises Malformed when both set a parameter to different values."""
        if other == NO_PARAMETERS:
            return self
        values = {}
        for name in _PARAMETERS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise Malformed(
                    f"{name} is given twice: {short(mine)} in the query "
                    f"and {short(theirs)} in the body; give only one of them"
                )
            values[name] = theirs if mine is None else mine
        return Parameters(**values)


NO_PARAMETERS = Parameters()


def query_parameters(query: bytes) -> Parameters:
    """Parameters of a raw query string. Raises Malformed or InvalidParameter."""
    if len(query) > _MAX_CACHED_QUERY_BYTES:
        return _read_query(query)
    return _cached_query(query)


def _read_query(query: bytes) -> Parameters:
    if not query:
        return NO_PARAMETERS
    if query.startswith(b"tau="):  # clients often vary tau while the rest repeats
        text, _, rest = query[4:].partition(b"&")
        fits = text.replace(b".", b"", 1).isdigit() and len(text) <= _MAX_TAU_DIGITS
        if fits and not rest.startswith(b"tau="):
            others = query_parameters(rest)
            if others.tau is None and rest != query:
                return others._replace(tau=float(text))
    try:
        return text_parameters(_pairs(query.decode("ascii")))
    except ValueError as error:
        if isinstance(error, (Malformed, InvalidParameter)):
            raise
        raise Malformed(
            f"the query string cannot be read: {error}; expected NAME=VALUE pairs joined by '&'"
        ) from None


_cached_query = lru_cache(maxsize=1024)(_read_query)


def _pairs(query: str) -> list[tuple[str, str]]:
    """Names and values of a query string. Raises ValueError."""
    return parse_qsl(
        query,
        keep_blank_values=True,
        strict_parsing=True,
        max_num_fields=_MAX_FIELDS,
        errors="strict",
    )


def text_parameters(pairs: Iterable[tuple[str, str]]) -> Parameters:
    """Parameters of a query string or of form fields. Raises Malformed or InvalidParameter.

    A prior that begins with a brace is an inline prior in JSON.
    """
    tau = prior = top_k = version = context = None
    for name, value in pairs:
        if name == "tau":
            tau = _same(name, tau, value)
        elif name == "prior":
            prior = _same(name, prior, value)
        elif name == "top_k":
            top_k = _same(name, top_k, value)
        elif name == "version":
            version = _same(name, version, value)
        elif name == "context":
            context = _same(name, context, value)
        else:
            raise Malformed(
                f"unknown parameter '{name[:60]}'; expected one of {', '.join(_PARAMETERS)}"
            )
    return Parameters(
        _text_number(tau),
        prior_of_text(prior),
        _text_integer("top_k", top_k),
        _text_integer("version", version),
        None if context is None else context_of(context),
    )


def _same(name: str, before: str | None, value: str) -> str:
    """Return the value. Raises Malformed if another was given before."""
    if before is not None and before != value:
        raise Malformed(
            f"{name} is given twice: {before[:60]!r} and {value[:60]!r}; give only one of them"
        )
    return value


def prior_of_text(text: str | None) -> str | dict[str, Any] | None:
    """A prior's name, or an inline prior when the text is a JSON object. Raises Malformed."""
    if text is None or not text.startswith("{"):
        return text
    try:
        found: dict[str, Any] = parse_json(text.encode())
    except (Malformed, UnicodeEncodeError) as error:
        raise Malformed(f"the inline prior is not JSON: {error}") from None
    return _bounded(found)


def context_of(given: object) -> dict[str, str]:
    """The context given as an object of texts, as `KEY:VALUE`, or as the text of a JSON object.

    Raises InvalidParameter or Malformed.
    """
    if isinstance(given, str) and not given.startswith("{"):
        key, colon, value = given.partition(":")
        if not colon:
            raise InvalidParameter(f"context is {short(given)}; expected KEY:VALUE, as site:north")
        given = {key: value}
    elif isinstance(given, str):
        try:
            given = parse_json(given.encode())
        except (Malformed, UnicodeEncodeError) as error:
            raise Malformed(f"the context is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidParameter(
            f"context is {short(given)}; expected an object of at most {MAX_KEYS} keys"
        )
    if len(given) > MAX_KEYS:
        raise InvalidParameter(f"context has {len(given)} keys; expected at most {MAX_KEYS}")
    for key, value in given.items():
        if not 1 <= len(key) <= MAX_TEXT:
            raise InvalidParameter(
                f"context has a key of {len(key)} characters; expected 1 to {MAX_TEXT}"
            )
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise InvalidParameter(
                f"context has {short(key)}: {short(value)}; expected texts of at most {MAX_TEXT} "
                "characters"
            )
    return given


def _bounded(prior: T) -> T:
    """The prior, unless it is an inline prior of too many values. Raises TooLarge."""
    costs = prior.get("costs") if isinstance(prior, dict) else None
    parts = [*prior.values(), *_cost_parts(costs)] if isinstance(prior, dict) else []
    for vector in parts:
        if isinstance(vector, (list, dict)) and len(vector) > MAX_INLINE_PRIOR_VALUES:
            raise TooLarge(
                f"the inline prior holds {len(vector)} values; "
                f"at most {MAX_INLINE_PRIOR_VALUES} are accepted in a request; "
                "store the prior and name it"
            )
    return prior


def _cost_parts(costs: object) -> Iterator[Any]:
    """The vectors in the `costs` of an inline prior; all rows of the matrix count as one."""
    if isinstance(costs, dict):
        yield from (costs.get("miss"), costs.get("pairs"))
        rows = costs.get("matrix")
        if isinstance(rows, list):
            yield [None] * sum(len(row) for row in rows if isinstance(row, list))


def body_parameters(members: object) -> Parameters:
    """Parameters of a JSON body's `parameters`. Raises InvalidParameter or Malformed."""
    if members is None:
        return NO_PARAMETERS
    if not isinstance(members, dict):
        raise InvalidParameter(f"parameters are {short(members)}; expected an object")
    for name in members:
        if name not in _PARAMETERS:
            raise Malformed(
                f"unknown parameter '{name[:60]}'; expected one of {', '.join(_PARAMETERS)}"
            )
    tau, prior = members.get("tau"), _bounded(members.get("prior"))
    if tau is not None and (isinstance(tau, bool) or not isinstance(tau, (int, float))):
        raise InvalidParameter(f"tau is {short(tau)}; expected a number")
    if prior is not None and not isinstance(prior, (str, dict)):
        raise InvalidParameter(f"prior is {short(prior)}; expected a name or an object")
    for name in ("top_k", "version"):
        value = members.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidParameter(f"{name} is {short(value)}; expected an integer")
    return Parameters(
        tau=None if tau is None else float(tau),
        prior=prior,
        top_k=members.get("top_k"),
        version=members.get("version"),
        context=None if members.get("context") is None else context_of(members["context"]),
    )


def _text_number(text: str | None) -> float | None:
    if text is None:
        return None
    number = decimal_number(text)
    if number is None:
        raise InvalidParameter(f"tau is '{text[:60]}'; expected a number")
    return number


def _text_integer(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    number = whole_number(text, below=10**9)
    if number is None:
        raise InvalidParameter(f"{name} is '{text[:60]}'; expected a whole number of 1 to 9 digits")
    return number
