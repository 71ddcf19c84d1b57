"""Builds the body of an Open Inference Protocol V2 answer from scores."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from service.api.oip.forms import NUMBERS
from service.api.oip.request import DECISIONS, HEADER_LENGTH, InferHeader, Requested
from service.batching.queue import Entry
from service.classifier import (
    RowSettings,
    ranked,
    warnings_of,
)
from service.contract.bundle import Bundle
from service.contract.members.costs import REJECTED
from service.priors.revisions import PriorRevision
from service.priors.rule import best
from service.wire.ranked import joined_texts, list_json, number_texts
from service.wire.tensors import binary_pieces, encode_binary, encode_json

Encoded: TypeAlias = tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]
"""(body, media type, further headers) of an answer."""


def encoded_together(
    entries: Sequence[Entry], columns: tuple[tuple[str, bool, int], ...]
) -> list[Encoded]:
    """Encode the answers to requests with the same numeric outputs, and one tau and prior each.

    The numbers of the whole batch are encoded together, and each answer takes its part.
    columns: (name, whether binary, numbers per row) of each output, as in `Plan`.
    """
    outputs, begin, stop = entries[0].outputs, entries[0].start, entries[-1].stop
    found = []
    for name, is_binary, k in columns:
        if name in NUMBERS:
            ranks = ranked(outputs, slice(begin, stop), k)
            values: NDArray[Any] = ranks[0] if name == "class_index" else ranks[1]
        else:
            values = getattr(outputs, name)[begin:stop]
        found.append(encode_binary(values) if is_binary else number_texts(values))
    forms: dict[tuple[int, float | NDArray[np.float32], int], list[bytes]] = {}
    encoded = []
    for entry in entries:
        asked, rows = entry.ask, entry.stop - entry.start
        settings: RowSettings = asked.settings
        alike = (id(settings.revisions[0]), settings.tau, rows)
        form = forms.get(alike)
        if form is None:
            bundle = asked.model.bundle
            form = forms[alike] = _form(bundle, settings, columns, rows)
        encoded.append(_joined(entry, form, columns, found, first=entry.start - begin))
    return encoded


def _joined(
    entry: Entry,
    form: Sequence[bytes],
    columns: tuple[tuple[str, bool, int], ...],
    found: Sequence[bytes | list[bytes]],
    *,
    first: int,
) -> Encoded:
    """One answer. form: see `_form`. found: the encoded rows of the batch. first: the answer's
    first row there.
    """
    rows, identity = entry.stop - entry.start, entry.ask.identity
    pieces = [form[0], b"" if identity is None else b',"id":' + orjson.dumps(identity), form[1]]
    tensors, text = [], 2
    for (name, _, k), values in zip(columns, found, strict=True):
        if isinstance(values, bytes):
            width = k * (8 if name == "class_index" else 4)
            tensors.append(values[first * width : (first + rows) * width])
        else:
            pieces += (joined_texts(values[first * k : (first + rows) * k]), form[text])
            text += 1
    header = b"".join(pieces)
    if not tensors:
        return header, b"application/json", ()
    length = (HEADER_LENGTH, b"%d" % len(header))
    return b"".join([header, *tensors]), b"application/octet-stream", (length,)


def _form(
    bundle: Bundle,
    settings: RowSettings,
    columns: tuple[tuple[str, bool, int], ...],
    rows: int,
) -> list[bytes]:
    """The pieces of an answer's JSON: up to the id, then up to the numbers of each JSON output."""
    begin, outputs = _outputs_form(bundle.name, bundle.version, columns, rows)
    parameters = orjson.dumps(_parameters(bundle, settings))
    return [begin, b"".join([b',"parameters":', parameters, outputs[0]]), *outputs[1:]]


@lru_cache(maxsize=256)
def _outputs_form(
    model: str, version: int, columns: tuple[tuple[str, bool, int], ...], rows: int
) -> tuple[bytes, list[bytes]]:
    """The JSON of an answer up to its id, and its outputs up to the numbers of each JSON output."""
    begin = orjson.dumps({"model_name": model, "model_version": str(version)})[:-1]
    pieces, text = [], b',"outputs":['
    for place, (name, is_binary, k) in enumerate(columns):
        text += b"," if place else b""
        datatype = NUMBERS.get(name, "FP32")
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [rows, k]}
        if is_binary:
            width = 8 if name == "class_index" else 4
            entry["parameters"] = {"binary_data_size": rows * k * width}
            text += orjson.dumps(entry)
        else:
            pieces.append(text + orjson.dumps(entry)[:-1] + b',"data":[')
            text = b"]}"
    return begin, [*pieces, text + b"]}"]


