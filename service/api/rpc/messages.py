"""Translates gRPC inference messages to HTTP bodies of the Open Inference Protocol, and back.

Both carry the same tensors: raw contents are the binary data of the HTTP form, and typed contents
its JSON data. So one parser and one encoder serve both, and both give the same answers.

The messages of a client usually differ only in their numbers, and so do the answers. A message
whose other bytes are known from an earlier one is not parsed again.
"""

import contextlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from service.api.rpc import open_inference_pb2 as pb
from service.wire.faults import Malformed, TooLarge
from service.wire.ranked import list_json
from service.wire.tensors import MAX_BYTES_ELEMENTS, join_bytes

MAX_TYPED_BYTES = 4 * 2**20
"""The most bytes of a message besides raw contents: as few as two may become a Python object."""
_MAX_FIELDS = 1000
_RAW_CONTENTS = 7  # the number of the field, in open_inference.proto
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of typed contents for each datatype; FP16 has none and must be raw."""
_FLOATS = {"fp32_contents": "<f4", "fp64_contents": "<f8"}


class HttpRequest(NamedTuple):
    """An HTTP request with the same content: its path, its body, and its JSON header's length."""

    path: str
    body: bytes
    header_length: int


class _Known(NamedTuple):
    """The translation of an earlier message. size: of the whole message, in bytes."""

    path: str
    header: bytes
    size: int


class Requests:
    """Remembers translated inference requests, so that similar ones need no parsing."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._lengths: list[int] = []

    def find(self, data: bytes) -> HttpRequest | None:
        """Translate a serialized ModelInferRequest that repeats an earlier one with other numbers.
        None for any other message.
        """
        for length in self._lengths:
            known = self._known.get(data[:length])
            if known is not None and known.size == len(data):
                return HttpRequest(known.path, known.header + data[length:], len(known.header))
        return None

    def learn(self, data: bytes, found: HttpRequest) -> None:
        """Remember the translation `found` of the message `data`, if that can help later.

        It helps if the last field of the message holds the numbers of its only input.
        """
        raw = memoryview(found.body)[found.header_length :]
        length = len(data) - len(raw)
        size = _size(len(raw))
        end = _RAW_INPUT + size
        if not raw or length > _MAX_KEPT_BYTES or data[length - len(end) : length] != end:
            return
        if len(raw) != len(data) - length or data[length:] != raw:
            return
        header = found.body[: found.header_length]
        if b',"id":' in header:  # which is not repeated
            return
        if length not in self._lengths:
            if len(self._lengths) == _MAX_LENGTHS:
                self._lengths.clear()
                self._known.clear()
            self._lengths.append(length)
        if len(self._known) >= _MAX_KEPT:
            self._known.clear()
        self._known[data[:length]] = _Known(found.path, header, len(data))


_MAX_KEPT, _MAX_KEPT_BYTES, _MAX_LENGTHS = 256, 2048, 8
_RAW_INPUT, _RAW_OUTPUT, _INFER_RESPONSE = b"\x3a", b"\x32", b"\x12"
"""The tags of raw_input_contents, raw_output_contents and a stream's infer_response."""


def _size(size: int) -> bytes:
    """A length as protobuf writes it."""
    found = bytearray()
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    found.append(size)
    return bytes(found)


def http_request(message: bytes) -> HttpRequest:
    """Translate a serialized request into an HTTP request. Raises Malformed or TooLarge."""
    found = parsed(message)
    path = model_path(found.model_name, found.model_version) + "/infer"
    return HttpRequest(path, *http_body(found))


def model_path(name: str, version: str) -> str:
    """Return the path of a model, or of a version if it is not empty, in the HTTP protocol."""
    path = f"/v2/models/{segment(name)}"
    return f"{path}/versions/{segment(version)}" if version else path


def segment(name: str) -> str:
    """Return a name as one segment of a decoded path: no name of a model has a slash."""
    return name.replace("/", "%2F")


def parsed(message: bytes) -> pb.ModelInferRequest:
    """Parse a request, after checking its size. Raises Malformed or TooLarge."""
    if len(message) > MAX_TYPED_BYTES:
        _check_typed(message)
    try:
        found: pb.ModelInferRequest = pb.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise Malformed(
            f"the message is not a ModelInferRequest: {error}; send the bytes that a client of the "
            "Open Inference Protocol makes"
        ) from None
    return found


def _check_typed(message: bytes) -> None:
    """Add up the sizes of a message's fields without the raw contents. Raises TooLarge."""
    at, typed = 0, 0
    for _ in range(_MAX_FIELDS):
        if at >= len(message):
            break
        begin = at
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:  # bytes behind their length
            size, at = _varint(message, at)
            at += size
        elif kind == 0:
            _, at = _varint(message, at)
        else:
            at += {1: 8, 5: 4}.get(kind, len(message))
        if tag >> 3 != _RAW_CONTENTS:
            typed += at - begin
    if at < len(message) or typed > MAX_TYPED_BYTES:
        raise TooLarge(
            f"the message holds more than {MAX_TYPED_BYTES} bytes besides raw_input_contents; send "
            "the tensors in raw_input_contents"
        )


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends). Raises Malformed."""
    number = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise Malformed(
        "the message is not a ModelInferRequest: a number does not end; send the bytes that a "
        "client of the Open Inference Protocol makes"
    )


def http_body(request: pb.ModelInferRequest) -> tuple[bytes, int]:
    """Return (the HTTP body of a request, the length of its JSON header in bytes).

    Raises Malformed or TooLarge.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Malformed(
            f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; "
            "expected one for each"
        )
    inputs = [_input(tensor, raw[at] if raw else None) for at, tensor in enumerate(request.inputs)]
    header: dict[str, Any] = {
        "inputs": [described for described, _ in inputs],
        "outputs": [
            {"name": each.name, "parameters": {"binary_data": True, **_values(each.parameters)}}
            for each in request.outputs
        ],
        "parameters": {**_values(request.parameters), "binary_data_output": True},
    }
    if request.id:
        header["id"] = request.id
    text = orjson.dumps(header)
    return b"".join([text, *(binary for _, binary in inputs)]), len(text)


