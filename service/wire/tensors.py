"""Tensors of the Open Inference Protocol V2: JSON or raw bytes ↔ NumPy, without a copy where
possible.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.wire.arrays import cast
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.shown import short

Array = NDArray[Any]

DATATYPES = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("uint16"),
    "UINT32": np.dtype("uint32"),
    "UINT64": np.dtype("uint64"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("int16"),
    "INT32": np.dtype("int32"),
    "INT64": np.dtype("int64"),
    "FP16": np.dtype("float16"),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
    "BYTES": np.dtype(object),
}
BY_DTYPE = {
    **{dtype.name: name for name, dtype in DATATYPES.items() if name != "BYTES"},
    "string": "BYTES",
}
_LITTLE = {name: dtype.newbyteorder("<") for name, dtype in DATATYPES.items()}
MAX_DIMENSIONS = 16
_PIECE_NUMBERS = 500_000
"""Binary numbers that are copied in one call, in about a millisecond."""
MAX_BYTES_ELEMENTS = 100_000
"""The most elements of a BYTES tensor: each becomes a Python object of its own."""
_NUMBERS: set[type] = {int, float}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of a request. BYTES are flat: bytes, or str where they came as JSON.

    holds_null: whether NaN stands for JSON's null.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | Sequence[bytes | bytearray] | list[str]
    holds_null: bool = False


@dataclass(frozen=True, slots=True)
class Described:
    """A checked entry of `inputs`; its values are JSON, or `size` bytes of binary data."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    size: int | None
    values: Array | list[str] | list[bytes] | None
    holds_null: bool = False

    def read(self, body: bytes | bytearray, offset: int) -> tuple[Tensor, int]:
        """Return the tensor and where the binary data of the next one begins. Raises Malformed.

        offset: where the binary data of this tensor begins, if it has any.
        """
        if self.size is None:
            assert self.values is not None
            made = Tensor(self.name, self.datatype, self.shape, self.values, self.holds_null)
            return made, offset
        end = offset + self.size
        if end > len(body):
            raise self._too_short(len(body) - offset)
        values: Array | list[bytes]
        if self.datatype == "BYTES":
            if self.count > MAX_BYTES_ELEMENTS:
                raise TooLarge(
                    f"input '{self.name[:60]}' has {self.count} elements; "
                    f"at most {MAX_BYTES_ELEMENTS} of BYTES are accepted: send fewer rows"
                )
            values = split_bytes(memoryview(body)[offset:end], self.name, self.count)
        else:
            dtype = _LITTLE[self.datatype]
            values = np.frombuffer(body, dtype, self.count, offset).reshape(self.shape)
        return Tensor(self.name, self.datatype, self.shape, values), end

    def only_values(self, body: bytes | bytearray, offset: int) -> Array:
        """Read the numbers of a binary tensor that fills the body from `offset` on, as an aligned
        array.

        The datatype is not BYTES. Raises Malformed.
        """
        given = len(body) - offset
        if given != self.size:
            assert self.size is not None
            if given < self.size:
                raise self._too_short(given)
            raise surplus(given - self.size)
        values: Array = np.ndarray(self.shape, _LITTLE[self.datatype], body, offset)
        return values if values.flags.aligned else values.copy()

    def _too_short(self, left: int) -> Malformed:
        return Malformed(
            f"input '{self.name[:60]}' has {self.size} bytes of binary data; {left} are left: send "
            "them all"
        )


def surplus(count: int) -> Malformed:
    """The error for a body with bytes after its last tensor."""
    return Malformed(f"{count} bytes follow the last input's binary data; expected none")


def describe(entry: Any) -> Described:
    """Check an entry of `inputs`, and read its values where they are JSON.

    Raises Malformed or InvalidInput.
    """
    name, datatype, shape = _described(entry)
    size = _binary_size(entry, name)
    count = math.prod(shape)
    if size is None:
        if "data" not in entry:
            raise Malformed(
                f"input '{name[:60]}' has neither 'data' nor 'binary_data_size'; give one of them"
            )
        found, holds_null = _of_json(entry["data"], name, datatype, shape)
        values: Array | list[str] | list[bytes] = found
        if isinstance(found, list) and _is_base64(entry):
            values = [_from_base64(each, name, at) for at, each in enumerate(found)]
        return Described(name, datatype, shape, count, None, values, holds_null)
    if "data" in entry:
        raise Malformed(
            f"input '{name[:60]}' has both 'data' and 'binary_data_size'; give only one of them"
        )
    needed = count * DATATYPES[datatype].itemsize
    if datatype != "BYTES" and size != needed:
        raise Malformed(
            f"input '{name[:60]}' has {size} bytes of binary data; "
            f"shape {list(shape)} of {datatype} needs {needed}"
        )
    return Described(name, datatype, shape, count, size, None)


