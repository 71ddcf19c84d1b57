"""Bytes of a request → arrays and parameters; every fault is named here, nothing is unpickled."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import orjson
from numpy.typing import NDArray

from service.contract.bundle import InputSpec

Array = NDArray[Any]
_MAX_FIELDS = 16
_PARAMETERS = ("tau", "prior", "top_k", "version")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Malformed(ValueError):
    """Bytes that are not what their content type says."""


class InvalidInput(ValueError):
    """Well-formed input that the model cannot take."""


class InvalidParameter(ValueError):
    """A parameter with a wrong value."""


class Parameters(NamedTuple):
    """What a request may set, from the query string or the body; None where it sets nothing."""

    tau: float | None = None
    prior: str | dict[str, Any] | None = None
    top_k: int | None = None
    version: int | None = None

    def merged(self, other: "Parameters") -> "Parameters":
        """Both together. Raises Malformed when they differ in a parameter that both set."""
        if other == NO_PARAMETERS:
            return self
        values = {}
        for name in _PARAMETERS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise Malformed(
                    f"{name} is given twice: {short(mine)} in the query and {short(theirs)} in the body"
                )
            values[name] = theirs if mine is None else mine
        return Parameters(**values)


NO_PARAMETERS = Parameters()


@lru_cache(maxsize=1024)
def query_parameters(query: bytes) -> Parameters:
    """Parameters of a raw query string. Raises Malformed or InvalidParameter."""
    if not query:
        return NO_PARAMETERS
    try:
        return text_parameters(_pairs(query.decode("ascii")))
    except ValueError as error:
        if isinstance(error, (Malformed, InvalidParameter)):
            raise
        raise Malformed(f"the query string cannot be read: {error}") from None


def _pairs(query: str) -> list[tuple[str, str]]:
    """Names and values of a query string; one without escapes is taken apart the short way. Raises ValueError."""
    if "%" not in query and "+" not in query and query.count("&") < _MAX_FIELDS:
        found = [
            (name, value)
            for name, _, value in [f.partition("=") for f in query.split("&")]
            if value
        ]
        if len(found) == query.count("&") + 1:
            return found
    return parse_qsl(
        query,
        keep_blank_values=True,
        strict_parsing=True,
        max_num_fields=_MAX_FIELDS,
        errors="strict",
    )


def text_parameters(pairs: Iterable[tuple[str, str]]) -> Parameters:
    """Parameters of a query string or of form fields. A prior that begins with a brace is an inline one, in JSON.

    Raises Malformed or InvalidParameter.
    """
    tau = prior = top_k = version = None
    for name, value in pairs:
        if name == "tau":
            tau = _same(name, tau, value)
        elif name == "prior":
            prior = _same(name, prior, value)
        elif name == "top_k":
            top_k = _same(name, top_k, value)
        elif name == "version":
            version = _same(name, version, value)
        else:
            raise Malformed(
                f"unknown parameter '{name[:60]}'; expected one of {', '.join(_PARAMETERS)}"
            )
    return Parameters(
        _text_number(tau),
        prior_of_text(prior),
        _text_integer("top_k", top_k),
        _text_integer("version", version),
    )


def _same(name: str, before: str | None, value: str) -> str:
    """The value, unless another was given before. Raises Malformed."""
    if before is not None and before != value:
        raise Malformed(f"{name} is given twice: {before[:60]!r} and {value[:60]!r}")
    return value


def prior_of_text(text: str | None) -> str | dict[str, Any] | None:
    """A prior's name, or an inline prior when the text is a JSON object. Raises Malformed."""
    if text is None or not text.startswith("{"):
        return text
    try:
        found: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the inline prior is not JSON: {error}") from None
    return found