def encoded(
    asked: InferHeader,
    bundle: Bundle,
    settings: RowSettings,
    scored: Entry,
    k: dict[str, int],
    *,
    identity: str | None,
    warning: str | None = None,
) -> Encoded:
    """An answer with any outputs and settings: JSON, followed by the binary outputs.

    identity: the id of the request; None without one.
    warning: about the inputs; None without one.
    """
    described: list[bytes] = []
    tensors: list[bytes] = []
    for output in asked.outputs:
        if output.name in DECISIONS:
            values, shape, datatype = _decision(output.name, bundle, scored)
        else:
            values, shape, datatype = _values(output, bundle, scored, k)
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            pieces = binary_pieces(values)
            tensors += pieces
            entry["parameters"] = {"binary_data_size": sum(map(len, pieces))}
            described.append(orjson.dumps(entry))
        else:
            data = list_json(encode_json(values))
            described.append(b"".join([orjson.dumps(entry)[:-1], b',"data":', data, b"}"]))
    document: dict[str, Any] = {"model_name": bundle.name, "model_version": str(bundle.version)}
    if identity is not None:
        document["id"] = identity
    document["parameters"] = parameters = _parameters(bundle, settings)
    if warning is not None:
        reported = parameters.get("warnings")
        parameters["warnings"] = f"{reported}; {warning}" if reported else warning
    # Joining long texts lets other threads run meanwhile.
    outputs = b",".join(described)
    header = b"".join([orjson.dumps(document)[:-1], b',"outputs":[', outputs, b"]}"])
    if not tensors:
        return header, b"application/json", ()
    length = (HEADER_LENGTH, b"%d" % len(header))
    return b"".join([header, *tensors]), b"application/octet-stream", (length,)


def _parameters(bundle: Bundle, settings: RowSettings) -> dict[str, Any]:
    """The tau and priors of an answer; the protocol allows only strings, numbers and booleans."""
    tau, revision = settings.tau, settings.revisions[0]
    if settings.prior_of_row is None and isinstance(tau, float):
        found: dict[str, Any] = {
            "tau": tau,
            "prior": revision.name or "inline",
            "prior_revision": revision.revision,
            **_context(revision),
        }
        if warnings := warnings_of(bundle, revision, tau):
            found["warnings"] = "; ".join(warnings)
        return found
    return _by_row(bundle, settings)


def _context(revision: PriorRevision) -> dict[str, str]:
    """The context that selected a prior, as the text of a JSON object."""
    chosen = revision.chosen_by
    return {} if chosen is None else {"prior_context": orjson.dumps(chosen.shown()).decode()}


def _by_row(bundle: Bundle, settings: RowSettings) -> dict[str, Any]:
    """The parameters of an answer whose rows differ in tau or prior."""
    found: dict[str, Any] = {}
    if isinstance(settings.tau, float):
        found["tau"] = settings.tau
    if settings.prior_of_row is None:
        revision = settings.revisions[0]
        found["prior"] = revision.name or "inline"
        found["prior_revision"] = revision.revision
        found.update(_context(revision))
    else:
        names = (f"{each.name or 'inline'}@{each.revision}" for each in settings.revisions)
        found["priors"] = ", ".join(names)
    largest = settings.tau if isinstance(settings.tau, float) else float(settings.tau.max())
    warnings = dict.fromkeys(
        text for each in settings.revisions for text in warnings_of(bundle, each, largest)
    )
    if warnings:
        found["warnings"] = "; ".join(warnings)
    return found


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


def _decision(name: str, bundle: Bundle, scored: Entry) -> tuple[Any, list[int], str]:
    """(values, shape, datatype) of one of the outputs DECISIONS.

    A rejected row has an empty text and the index -1. If the prior has no costs, the decision is
    the most probable class, and its cost is the probability that this is wrong.
    """
    outputs, rows = scored.outputs, slice(scored.start, scored.stop)
    index = outputs.top_index[rows, 0].copy()
    cost = 1 - outputs.top_probability[rows, 0]
    if outputs.decision is not None and outputs.expected_cost is not None:
        priced = outputs.decision[rows] >= REJECTED
        index[priced] = outputs.decision[rows][priced]
        cost[priced] = outputs.expected_cost[rows][priced]
    shape = [len(index), 1]
    if name == "expected_cost":
        return cost[:, None], shape, "FP32"
    if name == "decision_index":
        return index[:, None], shape, "INT64"
    names = bundle.class_names
    return ["" if i == REJECTED else names[i] for i in index.tolist()], shape, "BYTES"


def _classes(bundle: Bundle, values: NDArray[np.float32], index: NDArray[np.int64]) -> list[str]:
    """The classification extension's text "value:index:label" for each ranked class."""
    names = bundle.class_names
    return [
        f"{v!s}:{i}:{names[i]}" for v, i in zip(values.ravel(), index.ravel().tolist(), strict=True)
    ]
