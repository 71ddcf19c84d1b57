"""Inference messages of gRPC as bodies of the Open Inference Protocol over HTTP, and back.

Both carry the same tensors: raw contents are the binary data of the HTTP form, and typed contents
its JSON data. So one parser and one encoder serve both, and an answer is the same over either.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from service.api.rpc import open_inference_pb2 as pb
from service.wire.faults import Malformed

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


def http_body(request: pb.ModelInferRequest) -> tuple[bytes, int]:
    """The HTTP body of a request, and the length of its JSON header. Raises Malformed."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Malformed(
            f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; "
            "expected one for each"
        )
    header: dict[str, Any] = {
        "inputs": [
            _input(tensor, raw[at] if raw else None) for at, tensor in enumerate(request.inputs)
        ],
        "outputs": [
            {"name": each.name, "parameters": {"binary_data": True, **_values(each.parameters)}}
            for each in request.outputs
        ],
        "parameters": {**_values(request.parameters), "binary_data_output": True},
    }
    if request.id:
        header["id"] = request.id
    text = orjson.dumps(header)
    return b"".join([text, *raw]), len(text)


def _input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": _values(tensor.parameters),
    }
    if raw is not None:
        described["parameters"]["binary_data_size"] = len(raw)
        return described
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise Malformed(
            f"input '{tensor.name[:60]}' is {tensor.datatype[:20]!r}, which has no typed contents; "
            "send raw_input_contents"
        )
    values = getattr(tensor.contents, field)
    if field == "bytes_contents":
        try:
            described["data"] = [each.decode() for each in values]
        except UnicodeDecodeError:
            raise Malformed(
                f"input '{tensor.name[:60]}' holds bytes that are not UTF-8 text; "
                "send raw_input_contents"
            ) from None
    else:
        described["data"] = list(values)
    return described


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found = {}
    for name, each in parameters.items():
        choice = each.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(each, choice)
    return found


def response_of(body: bytes, header_length: int) -> pb.ModelInferResponse:
    """The message of an HTTP answer whose outputs are all binary."""
    document = orjson.loads(body[:header_length])
    found = pb.ModelInferResponse(
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
    )
    for name, value in document["parameters"].items():
        set_parameter(found.parameters[name], value)
    at = header_length
    for each in document["outputs"]:
        found.outputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        size = each["parameters"]["binary_data_size"]
        found.raw_output_contents.append(body[at : at + size])
        at += size
    return found


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
