"""POST /v2/models/{model}[/versions/{version}]/infer of the Open Inference Protocol V2.

Tensors are JSON or binary data, in both directions.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.api.content import DEAR_BYTES, LARGE_BYTES, decoded, in_pool, is_large
from service.api.edge.request import Answer, Later, Request, new
from service.api.oip.answer import encoded, encoded_together
from service.api.oip.forms import Form, Plan, form_of, keep_form, kept_form
from service.api.oip.request import HEADER_LENGTH, InferHeader, header_of, raw_request, read_inputs
from service.batching.pool import Pool
from service.batching.queue import Entry, Reply
from service.batching.work import Deadline
from service.classifier import Classifier, RowSettings
from service.contract.bundle import Bundle
from service.contract.inputs.columns import records
from service.contract.inputs.finite import is_finite, not_finite, rows_not_finite
from service.contract.inputs.spec import InputSpec
from service.priors.revisions import PriorRevision, RevisionNotInMemory
from service.repository.on_demand import UnknownModel
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.arrays import (
    check_text_bytes,
    fitted,
    text_array,
    texts_per_row,
)
from service.wire.digits import whole_number
from service.wire.faults import InvalidInput, Malformed
from service.wire.parameters import Parameters, prior_of_text, query_parameters
from service.wire.tensors import BY_DTYPE, Tensor

MAX_ROW_PRIORS = 64
"""The most different priors of one request: each occupies a row of the model's prior table."""
_BINARY_TYPES = frozenset({"application/octet-stream"})
_MAX_TEXTS = 4096
"""More elements of binary BYTES tensors are split in a thread, one by one."""
_TAU, _PRIOR = "tau", "prior"
_PREFIX, _VERSIONS = "/v2/models/", "/versions/"


class Asked(NamedTuple):
    """What `encode` needs, besides the scores, to answer a queued request."""

    request: Request
    model: ServedModel
    header: InferHeader
    identity: str | None
    """The id of this request. `header` may be that of an earlier request with the same form."""
    settings: RowSettings
    plan: Plan


class _Read(NamedTuple):
    """A parsed request. inputs: the model's input tensor; None if `images` are to be decoded."""

    model: ServedModel
    form: Form
    identity: str | None
    parameters: Parameters
    priors: list[str | dict[str, Any] | None]
    prior_of_row: NDArray[np.int64] | None
    taus: float | NDArray[np.float32] | None
    inputs: NDArray[Any] | None
    images: list[bytes | bytearray | str]


class _ManyTexts(Exception):
    """A body has more texts than may be read on the event loop."""


