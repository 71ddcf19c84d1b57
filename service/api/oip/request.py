"""Reads the body of an Open Inference Protocol V2 inference request, for any model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from service.contract.inputs.spec import InputSpec
from service.wire.arrays import check_text_bytes, texts_per_row
from service.wire.digits import whole_number
from service.wire.faults import InvalidInput, InvalidParameter, Malformed, TooLarge
from service.wire.json_text import check_length, parse_json_object
from service.wire.parameters import NO_PARAMETERS, Parameters, body_parameters, prior_of_text
from service.wire.shown import short
from service.wire.tensors import BY_DTYPE, DATATYPES, Described, Tensor, describe, surplus

HEADER_LENGTH = b"inference-header-content-length"
CLASSES_OF = ("probabilities", "adjusted_logits", "logits")
DECISIONS = ("decision", "decision_index", "expected_cost")
"""Outputs of the decision by the prior's costs; without costs, of the most probable class."""
OUTPUTS = (*CLASSES_OF, "class_index", "class_probability", "class_name", *DECISIONS)
_OWN = ("tau", "prior", "top_k", "context")
_IGNORED = ("sequence_id", "sequence_start", "sequence_end", "priority", "headers", "content_type")
"""Parameters that clients of other servers send unasked; they mean nothing to a classifier."""
_MAX_KEPT_DIGITS = 20
_NO_BODY = 2**40
"""More bytes than any body has."""


