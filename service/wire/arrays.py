"""JSON of a request → the model's input tensor; every fault is named here."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.contract.bundle import InputSpec

Array = NDArray[Any]
MAX_TEXT_CHARACTERS = 20_000
"""Of one text: a graph that parts texts into words fills up every row of a batch to the most words of any of them."""


class Malformed(ValueError):
    """Bytes that are not what their content type says."""


class InvalidInput(ValueError):
    """Well-formed input that the model cannot take."""


class InvalidImage(ValueError):
    """Bytes that are not an image that can be taken."""


class InvalidParameter(ValueError):
    """A parameter with a wrong value."""


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
    """Strings in row-major order as the model's input tensor: [B], or [B, …] where the model wants more axes.

    Raises InvalidInput for a text of more than MAX_TEXT_CHARACTERS.
    """
    for at, text in enumerate(strings):
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInput(
                f"instance {at // texts_per_row(spec)} is a text of {len(text):,} characters; "
                f"expected at most {MAX_TEXT_CHARACTERS:,}"
            )
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
    nothing is wrapped around. NaN and infinity in what is cast are refused, those that the cast makes included; in an
    array that already has the model's type the batcher finds them, for all the rows of a batch at once.
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
        return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")
    if array.dtype.kind in "biuf":
        fit = cast(array, dtype)
    else:
        raise InvalidInput(f"the input is text; the model takes {spec.dtype}")
    if not is_finite(fit):
        raise InvalidInput(f"instance {rows_not_finite(fit)[0]} {not_finite(dtype)}")
    return fit


@lru_cache(maxsize=64)
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name)


def is_finite(array: Array) -> bool:
    """Whether all are finite. NaN and infinity carry over to the sum of the squares, which is quicker to have."""
    if array.dtype == np.float32 and math.isfinite(np.vdot(array, array)):
        return True
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def rows_not_finite(array: Array) -> list[int]:
    """Which rows hold NaN or infinity."""
    rows: list[int] = np.flatnonzero(
        ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    ).tolist()
    return rows


def not_finite(dtype: np.dtype[Any]) -> str:
    """What is said of such a row."""
    return f"holds NaN or infinity in {dtype}; expected finite numbers"


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
