"""Turns JSON instances and arrays of a request into the model's input tensor, and names every
fault.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.columns import empty_record, empty_values, records
from service.contract.inputs.finite import is_finite, not_finite, rows_not_finite
from service.contract.inputs.spec import MAX_TEXT_CHARACTERS, InputSpec
from service.wire.columns import check_finite_or_missing, record_rows, with_missing
from service.wire.faults import InvalidInput, TooLarge
from service.wire.json_text import MAX_WHOLE_BYTES, holds
from service.wire.nested import Ragged, first_wrong, only_numbers, shape_of
from service.wire.shown import NO_ROWS, shape_words, short

Array = NDArray[Any]
MAX_TENSOR_BYTES = 256 * 2**20
"""The largest tensor that converting a request's values may make."""


def array_of(
    instances: Sequence[Any], spec: InputSpec, *, are_numbers: bool = False, first_row: int = 0
) -> Array:
    """JSON instances (already decoded) as the model's input tensor [B, …]. Raises InvalidInput.

    are_numbers: skip the search for strings and booleans. The caller knows that there are none, or
    the body is too short for its strings to become a large array. first_row: the number of the
    first instance, for messages.
    """
    if spec.kind == "text":
        return _text_instances(instances, spec)
    if spec.kind == "columns":
        return record_rows(instances, spec, array_of=array_of, first_row=first_row)
    if spec.missing:
        instances = with_missing(list(instances))
    try:
        array = np.array(instances) if are_numbers else _array_of_checked(instances, spec)
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(first_wrong(instances, first_row=first_row, wanted=spec.shape)) from None
    if array.dtype.kind not in "biuf":
        raise InvalidInput(first_wrong(instances, first_row=first_row, wanted=spec.shape))
    return fitted(array, spec, first_row=first_row)


def may_hold_strings(body: bytes | bytearray, member: bytes = b"instances") -> bool:
    """Whether the list `member` of a JSON body may hold a string or a boolean; False is certain.

    NumPy turns a list with strings into an array whose elements all have the longest one's width.
    """
    if len(body) <= _SHORT_BODY_BYTES:
        return b"true" in body or b"false" in body
    if len(body) > MAX_WHOLE_BYTES or holds(body, b"true") or holds(body, b"false"):
        return True
    begin, name, key = body.find(b"["), b'"%b"' % member, b'"%b":' % member
    at = body.find(name, 0, _HEAD_BYTES)
    if not 0 <= at < begin < at + _HEAD_BYTES or b"\\" in body or holds(body, name, at + 1):
        return True
    if bytes(body[at:begin]).rstrip(b" \t\r\n") != key:
        return True
    quote = body.find(b'"', begin)
    end = len(body) if quote < 0 else quote
    return quote >= 0 and body.count(b"[", begin, end) != body.count(b"]", begin, end)


_SHORT_BODY_BYTES = 2048
_HEAD_BYTES = 16 * 1024
"""Where the list of a plain body begins."""


def _array_of_checked(instances: Sequence[Any], spec: InputSpec) -> Array:
    """The array of instances whose values are not known to be numbers. Raises Ragged."""
    shape, values = shape_of(list(instances))
    booleans = spec.dtype == "bool" and set(map(type, values)) == {bool}
    if not only_numbers(values) and not booleans:
        raise Ragged("not numbers")
    return np.array(values).reshape(shape)