class Infer:
    """The route `/infer` of every model and version."""

    with_error = True
    template = "/v2/models/{model}/infer"

    def __init__(
        self,
        repository: Repository,
        classifier: Classifier,
        *,
        pool: Pool,
        timeout_seconds: float,
    ) -> None:
        """Make the route.

        repository, classifier: find models and priors.
        pool: decodes images and reads large bodies.
        timeout_seconds: the deadline of a request that sets none.
        """
        self._repository, self._classifier = repository, classifier
        self._pool, self._timeout_seconds = pool, timeout_seconds

    def match(self, path: str) -> dict[str, str] | None:
        """Return the model's name and the version, which may be empty; None for another path."""
        if not (path.startswith(_PREFIX) and path.endswith("/infer")):
            return None
        name, versions, version = path[len(_PREFIX) : -len("/infer")].partition(_VERSIONS)
        if not name or "/" in name or "/" in version or (versions and not version):
            return None
        return {"model": name, "version": version}

    # -- from a request to the queue

    def begin(self, request: Request, path: dict[str, str], reply: Reply) -> Later | None:
        """Parse a request and queue its rows; a large body is parsed in the pool."""
        query, name = query_parameters(request.query), path["model"]
        version = version_of(path["version"]) if path["version"] else query.version
        if len(request.body) > DEAR_BYTES:
            self._repository.find(name, version).batcher.check_room()
        if _is_long(request):
            return self._large(request, name, version, query=query, reply=reply)
        try:
            read = self._read(request, name, version, query, max_texts=_MAX_TEXTS)
        except _ManyTexts:
            return self._large(request, name, version, query=query, reply=reply)
        return self._begin(request, read, reply)

    async def _large(
        self,
        request: Request,
        name: str,
        version: int | None,
        *,
        query: Parameters,
        reply: Reply,
    ) -> None:
        model = self._repository.find(name, version, request.body)
        with model.held():
            read = await in_pool(
                self._pool,
                partial(self._read, request, name, version, query),
                request=request,
                model=model,
                size=len(request.body),
                deadline=request.deadline(self._timeout_seconds),
            )
        later = self._begin(request, read, reply)
        if later is not None:
            await later

    def _read(
        self,
        request: Request,
        name: str,
        version: int | None,
        query: Parameters,
        *,
        max_texts: int | None = None,
    ) -> "_Read":
        """Parse a body. Raises the errors of the status table.

        max_texts: the most elements of a binary BYTES tensor; _ManyTexts is raised for more.
        """
        body, header_length = request.body, request.headers.get(HEADER_LENGTH)
        model = self._repository.find(name, version, body)
        if header_length == b"0":
            header, tensor = raw_request(body, model.bundle.input)
            form, inputs = Form(header, model.bundle), {tensor.name: tensor}
        else:
            may_keep = header_length is None and max_texts is not None
            if may_keep and (kept := kept_form(model, body)) is not None:
                form, values, identity = kept
                return _of_one(model, form, identity, query, values)
            text = header_of(body, header_length)
            form = form_of(model, text, is_repeated=len(text) < len(body))
            only = form.tensor
            if only is not None and only.size is not None:
                values = only.only_values(body, len(text))
                return _of_one(model, form, form.header.id, query, values)
            if may_keep:
                keep_form(model, body, form.header)
            if max_texts is not None and form.header.texts() > max_texts:
                raise _ManyTexts
            inputs = read_inputs(form.header, body, len(text))
        parameters, own = query.merged(form.header.parameters), form.header.id
        rows = _Rows(inputs, model.bundle)
        priors, prior_of_row = rows.priors(parameters.prior)
        taus = rows.taus(parameters.tau)
        if rows.are_images:
            images: list[bytes | bytearray | str] = list(rows.own.values)
            return _Read(model, form, own, parameters, priors, prior_of_row, taus, None, images)
        return _Read(model, form, own, parameters, priors, prior_of_row, taus, rows.inputs(), [])

    def _begin(self, request: Request, read: "_Read", reply: Reply) -> Later | None:
        model = read.model
        deadline = request.deadline(self._timeout_seconds, read.form.header.timeout_seconds)
        if read.inputs is None:
            return self._later(request, read, deadline=deadline, reply=reply)
        try:
            revisions = [
                self._at_hand(model.bundle, each, read.parameters.context) for each in read.priors
            ]
        except RevisionNotInMemory:
            return self._later(request, read, deadline=deadline, reply=reply)
        self._queue(request, read, read.inputs, revisions, deadline=deadline, reply=reply)
        return None

    def _at_hand(
        self,
        bundle: Bundle,
        wanted: str | dict[str, Any] | None,
        context: Mapping[str, str] | None,
    ) -> PriorRevision:
        """Return the prior that some rows name. Raises RevisionNotInMemory if its vectors must be
        made first.
        """
        revision = self._classifier.revision_at_hand(bundle, wanted)
        if revision.prior.switch is None:
            return revision
        return self._classifier.in_context(bundle, revision, context)

    async def _later(
        self, request: Request, read: "_Read", *, deadline: Deadline, reply: Reply
    ) -> None:
        """Queue a request that must wait for priors from the store or for decoded images."""
        model, classifier = read.model, self._classifier
        with model.held():
            context = read.parameters.context
            revisions = [
                await classifier.revision_for(model.bundle, each, context, deadline=deadline)
                for each in read.priors
            ]
            inputs = read.inputs
            if inputs is None:
                inputs = await decoded(request, model, read.images, self._pool, deadline)
            self._queue(request, read, inputs, revisions, deadline=deadline, reply=reply)

    def _queue(
        self,
        request: Request,
        read: "_Read",
        inputs: NDArray[Any],
        revisions: list[PriorRevision],
        *,
        deadline: Deadline,
        reply: Reply,
    ) -> None:
        """Queue the rows of a request. Raises the errors of the status table."""
        model, classifier = read.model, self._classifier
        settings = classifier.settings_of(model.bundle, read.taus, revisions, read.prior_of_row)
        plan = read.form.plan(read.parameters.top_k)
        work = classifier.admit_rows(
            model,
            inputs,
            settings,
            top_k=plan.top_k,
            values_a_row=plan.values_a_row,
            deadline=deadline,
            full=plan.full,
        )
        header, own = read.form.header, read.identity
        asked = new(Asked, (request, model, header, own, settings, plan))
        model.batcher.put(Entry(work, caller=request, reply=reply, ask=asked))

    # -- from the queue to the answers

    def encode(self, entries: Sequence[Entry]) -> list[Answer]:
        """Encode the answers to requests that were scored together."""
        first: Asked = entries[0].ask
        columns, outputs = first.plan.columns, entries[0].outputs
        for entry in entries:
            settings = entry.ask.settings
            if (
                columns is None
                or entry.ask.plan.columns != columns
                or entry.outputs is not outputs
                or settings.prior_of_row is not None
                or not isinstance(settings.tau, float)
            ):
                return [_encoded(entry) for entry in entries]
        if outputs.features is not None and first.model.far_inputs(entries) is not None:
            return [_encoded(entry) for entry in entries]
        answers = []
        found = encoded_together(entries, columns) if columns else []
        for entry, (body, content_type, headers) in zip(entries, found, strict=True):
            answers.append(new(Answer, (body, _facts(entry.ask, entry), content_type, headers)))
        return answers