def split_bytes(data: "memoryview[int]", name: str, count: int) -> list[bytes]:
    """The `count` elements of a BYTES tensor. Raises Malformed.

    Each element is a little-endian u32 length and that many bytes.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= count:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise Malformed(
                f"input '{name[:60]}' ends within element {len(found)}; expected {count}, each "
                "behind its length in 4 bytes, little-endian"
            )
        found.append(bytes(data[start:at]))
    if len(found) != count:
        many = f"more than {count}" if len(found) > count else str(len(found))
        raise Malformed(
            f"input '{name[:60]}' has {many} elements; expected {count}, as its shape says"
        )
    return found


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """The binary form of a BYTES tensor."""
    return b"".join(chain.from_iterable((len(e).to_bytes(4, "little"), e) for e in elements))


def _described(entry: Any) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Malformed(
            f"an input is {short(entry)}; expected an object with name, datatype and shape"
        )
    name, datatype, shape = entry["name"], entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise Malformed(
            f"input '{name[:60]}' has datatype {short(datatype)}; "
            f"expected one of {', '.join(DATATYPES)}"
        )
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 2**40 for n in shape)
        or math.prod(max(n, 1) for n in shape) >= 2**59  # NumPy counts bytes with 63 bits
    ):
        raise Malformed(
            f"input '{name[:60]}' has shape {str(shape)[:60]}; expected [batch, …], at most "
            f"{MAX_DIMENSIONS} whole numbers"
        )
    return name, datatype, tuple(shape)


def _binary_size(entry: dict[str, Any], name: str) -> int | None:
    parameters = entry.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise Malformed(
            f"input '{name[:60]}': parameters are {short(parameters)}; expected an object"
        )
    if "shared_memory_region" in parameters:
        raise Malformed(
            f"input '{name[:60]}' is in shared memory, which is not supported; send its data"
        )
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise Malformed(
            f"input '{name[:60]}': binary_data_size is {short(size)}; expected a number of bytes"
        )
    return size


def _is_base64(entry: dict[str, Any]) -> bool:
    """Whether an input says, as MLServer's clients do, that its strings are base64."""
    return (entry.get("parameters") or {}).get("content_type") == "base64"


def _from_base64(text: str, name: str, at: int) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise Malformed(
            f"input '{name[:60]}': element {at} is {short(text)}, which is not base64, as its "
            "content_type says; encode it so, or leave content_type out"
        ) from None


def _of_json(
    data: Any, name: str, datatype: str, shape: tuple[int, ...]
) -> tuple[Array | list[str], bool]:
    """Row-major values of the declared type, and whether null was among them, which is NaN.

    The lists may be nested or flat, and may mix types.
    """
    flat = _flat(data, name, shape)
    kinds = set(map(type, flat))
    expected: set[type] = _NUMBERS
    if datatype in {"BYTES", "BOOL"}:
        expected = {str} if datatype == "BYTES" else {bool}
    if datatype == "BOOL" and kinds == {int} and set(flat) <= {0, 1}:
        expected = {int}
    dtype = DATATYPES[datatype]
    holds_null = type(None) in kinds and dtype.kind == "f"
    if holds_null:
        kinds.discard(type(None))
    if not kinds <= expected:
        wrong = next(item for item in flat if type(item) not in expected)
        raise InvalidInput(f"input '{name[:60]}' holds {short(wrong)}; expected {datatype}")
    if datatype == "BYTES":
        return flat, False
    if holds_null:
        flat = [np.nan if value is None else value for value in flat]
    if dtype.kind in "iu" and float in kinds:
        raise InvalidInput(
            f"input '{name[:60]}' holds numbers that are not whole; expected {datatype}"
        )
    try:
        array = np.array(flat, np.float64 if dtype.kind == "f" else dtype)
    except OverflowError:
        raise InvalidInput(
            f"input '{name[:60]}' holds a number beyond the range of {datatype}; expected a "
            "smaller one"
        ) from None
    fit = array if array.dtype == dtype else cast(array, dtype)
    return fit.reshape(shape), holds_null


def _flat(data: Any, name: str, shape: tuple[int, ...]) -> list[Any]:
    """The elements of nested or flat lists, as many as the shape says."""
    if not isinstance(data, list):
        raise Malformed(f"input '{name[:60]}': data is {short(data)}; expected a list")
    flat: list[Any] = data
    depth = 1
    while flat and isinstance(flat[0], list):
        depth += 1
        if depth > len(shape) or not all(isinstance(item, list) for item in flat):
            raise InvalidInput(
                f"input '{name[:60]}': data is ragged or nested deeper than its shape; expected "
                f"lists as {list(shape)} says, or one flat list"
            )
        flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise InvalidInput(
            f"input '{name[:60]}' has {len(flat)} elements; expected {math.prod(shape)}, as its "
            f"shape {list(shape)} says"
        )
    return flat


def encode_json(values: Array | Sequence[str]) -> Any:
    """The `data` member of an output: flat, row-major; orjson writes arrays as they are."""
    return np.ascontiguousarray(values).ravel() if isinstance(values, np.ndarray) else list(values)


def encode_binary(values: Array | Sequence[str]) -> bytes:
    """The binary data of an output, little-endian."""
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return join_bytes(text.encode() for text in values)


def binary_pieces(values: Array | Sequence[str]) -> list[bytes]:
    """Encode as `encode_binary` does, in pieces: no other thread runs while one is copied."""
    if not isinstance(values, np.ndarray) or values.size <= _PIECE_NUMBERS:
        return [encode_binary(values)]
    flat, places = values.reshape(-1), range(0, values.size, _PIECE_NUMBERS)
    return [encode_binary(flat[at : at + _PIECE_NUMBERS]) for at in places]