def _input(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None
) -> tuple[dict[str, Any], bytes]:
    """A tensor as HTTP has it: its member of `inputs`, and its binary data if it has any.

    Typed floats become binary data, since JSON knows no infinity; so do bytes that are not text.
    """
    described: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": _values(tensor.parameters),
    }
    if raw is not None:
        if tensor.contents.ListFields():
            raise Malformed(
                f"input '{tensor.name[:60]}' has contents and raw_input_contents; send one of them"
            )
        described["parameters"]["binary_data_size"] = len(raw)
        return described, raw
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise Malformed(
            f"input '{tensor.name[:60]}' is {tensor.datatype[:20]!r}, which has no typed contents; "
            "send raw_input_contents"
        )
    values = getattr(tensor.contents, field)
    if field == "bytes_contents" and len(values) > MAX_BYTES_ELEMENTS:
        raise TooLarge(
            f"input '{tensor.name[:60]}' has {len(values)} elements; "
            f"at most {MAX_BYTES_ELEMENTS} of BYTES are accepted: send fewer rows"
        )
    binary = _binary(values, field) if len(values) == math.prod(tensor.shape) else None
    if binary is not None:
        described["parameters"]["binary_data_size"] = len(binary)
        return described, binary
    if field == "bytes_contents":
        described["data"] = [each.decode(errors="replace") for each in values]
    else:
        described["data"] = orjson.Fragment(list_json(values))
    return described, b""


def _binary(values: Any, field: str) -> bytes | None:
    """Typed contents as binary data; None for those that JSON holds exactly."""
    if field in _FLOATS:
        return np.fromiter(values, _FLOATS[field], len(values)).tobytes()
    if field == "bytes_contents":
        try:
            for each in values:
                each.decode()
        except UnicodeDecodeError:
            return join_bytes(values)
    return None


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """The parameters as JSON has them. Raises Malformed for what JSON would turn into null, which
    asks for the default.
    """
    found = {}
    for name, each in parameters.items():
        choice = each.WhichOneof("parameter_choice")
        if choice is None:
            raise Malformed(f"parameter '{name[:60]}' has no value; set one, or leave it out")
        value = getattr(each, choice)
        if choice == "double_param" and not math.isfinite(value):
            raise Malformed(f"parameter '{name[:60]}' is {value}; expected a finite number")
        found[name] = value
    return found


def response_of(body: bytes, header_length: int) -> bytes:
    """Translate an HTTP answer with only binary outputs to a serialized ModelInferResponse."""
    before, sizes = _kept_header(body[:header_length])
    parts, at = [before], header_length
    for size in sizes:
        parts += (_RAW_OUTPUT, _size(size), body[at : at + size])
        at += size
    return b"".join(parts)


def streamed(body: bytes, header_length: int) -> bytes:
    """Translate such an answer to a serialized ModelStreamInferResponse."""
    inner = response_of(body, header_length) + _FINAL
    return b"".join((_INFER_RESPONSE, _size(len(inner)), inner))


def stream_error(message: bytes, reason: str) -> bytes:
    """The serialized ModelStreamInferResponse to a request that failed; its id is the request's."""
    failed = pb.ModelStreamInferResponse(error_message=reason)
    answer = failed.infer_response
    with contextlib.suppress(Malformed, TooLarge):
        request = parsed(message)
        answer.id, answer.model_name = request.id, request.model_name
        answer.model_version = request.model_version
    answer.parameters[FINAL_RESPONSE].bool_param = True
    found: bytes = failed.SerializeToString()
    return found


@lru_cache(maxsize=256)
def _kept_header(header: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Return (the message without its numbers, the number of bytes of each output)."""
    document = orjson.loads(header)
    found = pb.ModelInferResponse(
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
    )
    for name, value in document["parameters"].items():
        set_parameter(found.parameters[name], value)
    for each in document["outputs"]:
        found.outputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
    sizes = tuple(each["parameters"]["binary_data_size"] for each in document["outputs"])
    return found.SerializeToString(), sizes


FINAL_RESPONSE = "triton_final_response"
"""A parameter of every answer in a stream, as of Triton's. Clients wait until it is true."""
_FINAL: bytes = pb.ModelInferResponse(
    parameters={FINAL_RESPONSE: pb.InferParameter(bool_param=True)}
).SerializeToString()


def set_parameter(parameter: pb.InferParameter, value: Any) -> None:
    """Set the field of a parameter that fits the type of a JSON value."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)