def _of_one(
    model: ServedModel,
    form: Form,
    identity: str | None,
    query: Parameters,
    values: NDArray[Any],
) -> _Read:
    """A request whose only tensor fits the model, so that its rows share tau and prior."""
    parameters = query.merged(form.header.parameters)
    prior, tau = parameters.prior, parameters.tau
    return new(_Read, (model, form, identity, parameters, [prior], None, tau, values, []))


def _encoded(entry: Entry) -> Answer:
    """The answer to one request with any outputs and settings."""
    asked: Asked = entry.ask
    far = asked.model.far_inputs([entry])
    body, content_type, headers = encoded(
        asked.header,
        asked.model.bundle,
        asked.settings,
        entry,
        asked.plan.classes,
        identity=asked.identity,
        warning=None if far is None else far[0],
    )
    return Answer(body, _facts(asked, entry), content_type, headers)


class _Rows:
    """The inputs of a request: those of the model, and optionally tau and prior for each row."""

    def __init__(self, inputs: Mapping[str, Tensor], bundle: Bundle) -> None:
        specs = bundle.input.columns or (bundle.input,)
        names = [spec.name for spec in specs]
        self._extra = {key: tensor for key, tensor in inputs.items() if key not in names}
        for key in self._extra:
            if key not in {_TAU, _PRIOR}:
                raise InvalidInput(
                    f"the model has no input '{key[:60]}'; it takes {', '.join(names)}, and "
                    f"optionally {_TAU} and {_PRIOR} for each row"
                )
        for name in names:
            if name not in inputs:
                raise InvalidInput(f"input '{name}' is missing; the model takes {', '.join(names)}")
        self.own, self._spec = inputs[names[0]], bundle.input
        self._tensors = [inputs[name] for name in names]
        self._count = self.own.shape[0]
        self.are_images = bundle.input.kind == "image" and self.own.datatype == "BYTES"
        if self.are_images:
            _check_column(self.own, 1)

    def inputs(self) -> NDArray[Any]:
        """The model's input tensor; None where images must be decoded first."""
        if not self._spec.columns:
            return self._array(self.own, self._spec)
        arrays = {}
        for tensor, spec in zip(self._tensors, self._spec.columns, strict=True):
            found = self._array(tensor, spec)
            arrays[spec.name] = found if found.dtype.names is None else found[spec.name]
            if found.dtype.kind == "f" and not is_finite(found):
                row = rows_not_finite(found)[0]
                raise InvalidInput(f"input '{spec.name}', instance {row} {not_finite(found.dtype)}")
            if tensor.shape[0] != self._count:
                raise InvalidInput(
                    f"input '{spec.name}' has {tensor.shape[0]} rows; "
                    f"expected {self._count}, as '{self.own.name}' has"
                )
        return records(arrays)

    @staticmethod
    def _array(tensor: Tensor, spec: InputSpec) -> NDArray[Any]:
        expected = BY_DTYPE[spec.dtype]
        if tensor.datatype != expected:
            also = " or encoded images as BYTES" if spec.kind == "image" else ""
            raise InvalidInput(
                f"input '{spec.name}' is {tensor.datatype}; the model takes {expected}{also}"
            )
        if spec.kind == "text":
            _check_column(tensor, texts_per_row(spec))
            columns = texts_per_row(spec)
            texts = [_text(v, spec.name, at // columns) for at, v in enumerate(tensor.values)]
            return text_array(texts, spec)
        assert isinstance(tensor.values, np.ndarray)
        if tensor.holds_null and not spec.missing:
            raise InvalidInput(_null(tensor))
        return fitted(tensor.values, spec)

    def taus(self, common: float | None) -> float | NDArray[np.float32] | None:
        tensor = self._column(_TAU, "FP32", common)
        if tensor is None:
            return common
        assert isinstance(tensor.values, np.ndarray)
        return np.ascontiguousarray(tensor.values.ravel(), np.float32)

    def priors(
        self, common: str | dict[str, Any] | None
    ) -> tuple[list[str | dict[str, Any] | None], NDArray[np.int64] | None]:
        """Return (the different priors, [n] the position of each row's prior among them).

        common: the prior of the request's parameters. The positions are None if all rows share it.
        """
        tensor = self._column(_PRIOR, "BYTES", common)
        if tensor is None:
            return [common], None
        texts = [_text(each, _PRIOR, row) for row, each in enumerate(tensor.values)]
        number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        if len(number) > MAX_ROW_PRIORS:
            raise InvalidInput(
                f"the rows name {len(number)} different priors; expected at most {MAX_ROW_PRIORS}"
            )
        return [prior_of_text(text) for text in number], np.array(
            [number[t] for t in texts], np.int64
        )

    def _column(self, name: str, datatype: str, common: object) -> Tensor | None:
        tensor = self._extra.get(name)
        if tensor is None:
            return None
        if common is not None:
            raise Malformed(
                f"{name} is given twice, as a parameter and for each row; give only one of them"
            )
        if tensor.datatype != datatype:
            raise InvalidInput(f"input '{name}' is {tensor.datatype}; expected {datatype}")
        _check_column(tensor, 1)
        if tensor.holds_null:
            raise InvalidInput(_null(tensor))
        if tensor.shape[0] != self._count:
            raise InvalidInput(
                f"input '{name}' has {tensor.shape[0]} rows; expected {self._count}, one for each "
                "row of the request"
            )
        return tensor


def version_of(text: str) -> int:
    """Parse the version in a path. Raises UnknownModel if it is not a whole number."""
    number = whole_number(text, below=10**9)
    if number is None:
        raise UnknownModel(f"'{text[:40]}' is not a version; expected a whole number of at least 1")
    return number


def _null(tensor: Tensor) -> str:
    return f"input '{tensor.name[:60]}' holds null; expected {tensor.datatype}"


def _check_column(tensor: Tensor, width: int) -> None:
    rest = math.prod(tensor.shape[1:])
    if rest != width or not tensor.shape[0]:
        raise InvalidInput(
            f"input '{tensor.name}' has shape {list(tensor.shape)}; expected [batch, {width}] with "
            "a batch of at least 1"
        )


def _text(value: bytes | bytearray | str, name: str, row: int) -> str:
    if isinstance(value, str):
        return value
    if name != _PRIOR:
        check_text_bytes(value, row)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"input '{name}' holds bytes that are not UTF-8 text; encode its texts as UTF-8"
        ) from None


def _facts(asked: Asked, entry: Entry) -> dict[str, Any]:
    """The facts for the log line of a scored request."""
    bundle, settings = asked.model.bundle, asked.settings
    facts: dict[str, Any] = {
        "model": bundle.name,
        "version": bundle.version,
        "rows": entry.stop - entry.start,
        "queue_seconds": entry.begun - entry.admitted,
        "inference_seconds": entry.inference_seconds,
    }
    if settings.prior_of_row is None:
        revision = settings.revisions[0]
        facts["prior"], facts["revision"] = revision.name, revision.revision
    if isinstance(settings.tau, float):
        facts["tau"] = settings.tau
    return facts


def _is_long(request: Request) -> bool:
    """Whether a body takes so long to read that a thread should do it."""
    if is_large(request, _BINARY_TYPES):
        return True
    length = len(request.body)
    if length <= LARGE_BYTES:
        return False
    given = request.headers.get(HEADER_LENGTH)  # without it, all of the body is JSON
    return given is None or (whole_number(given, below=length + 1) or 0) > LARGE_BYTES