@dataclass(frozen=True, slots=True)
class Requested:
    """An output that the request asks for. classes: the k of the classification extension."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class InferHeader:
    """The JSON of a request: everything except its binary data.

    timeout_seconds: from Triton's `timeout` parameter, which is in microseconds.
    """

    inputs: list[Described]
    outputs: list[Requested]
    parameters: Parameters
    id: str | None = None
    timeout_seconds: float | None = None
    model_name: str | None = None
    model_version: str | None = None

    def texts(self) -> int:
        """The number of elements of all BYTES tensors whose data are binary."""
        found = (e.count for e in self.inputs if e.datatype == "BYTES" and e.size is not None)
        return sum(found)

    def check(self, name: str, version: int) -> None:
        """Raise Malformed if the body names a different model or version than the path."""
        for stated, member, of_path in (
            (self.model_name, "model_name", name),
            (self.model_version, "model_version", str(version)),
        ):
            if stated is not None and stated != of_path:
                raise Malformed(
                    f"{member} is '{stated[:60]}' in the body but '{of_path}' in the path; leave "
                    "it out of the body, or change one"
                )


def header_of(body: bytes | bytearray, header_length: bytes | None) -> bytes | bytearray:
    """Return the JSON at the start of a body.

    header_length: its length in bytes, from Inference-Header-Content-Length; None means that the
    whole body is JSON. Raises Malformed or TooLarge.
    """
    length = len(body)
    if header_length is None:
        return body
    is_short = len(header_length) <= _MAX_KEPT_DIGITS
    given = _length_of(header_length) if is_short else whole_number(header_length, below=_NO_BODY)
    if given is None or given > length:
        raise Malformed(
            f"Inference-Header-Content-Length is '{header_length[:20].decode('latin-1')}'; "
            f"expected a number of bytes up to the body's {length}"
        )
    check_length(given)
    return bytes(body[:given])


@lru_cache(maxsize=256)  # a client repeats its value with each request
def _length_of(header_length: bytes) -> int | None:
    return whole_number(header_length, below=_NO_BODY)


def read_inputs(
    header: InferHeader, body: bytes | bytearray, header_bytes: int
) -> dict[str, Tensor]:
    """Read the input tensors of a request, by name. Raises Malformed.

    header_bytes: the offset in `body` at which the binary data begins.
    """
    inputs: dict[str, Tensor] = {}
    offset = header_bytes
    for each in header.inputs:
        tensor, offset = each.read(body, offset)
        if tensor.name in inputs:
            raise Malformed(
                f"input '{tensor.name[:60]}' is given twice; expected each input only once"
            )
        inputs[tensor.name] = tensor
    if offset != len(body):
        raise surplus(len(body) - offset)
    return inputs


MAX_INPUTS = 64


_MEMBERS = ("inputs", "outputs", "parameters", "id", "model_name", "model_version")


def read_header(text: bytes | bytearray) -> InferHeader:
    """Read the JSON of a request. Raises Malformed, InvalidInput, InvalidParameter or TooLarge."""
    document = parse_json_object(text, _MEMBERS)
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise Malformed("the request has no inputs; expected a list of tensors under 'inputs'")
    if len(entries) > MAX_INPUTS:
        raise TooLarge(
            f"the request has {len(entries)} inputs; at most {MAX_INPUTS} are accepted: send the "
            "model's own, and tau and prior"
        )
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Malformed(f"id is {short(identity)}; expected a string")
    for name in ("model_name", "model_version"):
        if not isinstance(document.get(name), str | None):
            raise Malformed(f"{name} is {short(document[name])}; expected a string")
    parameters, timeout_seconds, binary = _parameters(document.get("parameters"))
    return InferHeader(
        [describe(entry) for entry in entries],
        _outputs(document.get("outputs"), binary=binary),
        parameters,
        identity,
        timeout_seconds,
        document.get("model_name") or None,
        document.get("model_version") or None,
    )


def raw_request(body: bytes | bytearray, spec: InputSpec) -> tuple[InferHeader, Tensor]:
    """Read a body that is one row of the model's input (Inference-Header-Content-Length: 0).

    Outputs are answered in binary. For a text model the body is the text; for an image model it is
    an encoded image or the tensor. Raises Malformed if the shape does not determine how to read it.
    """
    if spec.columns:
        raise Malformed(
            "a raw request can only hold one input, and the model takes several: send them as JSON "
            "or with Inference-Header-Content-Length"
        )
    outputs = [Requested("probabilities", binary=True)]
    dtype = DATATYPES[BY_DTYPE[spec.dtype]]
    free = [at for at, n in enumerate(spec.shape) if at and n is None]
    shape = [1, *(1 if n is None else n for n in spec.shape[1:])]
    size = math.prod(shape) * dtype.itemsize
    if spec.kind == "text" or (spec.kind == "image" and len(body) != size):
        if spec.kind == "text":
            if texts_per_row(spec) != 1:
                raise Malformed(
                    "a raw request can only hold one text, and the model takes several: send them "
                    "as JSON or with Inference-Header-Content-Length"
                )
            check_text_bytes(body, 0)
        tensor = Tensor(spec.name, "BYTES", (1,), [body])
        return InferHeader([], outputs, NO_PARAMETERS), tensor
    if len(free) == 1 and size and len(body) % size == 0:
        shape[free[0]] = len(body) // size
    elif free or len(body) != size:
        raise Malformed(
            f"the raw request has {len(body)} bytes; expected one row of {spec.dtype} "
            f"{spec.shape[1:]}"
        )
    values = np.frombuffer(body, dtype.newbyteorder("<")).reshape(shape)
    tensor = Tensor(spec.name, BY_DTYPE[spec.dtype], tuple(shape), values)
    return InferHeader([], outputs, NO_PARAMETERS), tensor


def _parameters(members: Any) -> tuple[Parameters, float | None, bool]:
    """Return (the parameters tau, prior and top_k, the timeout in seconds, whether outputs are
    binary unless they say otherwise).
    """
    if members is None:
        return NO_PARAMETERS, None, False
    if not isinstance(members, dict):
        raise Malformed(f"parameters are {short(members)}; expected an object")
    own = {name: members[name] for name in _OWN if name in members}
    for name in members:
        if name not in {*own, "timeout", "binary_data_output", *_IGNORED} and not name.startswith(
            "triton_"
        ):
            raise Malformed(
                f"unknown parameter '{name[:60]}'; expected tau, prior, context, top_k, timeout or "
                "binary_data_output"
            )
    if isinstance(own.get("prior"), str):
        own["prior"] = prior_of_text(own["prior"])
    timeout = members.get("timeout")
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise InvalidParameter(f"timeout is {short(timeout)}; expected microseconds")
    seconds = timeout / 1e6 if timeout else None
    return body_parameters(own), seconds, _flag(members, "binary_data_output", default=False)


def _outputs(entries: Any, *, binary: bool) -> list[Requested]:
    if entries is None or entries == []:
        return [Requested("probabilities", binary)]
    if not isinstance(entries, list):
        raise Malformed(f"outputs are {short(entries)}; expected a list")
    found: list[Requested] = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in OUTPUTS:
            raise InvalidInput(
                f"there is no output {short(name)}; expected one of {', '.join(OUTPUTS)}"
            )
        if name in {each.name for each in found}:
            raise Malformed(f"output '{name}' is requested twice; name each output only once")
        parameters = entry.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise Malformed(
                f"output '{name}': parameters are {short(parameters)}; expected an object"
            )
        if "shared_memory_region" in parameters:
            raise Malformed(
                f"output '{name}': shared memory is not supported; leave out its parameters, and "
                "the answer holds the tensor"
            )
        binary_data = _flag(parameters, "binary_data", default=binary)
        found.append(Requested(name, binary_data, _classes(parameters, name)))
    return found


def _classes(parameters: Mapping[str, Any], name: str) -> int | None:
    classes = parameters.get("classification")
    if classes is None:
        return None
    if type(classes) is not int or classes < 1:
        raise InvalidParameter(
            f"output '{name}': classification is {short(classes)}; expected at least 1"
        )
    if name not in CLASSES_OF:
        raise InvalidInput(
            f"output '{name}' cannot have classification; use {' or '.join(CLASSES_OF)}, or leave "
            "it out"
        )
    return classes


def _flag(members: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = members.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} is {short(value)}; expected true or false")
    return value
