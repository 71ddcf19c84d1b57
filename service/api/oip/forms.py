"""The part of an inference request that a client repeats: everything but its numbers and its id.

A model caches what was derived from that part, so that only the numbers of the next request have to
be read.
"""

import re
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from service.api.edge.request import new
from service.api.oip.request import DECISIONS, InferHeader, Requested, read_header
from service.batching.run import MAX_GRAPH_TOP_K
from service.classifier import RANKED_VALUES, check_top_k
from service.contract.bundle import Bundle
from service.repository.served import ServedModel
from service.wire.arrays import rows_fit
from service.wire.tensors import BY_DTYPE, Described

NUMBERS = {"class_index": "INT64", "class_probability": "FP32"}
"""Ranked outputs that are numbers, and their datatypes."""
_MAX_PLANS = 16
BINARY_A_VALUE = 8
"""How many binary numbers of an answer count as one number in JSON."""
MAX_KEPT_HEADERS = 256
"""The most forms that a model keeps."""
MAX_KEPT_HEADER_BYTES = 2048
"""The longest header, or JSON without its numbers, whose form a model keeps."""
_MAX_ID = 200
_LIST = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[")
_TEXT = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"([^"]*)"')


class Plan(NamedTuple):
    """The outputs that the graph must compute for a request, given the classes and top_k."""

    classes: dict[str, int]
    """The number of classes of each ranked output, by the output's name."""
    top_k: int
    """How many classes the graph must rank."""
    full: bool
    """Whether the graph must return the values of all classes."""
    columns: tuple[tuple[str, bool, int], ...] | None
    """(name, whether binary, numbers per row) of each output; None unless all hold only numbers."""
    values_a_row: int
    """How many numbers of JSON the answer to one row has."""


class Form:
    """The parsed header of a request to one model: everything but its numbers."""

    __slots__ = ("_num_classes", "_plans", "header", "tensor")

    def __init__(self, header: InferHeader, bundle: Bundle) -> None:
        header.check(bundle.name, bundle.version)
        self.header, self._num_classes = header, len(bundle.class_names)
        self._plans: dict[int | None, Plan] = {}
        self.tensor: Described | None = None
        """The only tensor of the request, if it is exactly the model's input.

        Its name, type and shape need no further check, only the number of its values.
        """
        spec, only = bundle.input, header.inputs[0] if len(header.inputs) == 1 else None
        if (
            only is not None
            and only.count
            and spec.kind in {"tensor", "image"}
            and not spec.missing
            and only.name == spec.name
            and only.datatype == BY_DTYPE[spec.dtype]
            and rows_fit(only.shape, spec.shape)
        ):
            self.tensor = only

    def plan(self, top_k: int | None) -> Plan:
        """The plan for this top_k. Raises InvalidParameter."""
        plan = self._plans.get(top_k)
        if plan is None:
            k = check_top_k(top_k, self._num_classes)
            plan = _plan(self.header.outputs, k, self._num_classes)
            if len(self._plans) < _MAX_PLANS:
                self._plans[top_k] = plan
        return plan


def form_of(model: ServedModel, text: bytes | bytearray, *, is_repeated: bool) -> Form:
    """The form of a header, which the model keeps if binary data follows it.

    Raises what `request.read_header` raises.
    """
    if not is_repeated or len(text) > MAX_KEPT_HEADER_BYTES:
        return Form(read_header(text), model.bundle)
    text = bytes(text)
    form: Form | None = model.infer_forms.get(text)
    if form is None:
        form = Form(read_header(text), model.bundle)
        _keep(model, text, form)
    return form


def _keep(model: ServedModel, key: bytes, form: Form) -> None:
    forms = model.infer_forms
    if len(forms) >= MAX_KEPT_HEADERS:
        forms.clear()
    forms[key] = form


