"""One .npy array of a request, read without a copy and without ever unpickling."""

import ast
import math
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.wire.arrays import Malformed

_MAX_HEADER = 4096
_MAX_DIMENSIONS = 16
_MAX_KNOWN = 1024
_DTYPE = re.compile(r"[<>|=]?(?:[biuf][0-9]{1,2}|[US][0-9]{1,6})")
"""Plain numbers and text; objects, records, dates and complex numbers are refused."""


def parse_npy(body: bytes | bytearray) -> NDArray[Any]:
    """The array of a .npy file (format 1 to 3). Raises Malformed."""
    begin = 10 + int.from_bytes(body[8:10], "little")
    known = _KNOWN.get(bytes(body[:begin])) if begin < _MAX_HEADER else None
    dtype, fortran_order, shape, count, begin = known or _prefix(body)
    given, needed = len(body) - begin, count * dtype.itemsize
    if given != needed:
        raise Malformed(
            f"the .npy file has {given} bytes of data; shape {list(shape)} of {dtype} needs {needed}"
        )
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    return np.ndarray(shape, dtype, body, begin, order=order)


_Prefix = tuple[np.dtype[Any], bool, tuple[int, ...], int, int]
_KNOWN: dict[bytes, _Prefix] = {}
"""What the bytes before the data say; those of a client's requests are mostly the same."""


def _prefix(body: bytes | bytearray) -> _Prefix:
    """(dtype, fortran_order, shape, number of elements, where the data begins). Raises Malformed."""
    if bytes(body[:6]) != b"\x93NUMPY":
        raise Malformed("the body is not a .npy file")
    if len(body) < 12:
        raise Malformed("the .npy file ends within its header")
    start = 12 if body[6] >= 2 else 10
    length = int.from_bytes(body[8:start], "little")
    if length > _MAX_HEADER:
        raise Malformed(f"the .npy header has {length} bytes; at most {_MAX_HEADER} are read")
    begin = start + length
    if len(body) < begin:
        raise Malformed("the .npy file ends within its header")
    found = (*_header(bytes(body[start:begin])), begin)
    if start == 10:
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[bytes(body[:begin])] = found
    return found


def _header(header: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """(dtype, fortran_order, shape, number of elements). Raises Malformed."""
    try:
        document = ast.literal_eval(header.decode("latin-1").strip())
        described, fortran_order, shape = (
            document[name] for name in ("descr", "fortran_order", "shape")
        )
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise Malformed(f"the .npy header cannot be read: {type(error).__name__}") from None
    if not isinstance(described, str) or not _DTYPE.fullmatch(described):
        shown = repr(described)[:60]
        raise Malformed(
            f"the .npy file has dtype {shown}, which is refused; expected plain numbers or text"
        )
    try:
        dtype = np.dtype(described)
    except TypeError:
        raise Malformed(f"the .npy file has the unknown dtype {described!r}") from None
    if not (
        isinstance(shape, tuple)
        and 0 < len(shape) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        and isinstance(fortran_order, bool)
        and dtype.itemsize > 0
    ):
        raise Malformed("the .npy header has no usable shape: expected [batch, …]")
    return dtype, fortran_order, shape, math.prod(shape)
