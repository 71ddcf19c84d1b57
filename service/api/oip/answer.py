"""The body of an Open Inference Protocol V2 answer, made from scores."""

from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from service.api.oip.request import HEADER_LENGTH, InferRequest, Requested
from service.batching.queue import Entry
from service.batching.run import MAX_GRAPH_TOP_K
from service.classifier import RowSettings, ranked, warnings_of
from service.contract.bundle import Bundle
from service.priors.rule import best
from service.wire.tensors import encode_binary, encode_json

Encoded: TypeAlias = tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]


def classes_of(outputs: list[Requested], top_k: int, bundle: Bundle) -> dict[str, int]:
    """The number of classes of each ranked output, by the output's name.

    A number above the model's stands for all classes, which is what Triton does.
    """
    found = {}
    for each in outputs:
        if each.classes is not None:
            found[each.name] = min(each.classes, len(bundle.class_names))
        elif each.name.startswith("class_"):
            found[each.name] = top_k
    return found


def is_full(output: Requested, k: dict[str, int]) -> bool:
    """Whether the output needs all classes of a row from the graph."""
    return (
        output.name not in k or output.name.endswith("logits") or k[output.name] > MAX_GRAPH_TOP_K
    )


def encoded(
    asked: InferRequest, bundle: Bundle, settings: RowSettings, scored: Entry, k: dict[str, int]
) -> Encoded:
    """(body, media type, headers) of an answer: JSON, with the binary outputs behind it."""
    described, tensors = [], []
    for output in asked.outputs:
        values, shape, datatype = _values(output, bundle, scored, k)
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            tensors.append(encode_binary(values))
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = encode_json(values)
        described.append(entry)
    document: dict[str, Any] = {"model_name": bundle.name, "model_version": str(bundle.version)}
    if asked.id is not None:
        document["id"] = asked.id
    document["parameters"] = _told(bundle, settings)
    document["outputs"] = described
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tensors:
        return header, b"application/json", ()
    length = (HEADER_LENGTH, b"%d" % len(header))
    return b"".join([header, *tensors]), b"application/octet-stream", (length,)


def _told(bundle: Bundle, settings: RowSettings) -> dict[str, Any]:
    """The tau and priors of an answer; the protocol allows strings, numbers and booleans only."""
    told: dict[str, Any] = {}
    if isinstance(settings.tau, float):
        told["tau"] = settings.tau
    if settings.prior_of_row is None:
        revision = settings.revisions[0]
        told["prior"] = revision.name or "inline"
        told["prior_revision"] = revision.revision
    else:
        names = (f"{each.name or 'inline'}@{each.revision}" for each in settings.revisions)
        told["priors"] = ", ".join(names)
    largest = settings.tau if isinstance(settings.tau, float) else float(settings.tau.max())
    warnings = dict.fromkeys(
        text for each in settings.revisions for text in warnings_of(bundle, each, largest)
    )
    if warnings:
        told["warnings"] = "; ".join(warnings)
    return told


def _values(
    output: Requested, bundle: Bundle, scored: Entry, k: dict[str, int]
) -> tuple[Any, list[int], str]:
    """(values, shape, datatype) of an output."""
    rows = slice(scored.start, scored.stop)
    count = scored.stop - scored.start
    name = output.name
    if name not in k:
        values: NDArray[np.float32] | None = getattr(scored.outputs, name)
        assert values is not None
        return values[rows], [count, values.shape[1]], "FP32"
    shape = [count, k[name]]
    if name.endswith("logits"):
        logits: NDArray[np.float32] | None = getattr(scored.outputs, name)
        assert logits is not None
        index = best(logits[rows], k[name])
        return (
            _classes(bundle, np.take_along_axis(logits[rows], index, axis=1), index),
            shape,
            "BYTES",
        )
    index, chances = ranked(scored.outputs, slice(scored.start, scored.stop), k[name])
    if name == "class_index":
        return index, shape, "INT64"
    if name == "class_probability":
        return chances, shape, "FP32"
    if name == "class_name":
        return [bundle.class_names[i] for i in index.ravel().tolist()], shape, "BYTES"
    return _classes(bundle, chances, index), shape, "BYTES"


def _classes(bundle: Bundle, values: NDArray[np.float32], index: NDArray[np.int64]) -> list[str]:
    """The classification extension's "value:index:label" of each."""
    names = bundle.class_names
    return [
        f"{v!s}:{i}:{names[i]}" for v, i in zip(values.ravel(), index.ravel().tolist(), strict=True)
    ]