class JsonForm(NamedTuple):
    """A JSON body split into the numbers of its only tensor, its id, and everything else."""

    key: bytes
    """The body without the numbers and the id. It is not JSON, so it cannot equal a binary
    header.
    """
    numbers: bytes | bytearray
    """The list of the numbers, as JSON."""
    identity: str | None
    """The id of the request; None without one."""


def parted(body: bytes | bytearray) -> JsonForm | None:
    """Split a JSON body whose only list of values is under its only `data`; None for other bodies.

    A valid body with the same key differs from another only in numbers and id, because neither
    holds a quotation mark, and the body has no backslash.
    """
    at = body.find(b'"data"')
    opened = None if at < 0 else _LIST.match(body, at + 6)
    if opened is None:
        return None
    begin = opened.end() - 1
    quote = body.find(b'"', begin)
    stop = body.find(b"}", begin, len(body) if quote < 0 else quote)
    end = body.rfind(b"]", begin, quote if stop < 0 else stop) + 1
    if not end or begin + len(body) - end > MAX_KEPT_HEADER_BYTES:
        return None
    key = bytes(body[:begin]) + bytes(body[end:])
    if key.find(b'"data"', at + 6) >= 0 or key.find(b"\\") >= 0:
        return None
    at = key.find(b'"id"')
    identity = None
    if at >= 0:
        found = _TEXT.match(key, at + 4)
        if found is None or len(found[1]) > _MAX_ID or not found[1].isascii():
            return None
        identity = found[1].decode()
        if not (identity.isprintable() and key.find(b'"id"', at + 4) < 0):
            return None
        key = key[: found.start(1)] + key[found.end(1) :]
    return new(JsonForm, (key, body[begin:end], identity))


def kept_form(
    model: ServedModel, body: bytes | bytearray
) -> tuple[Form, NDArray[Any], str | None] | None:
    """Return (form, input tensor, id) of a JSON body whose form the model keeps; None for other
    bodies.

    It is also None for an invalid body: `read_header` then names the fault. Call it on the event
    loop.
    """
    found = parted(body)
    form: Form | None = None if found is None else model.infer_forms.get(found.key)
    if found is None or form is None:
        return None
    assert form.tensor is not None
    only = form.tensor
    values = model.short_json.list_of_numbers(found.numbers, only.shape, count=only.count)
    return None if values is None else (form, values, found.identity)


def keep_form(model: ServedModel, body: bytes | bytearray, header: InferHeader) -> None:
    """Keep the form of a body of JSON that was read, if it has one for its numbers."""
    only, found = header.inputs[0], parted(body)
    if found is None or found.key in model.infer_forms or only.size is not None:
        return
    if len(header.inputs) == 1 and found.identity == header.id:
        described = replace(only, values=None, holds_null=False)
        form = Form(replace(header, inputs=[described], id=None), model.bundle)
        if form.tensor is not None:
            _keep(model, found.key, form)


def _plan(outputs: list[Requested], top_k: int, num_classes: int) -> Plan:
    """Plan the outputs. More classes than the model has means all of them, as in Triton."""
    classes = {}
    full, are_numbers = False, True
    for each in outputs:
        if each.classes is not None:
            classes[each.name] = min(each.classes, num_classes)
        elif each.name.startswith("class_"):
            classes[each.name] = top_k
        k = classes.get(each.name)
        if each.name in DECISIONS:
            are_numbers = False
            continue
        full = full or k is None or each.name.endswith("logits") or k > MAX_GRAPH_TOP_K
        are_numbers = are_numbers and (k is None or each.name in NUMBERS)
    columns = None
    if are_numbers:
        columns = tuple((o.name, o.binary, classes.get(o.name, num_classes)) for o in outputs)
    values = 0
    for each in outputs:
        k = classes.get(each.name, num_classes)
        if each.binary:
            values += -(-k // BINARY_A_VALUE)
        else:
            is_text = each.name in classes and each.name not in NUMBERS
            values += k * (RANKED_VALUES if is_text else 1)
    return Plan(classes, max(classes.values(), default=1), full, columns, values)