def body_parameters(members: object) -> Parameters:
    """Parameters of the `parameters` member of a JSON body. Raises InvalidParameter or Malformed."""
    if members is None:
        return NO_PARAMETERS
    if not isinstance(members, dict):
        raise InvalidParameter(f"parameters must be an object; got {short(members)}")
    for name in members:
        if name not in _PARAMETERS:
            raise Malformed(
                f"unknown parameter '{name[:60]}'; expected one of {', '.join(_PARAMETERS)}"
            )
    tau, prior = members.get("tau"), members.get("prior")
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
    )


def parse_json(body: bytes | bytearray) -> Any:
    """Decode JSON strictly: no NaN, no infinity, at most 1,024 levels. Raises Malformed."""
    if not body:
        raise Malformed("the body is empty")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None


def parse_json_object(body: bytes | bytearray, allowed: Sequence[str]) -> dict[str, Any]:
    """Decode a JSON object with no member but those allowed. Raises Malformed."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Malformed(f"the body must be a JSON object; got {short(document)}")
    unknown = [name for name in document if name not in allowed]
    if unknown:
        raise Malformed(f"unknown member '{unknown[0][:60]}'; expected {', '.join(allowed)}")
    return document


def array_of(instances: Sequence[Any], spec: InputSpec, *, may_hold_booleans: bool) -> Array:
    """JSON instances (already decoded) as the model's input tensor [B, …]. Raises InvalidInput."""
    if spec.kind == "text":
        return _text_instances(instances, spec)
    if may_hold_booleans and spec.dtype != "bool":
        _refuse_booleans(instances)
    try:
        array = np.array(instances)
    except ValueError:
        raise InvalidInput(_why_ragged(instances, spec)) from None
    if array.dtype.kind not in "biuf":
        raise InvalidInput(_why_ragged(instances, spec))
    return fitted(array, spec)


def text_array(strings: Sequence[str], spec: InputSpec) -> Array:
    """Strings in row-major order as the model's input tensor: [B], or [B, …] where the model wants more axes."""
    flat = np.empty(len(strings), object)
    flat[:] = strings
    return flat.reshape([-1, *(1 if n is None else n for n in spec.shape[1:])])


def texts_per_row(spec: InputSpec) -> int:
    """Strings in one row of a text model's input: 1 unless the model has several text columns."""
    return math.prod(1 if n is None else n for n in spec.shape[1:])


def _text_instances(instances: Sequence[Any], spec: InputSpec) -> Array:
    columns = texts_per_row(spec)
    if columns == 1:
        strings = instances
    else:
        for row, item in enumerate(instances):
            if not isinstance(item, list) or len(item) != columns:
                raise InvalidInput(
                    f"instance {row} is {short(item)}; expected a list of {columns} strings"
                )
        strings = [text for item in instances for text in item]
    for at, text in enumerate(strings):
        if not isinstance(text, str):
            raise InvalidInput(f"instance {at // columns} holds {short(text)}; expected a string")
    return text_array(strings, spec)


def fitted(array: Array, spec: InputSpec) -> Array:
    """An array cast to the model's dtype and checked against its shape. Raises InvalidInput naming the fault.

    Floats become the model's float type and integers may become floats; a float is never made an integer and
    nothing is wrapped around. NaN and infinity are refused, those that the cast makes included.
    """
    if spec.kind == "text":
        return _fitted_text(array, spec)
    wanted = spec.shape
    shape = array.shape
    if [*shape[1:]] != wanted[1:] and (
        len(shape) != len(wanted)
        or any(
            want is not None and want != got
            for want, got in zip(wanted[1:], shape[1:], strict=True)
        )
    ):
        raise InvalidInput(
            f"the input has shape {list(shape)}; the model takes {_shape_words(wanted)}"
        )
    if shape[0] == 0:
        raise InvalidInput("there are no instances")
    dtype = _dtype(spec.dtype)
    if array.dtype == dtype:
        flags = (
            array.flags
        )  # bytes of a request may lie anywhere, and the runtime reads them where they are
        fit = array if flags.c_contiguous and flags.aligned else np.array(array, order="C")
    elif array.dtype.kind in "biuf":
        fit = cast(array, dtype)
    else:
        raise InvalidInput(f"the input is text; the model takes {spec.dtype}")
    if dtype.kind == "f" and not _is_finite(fit):
        rows = np.flatnonzero(~np.isfinite(fit).reshape(len(fit), -1).all(axis=1))
        raise InvalidInput(
            f"instance {rows[0]} holds NaN or infinity in {spec.dtype}; expected finite numbers"
        )
    return fit