def text_array(strings: Sequence[str], spec: InputSpec) -> Array:
    """Strings in row-major order as the model's input tensor: [B], or [B, …] where the model wants
    more axes.

    Raises InvalidInput for a text of more than MAX_TEXT_CHARACTERS, or one that is not a category.
    """
    if spec.categories is not None:
        _check_categories(strings, spec)
    for at, text in enumerate(strings):
        if len(text) > MAX_TEXT_CHARACTERS:
            raise _too_long(at // texts_per_row(spec), f"{len(text):,} characters")
    flat = np.empty(len(strings), object)
    flat[:] = strings
    return flat.reshape([-1, *(1 if n is None else n for n in spec.shape[1:])])


def check_text_bytes(text: bytes | bytearray, row: int) -> None:
    """Raise InvalidInput for bytes that are more than any text may have, before they are
    decoded.
    """
    if len(text) > 4 * MAX_TEXT_CHARACTERS:
        raise _too_long(row, f"{len(text):,} bytes")


def _too_long(row: int, size: str) -> InvalidInput:
    return InvalidInput(
        f"instance {row} is a text of {size}; expected at most {MAX_TEXT_CHARACTERS:,} characters"
    )


def _check_categories(strings: Sequence[str], spec: InputSpec) -> None:
    """Raise InvalidInput for a text that is not among its column's categories."""
    columns = texts_per_row(spec)
    for column in range(columns):
        values = spec.categories_of(column)
        if values is None:
            continue
        known = set(values)
        for row, text in enumerate(strings[column::columns]):
            if text not in known:
                place = f"instance {row}" if columns == 1 else f"instance {row}, column {column},"
                shown = ", ".join(str(each)[:40] for each in values[:20])
                more = " …" if len(values) > 20 else ""
                raise InvalidInput(
                    f"{place} is {short(text)}, which the model does not know; expected one of "
                    f"{shown}{more}"
                )


def texts_per_row(spec: InputSpec) -> int:
    """Strings in one row of a text model's input: 1 unless the model has several text columns."""
    return math.prod(1 if n is None else n for n in spec.shape[1:])


def _text_instances(instances: Sequence[Any], spec: InputSpec) -> Array:
    columns = texts_per_row(spec)
    if columns == 1:
        strings = instances
        if len(spec.shape) == 2 and list in map(type, instances):  # a row is a list of one text
            strings = [
                item[0] if isinstance(item, list) and len(item) == 1 else item for item in instances
            ]
    else:
        for row, item in enumerate(instances):
            if not isinstance(item, list) or len(item) != columns:
                raise InvalidInput(
                    f"instance {row} is {short(item)}; expected a list of {columns} strings"
                )
        strings = [text for item in instances for text in item]
    if spec.missing:
        strings = ["" if text is None else text for text in strings]
    for at, text in enumerate(strings):
        if not isinstance(text, str):
            raise InvalidInput(f"instance {at // columns} holds {short(text)}; expected a string")
    return text_array(strings, spec)


def fitted(array: Array, spec: InputSpec, *, first_row: int = 0) -> Array:
    """An array cast to the model's dtype and checked against its shape. Raises InvalidInput or
    TooLarge.

    Floats become the model's float type and integers may become floats. A float is never made an
    integer, and no number wraps around. If a cast is needed, NaN and infinity are refused, whether
    the array held them or the cast made them. An array that already has the model's type is not
    searched here: the batcher checks all rows of a batch at once. first_row: the number of the
    first row, for messages.
    """
    if spec.kind == "text":
        return _fitted_text(array, spec)
    if spec.kind == "columns":
        names = ", ".join(column.name for column in spec.columns)
        raise InvalidInput(
            f"the input is one array; the model takes the columns {names}: send them by name"
        )
    wanted = spec.shape
    shape = array.shape
    if [*shape[1:]] != wanted[1:] and not rows_fit(shape, wanted):
        is_row = [*shape] == wanted[1:]
        remedy = ": put the row into a list, of one row" if is_row else ""
        raise InvalidInput(
            f"the input has shape {list(shape)}; the model takes {shape_words(wanted)}{remedy}"
        )
    if shape[0] == 0:
        raise InvalidInput(NO_ROWS)
    dtype = _dtype(spec.dtype)
    if spec.missing:
        return _fitted_with_missing(array, spec, first_row)
    if array.dtype == dtype:
        flags = array.flags  # the bytes of a body may be unaligned, and the runtime needs alignment
        return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")
    if array.dtype == np.float64 and dtype == np.float32:
        flat = array.ravel()
        if flat.dot(flat) < _SAFE_SQUARES:  # false for NaN, too
            return array.astype(dtype, order="C")
    return _cast_finite(array, dtype, first_row=first_row)


def rows_fit(shape: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    """Whether an array's shape is a model's, whatever the number of rows. None fits any size."""
    return len(shape) == len(wanted) and all(
        want is None or want == got for want, got in zip(wanted[1:], shape[1:], strict=True)
    )


def _cast_finite(array: Array, dtype: np.dtype[Any], *, first_row: int) -> Array:
    """Cast numbers as `cast` does. Raises InvalidInput for one that is not finite afterwards."""
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"the input is text; the model takes {dtype}")
    fit = cast(array, dtype)
    if not is_finite(fit):
        raise InvalidInput(f"instance {first_row + rows_not_finite(fit)[0]} {not_finite(dtype)}")
    return fit


def _fitted_with_missing(array: Array, spec: InputSpec, first_row: int) -> Array:
    """Make records of one field, in which NaN may stand for a missing value. Raises
    InvalidInput.
    """
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"the input is text; the model takes {spec.dtype}")
    found = cast(array, _dtype(spec.dtype))
    check_finite_or_missing(found, first_row=first_row)
    return records({spec.name: found})


