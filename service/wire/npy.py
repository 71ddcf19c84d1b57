"""Reads one .npy array of a request without a copy and without unpickling. NumPy reads the
header.
"""

import io
import math
import re
import warnings
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from service.wire.faults import Malformed

_MAX_HEADER_BYTES = 4096
_MAX_DIMENSIONS = 16
_MAGIC = b"\x93NUMPY"
_DTYPE = re.compile(r"[<>|=]?(?:[biuf][0-9]{1,2}|[US][0-9]{1,6})")
"""Plain numbers and text. Objects, records, dates and complex numbers are refused."""


def parse_npy(body: bytes | bytearray) -> NDArray[Any]:
    """The array of a .npy file (format 1 to 3). Raises Malformed."""
    begin = _data_begin(body)
    dtype, fortran_order, shape, data_bytes = _header(bytes(body[:begin]))
    if len(body) - begin != data_bytes:
        raise Malformed(
            f"the .npy file has {len(body) - begin} bytes of data; "
            f"shape {list(shape)} of {dtype} needs {data_bytes}: send what np.save writes"
        )
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    return np.ndarray(shape, dtype, body, begin, order=order)


def _data_begin(body: bytes | bytearray) -> int:
    """Where the data begins. Raises Malformed."""
    if not body.startswith(_MAGIC):
        raise Malformed("the body is not a .npy file; send what np.save writes")
    start = 12 if body[6:7] >= b"\x02" else 10
    if len(body) < start:
        raise Malformed("the .npy file ends within its header; send the whole file")
    length = int.from_bytes(body[8:start], "little")
    if length > _MAX_HEADER_BYTES:
        raise Malformed(
            f"the .npy header has {length} bytes; at most {_MAX_HEADER_BYTES} are accepted: send "
            "what np.save writes"
        )
    if len(body) < start + length:
        raise Malformed("the .npy file ends within its header; send the whole file")
    return start + length


@lru_cache(maxsize=256)  # of at most 4 KiB each; a client repeats its header with each request
def _header(prefix: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Read dtype, fortran_order, shape and the number of data bytes. Raises Malformed."""
    file = io.BytesIO(prefix[8:])
    read = npy_format.read_array_header_1_0 if prefix[6] < 2 else npy_format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns about headers that it must repair
            shape, fortran_order, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
    except Exception:  # noqa: BLE001 - NumPy's reader raises errors of many classes
        raise Malformed(
            "the .npy header cannot be read: expected a dictionary of "
            "descr, fortran_order and shape"
        ) from None
    if dtype.names is not None or dtype.subdtype is not None or not _DTYPE.fullmatch(dtype.str):
        raise Malformed(
            f"the .npy file has dtype {str(dtype.str)!r}, which is refused; "
            "expected plain numbers or text"
        )
    if not (
        0 < len(shape) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        and dtype.itemsize > 0
        and math.prod(max(n, 1) for n in shape) * dtype.itemsize < 2**62
    ):
        raise Malformed("the .npy header has no usable shape: expected [batch, …]")
    return dtype, fortran_order, shape, math.prod(shape) * dtype.itemsize