@lru_cache(maxsize=64)
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name)


def _is_finite(array: Array) -> bool:
    """Whether all are finite. NaN and infinity carry over to the sum of the squares, which is quicker to have."""
    if array.dtype == np.float32 and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def _fitted_text(array: Array, spec: InputSpec) -> Array:
    """An array of text [B] or of the model's own shape."""
    if array.dtype.kind not in "USO":
        raise InvalidInput(f"the input is {array.dtype}; the model takes text")
    columns = texts_per_row(spec)
    if not array.ndim or math.prod(array.shape[1:]) != columns:
        raise InvalidInput(
            f"the input has shape {list(array.shape)}; the model takes {_shape_words(spec.shape)}"
        )
    if not len(array):
        raise InvalidInput("there are no instances")
    try:
        strings = [t.decode() if isinstance(t, bytes) else t for t in array.ravel().tolist()]
        "".join(strings).encode()  # a lone surrogate cannot be handed to the runtime
    except UnicodeError:
        raise InvalidInput("the input holds bytes that are not UTF-8 text") from None
    return text_array(strings, spec)


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers as another type where that loses no more than precision. Raises InvalidInput."""
    source, target = array.dtype.kind, dtype.kind
    if (source == "b") != (target == "b") or (source == "f" and target in "iu"):
        raise InvalidInput(f"the input is {array.dtype}; the model takes {dtype}")
    if target in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise InvalidInput(
                f"the input holds {low if low < limits.min else high}; {dtype} takes {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the caller
        return np.ascontiguousarray(array, dtype)


def _refuse_booleans(instances: Sequence[Any]) -> None:
    for row, item in enumerate(instances):
        stack = [item]
        while stack:
            value = stack.pop()
            if isinstance(value, bool):
                raise InvalidInput(f"instance {row} holds {str(value).lower()}; expected numbers")
            if isinstance(value, list):
                stack.extend(value)


def _why_ragged(instances: Sequence[Any], spec: InputSpec) -> str:
    """Say which instance is not a full array of numbers."""
    wanted = _shape_words(spec.shape)
    for row, item in enumerate(instances):
        try:
            array = np.array(item)
        except ValueError:
            return f"instance {row} is ragged; the model takes {wanted}"
        if array.dtype.kind not in "biuf":
            return f"instance {row} is {short(item)}; expected numbers in the shape {wanted}"
        if (
            list(array.shape) != [n for n in spec.shape[1:] if n is not None]
            and None not in spec.shape[1:]
        ):
            return f"instance {row} has shape {list(array.shape)}; the model takes {wanted}"
    return f"the instances differ in shape; the model takes {wanted}"


def _shape_words(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join(["batch", *("any" if n is None else str(n) for n in shape[1:])]) + "]"


def _text_number(text: str | None) -> float | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):  # float() would take nan, 1_0 and other alphabets' digits
        raise InvalidParameter(f"tau is '{text[:60]}'; expected a number")
    return float(text)


def _text_integer(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidParameter(f"{name} is '{text[:60]}'; expected a whole number of at least 1")
    return int(text)


def short(value: object, limit: int = 60) -> str:
    """What came, for an error message: its kind when it is long."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def example_input(spec: InputSpec, *, free: int = 1) -> Array:
    """One row that the model takes, for warm-up: zeros or an empty string; `free` is the size of free dimensions."""
    if spec.kind == "text":
        return text_array([""] * texts_per_row(spec), spec)
    return np.zeros((1, *(free if n is None else n for n in spec.shape[1:])), spec.dtype)