_SAFE_SQUARES = 1e76
"""If the sum of an array's squares is below this, all its numbers are finite, as float32 too. The
sum takes a tenth of the time of `cast` and `is_finite`.
"""


_TEXTS_AT_ONCE = 1_000


@lru_cache(maxsize=64)
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name)


def _fitted_text(array: Array, spec: InputSpec) -> Array:
    """An array of text [B] or of the model's own shape."""
    if array.dtype.kind not in "USO":
        raise InvalidInput(f"the input is {array.dtype}; the model takes text")
    columns = texts_per_row(spec)
    if not array.ndim or math.prod(array.shape[1:]) != columns:
        raise InvalidInput(
            f"the input has shape {list(array.shape)}; the model takes {shape_words(spec.shape)}"
        )
    if not len(array):
        raise InvalidInput(NO_ROWS)
    try:
        strings = _texts(array.ravel())
    except UnicodeError:
        raise InvalidInput(
            "the input holds bytes that are not UTF-8 text; encode its texts as UTF-8"
        ) from None
    return text_array(strings, spec)


def _texts(array: Array) -> list[str]:
    """Yield the texts of a flat array, a slice at a time. Raises UnicodeError.

    One call for all would hold the interpreter lock for tens of milliseconds.
    """
    found: list[str] = []
    for start in range(0, len(array), _TEXTS_AT_ONCE):
        some = array[start : start + _TEXTS_AT_ONCE].tolist()
        texts = [text.decode() if isinstance(text, bytes) else text for text in some]
        "".join(texts).encode()  # the runtime does not accept a lone surrogate
        found += texts
    return found


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers converted to another type; at most precision is lost.

    Raises InvalidInput or TooLarge.
    """
    source, target = array.dtype.kind, dtype.kind
    if (source == "b") != (target == "b") or (source == "f" and target in "iu"):
        raise InvalidInput(f"the input is {array.dtype}; the model takes {dtype}")
    if array.size * dtype.itemsize > MAX_TENSOR_BYTES:
        raise TooLarge(
            f"the input would need {array.size * dtype.itemsize} bytes as {dtype}; at most "
            f"{MAX_TENSOR_BYTES} are accepted: send fewer rows"
        )
    if target in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise InvalidInput(
                f"the input holds {low if low < limits.min else high}; "
                f"{dtype} takes {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):  # the caller refuses numbers that become infinite
        return np.ascontiguousarray(array, dtype)


def example_input(spec: InputSpec, *, free: int = 1) -> Array:
    """One row that the model accepts, for warm-up: zeros or an empty string.

    free: the size of each free dimension.
    """
    if spec.columns:
        return empty_record(spec.columns, free=free)
    size = 1 if spec.kind == "text" else free
    shape = (1, *(size if n is None else n for n in spec.shape[1:]))
    return empty_values(spec, shape)
