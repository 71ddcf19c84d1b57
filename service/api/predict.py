"""POST /predict and /models/{model}/predict: turn a body of any accepted type into ranked classes.

A request waits in its model's batcher. Requests that are scored together are answered together.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import orjson
from numpy.typing import NDArray

from service.api.content import (
    DEAR_BYTES,
    JSON_LINES,
    JSON_TYPES,
    LARGE_BYTES,
    NPY,
    UNCHOSEN_TYPES,
    Content,
    in_pool,
    instances_of,
    instances_of_columns,
    is_json,
    is_large,
    may_pin,
    rows_or_images,
)
from service.api.edge.request import Answer, Later, Request, new
from service.batching.pool import Pool
from service.batching.queue import Entry, Reply
from service.batching.work import Deadline
from service.classifier import Classifier, prior_shown, ranked
from service.priors.revisions import PriorRevision, RevisionNotInMemory
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.arrays import array_of, fitted, may_hold_strings
from service.wire.json_rows import document_of_json, numbers_of_json
from service.wire.json_text import MAX_WHOLE_BYTES, holds, parse_json_lines, parse_json_object
from service.wire.npy import parse_npy
from service.wire.parameters import Parameters, body_parameters, query_parameters
from service.wire.ranked import rows_json, with_decisions
from service.wire.tables.reader import DEAR_TYPES, TYPES, read_table

_MEMBERS = ("instances", "inputs", "parameters")


class Asked(NamedTuple):
    """What `encode` needs, besides the scores, to answer a queued request."""

    request: Request
    model: ServedModel
    revision: PriorRevision


class _Read(NamedTuple):
    """A parsed request: the model's input tensor, or encoded images to decode first."""

    model: ServedModel
    parameters: Parameters
    inputs: NDArray[Any] | None
    content: Content | None


class Predict:
    """One of the two routes: the default model's, or a named model's."""

    with_error = False

    def __init__(
        self,
        repository: Repository,
        classifier: Classifier,
        *,
        default: bool,
        pool: Pool,
        timeout_seconds: float,
        max_body_bytes: int,
    ) -> None:
        """Make a route.

        repository, classifier: find models and priors.
        default: whether it is /predict, the route of the default model.
        pool: decodes images and reads large bodies.
        timeout_seconds: the deadline of a request that sets none.
        max_body_bytes: the largest body, also after it is decompressed.
        """
        self._repository, self._classifier = repository, classifier
        self._max_body_bytes = max_body_bytes
        self._default, self._pool, self._timeout_seconds = default, pool, timeout_seconds
        self.template = "/predict" if default else "/models/{model}/predict"

    def match(self, path: str) -> dict[str, str] | None:
        """Return the model's name, if the path has one; None if the path is of another route."""
        if self._default:
            return {} if path == "/predict" else None
        if path.startswith("/models/") and path.endswith("/predict"):
            name = path[8:-8]
            return {"model": name} if name and "/" not in name else None
        return None

    # -- from a request to the queue

    def begin(self, request: Request, path: dict[str, str], reply: Reply) -> Later | None:
        """Parse a request and queue its rows; a large body is parsed in the pool."""
        parameters, name = query_parameters(request.query), path.get("model")
        if len(request.body) > DEAR_BYTES and not may_pin(request.body):
            self._repository.find(name, parameters.version).batcher.check_room()
        if (len(request.body) > LARGE_BYTES or request.content_type in DEAR_TYPES) and is_large(
            request
        ):
            return self._large(request, parameters, name, reply)
        return self._queue(request, self._read(request, parameters, name), reply)

    async def _large(
        self, request: Request, parameters: Parameters, name: str | None, reply: Reply
    ) -> None:
        model = self._repository.find(name, parameters.version, request.body)
        with model.held():
            read = await in_pool(
                self._pool,
                partial(self._read, request, parameters, name),
                request=request,
                model=model,
                size=len(request.body),
                deadline=request.deadline(self._timeout_seconds),
            )
        later = self._queue(request, read, reply)
        if later is not None:
            await later

    async def aside(
        self, request: Request, model: ServedModel, translate: Callable[[], bytes]
    ) -> bytes:
        """Translate a large body of another route in the pool. Raises the pool's errors."""
        return await in_pool(
            self._pool,
            translate,
            request=request,
            model=model,
            size=len(request.body),
            deadline=request.deadline(self._timeout_seconds),
        )

    def _read(self, request: Request, parameters: Parameters, name: str | None) -> "_Read":
        """Parse a body. Raises the errors of the status table."""
        body, kind, content = request.body, request.content_type, None
        inputs: NDArray[Any] | None = None
        if kind in JSON_TYPES or (kind in UNCHOSEN_TYPES and is_json(request)):
            model = self._repository.find(name, parameters.version, body)
            sliced = None
            if len(body) > LARGE_BYTES:
                sliced = self._numbers(body, model)
            else:
                inputs = model.short_json.read(body)
                if inputs is not None:
                    return new(_Read, (model, parameters, inputs, None))
            document, inputs = sliced or (self._document(body, model), None)
            if "parameters" in document:
                parameters = parameters.merged(body_parameters(document["parameters"]))
                model = self._repository.find(name, parameters.version, body)
            if inputs is None:
                inputs, content = self._instances(document, body, model)
        elif kind == NPY and body:
            model = self._repository.find(name, parameters.version, body)
            inputs = fitted(parse_npy(body), model.bundle.input)
        elif kind in JSON_LINES and body:
            model = self._repository.find(name, parameters.version, body)
            most = model.batcher.max_request_rows
            lines = {"instances": parse_json_lines(body, max_lines=most)}
            inputs, content = self._instances(lines, body, model)
        elif kind in TYPES and body:
            model = self._repository.find(name, parameters.version, body)
            inputs = self._table(request, body, model)
        else:
            content = Content.of(request)
            parameters = parameters.merged(content.parameters)
            model = self._repository.find(name, parameters.version, body)
        return new(_Read, (model, parameters, inputs, content))

    @staticmethod
    def _instances(
        document: dict[str, Any], body: bytes | bytearray, model: ServedModel
    ) -> tuple[NDArray[Any] | None, Content | None]:
        """Return (the model's input tensor, None) or (None, the encoded images) of a JSON body."""
        bundle = model.bundle
        instances = document.get("instances")
        if "inputs" in document:
            most = model.batcher.max_request_rows
            instances = instances_of_columns(document, max_rows=most)
        if not instances or not isinstance(instances, list):
            instances = instances_of(document)  # raises an error that says why
        if isinstance(instances[0], list) or bundle.input.columns:
            are_numbers = not may_hold_strings(body)
            return array_of(instances, bundle.input, are_numbers=are_numbers), None
        rows, are_images = rows_or_images(instances, bundle)
        if are_images:
            return None, Content.of_instances(rows)
        return array_of(rows, bundle.input), None

    def _table(self, request: Request, body: bytes | bytearray, model: ServedModel) -> NDArray[Any]:
        """Read a table or a file of arrays. Returns the model's input tensor."""
        return read_table(
            request.headers[b"content-type"],
            body,
            model.bundle.input,
            model.bundle.column_names,
            model=model.bundle.name,
            max_rows=model.batcher.max_request_rows,
            max_bytes=self._max_body_bytes,
        )

    @staticmethod
    def _numbers(
        body: bytes | bytearray, model: ServedModel
    ) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """Read the members and the numbers of a large body slice by slice.

        None if the body may name a version: then it is decoded whole.
        """
        if holds(body, b"version"):  # another version may have another shape
            return None
        return numbers_of_json(
            body,
            model.bundle.input,
            member="instances",
            allowed=_MEMBERS,
            max_rows=model.batcher.max_request_rows,
        )

    @staticmethod
    def _document(body: bytes | bytearray, model: ServedModel) -> dict[str, Any]:
        """Decode the members of a JSON body, in pieces if it is long."""
        if len(body) <= MAX_WHOLE_BYTES:
            return parse_json_object(body, _MEMBERS)
        most = model.batcher.max_request_rows
        return document_of_json(body, member="instances", allowed=_MEMBERS, max_rows=most)

    def _queue(
        self,
        request: Request,
        read: "_Read",
        reply: Reply,
        *,
        revision: PriorRevision | None = None,
        deadline: Deadline | None = None,
    ) -> Later | None:
        """Queue a request; if it must wait for something first, return that as a coroutine."""
        model, inputs = read.model, read.inputs
        if deadline is None:
            deadline = request.deadline(self._timeout_seconds)
        if inputs is not None and revision is None:
            try:
                revision = self._classifier.revision_at_hand(model.bundle, read.parameters.prior)
                if revision.prior.switch is not None:
                    context = read.parameters.context
                    revision = self._classifier.in_context(model.bundle, revision, context)
            except RevisionNotInMemory:
                revision = None
        if inputs is None or revision is None:
            return self._later(request, read, deadline=deadline, reply=reply)
        work = self._classifier.admit(model, inputs, read.parameters, revision, deadline=deadline)
        asked = new(Asked, (request, model, revision))
        model.batcher.put(Entry(work, caller=request, reply=reply, ask=asked))
        return None

    async def _later(
        self, request: Request, read: "_Read", *, deadline: Deadline, reply: Reply
    ) -> None:
        """Queue a request that must wait for decoded images or for a prior from the store."""
        model = read.model
        with model.held():
            if read.inputs is None:
                assert read.content is not None
                inputs = await read.content.decoded_images(request, model, self._pool, deadline)
                read = read._replace(inputs=inputs)
            parameters = read.parameters
            revision = await self._classifier.revision_for(
                model.bundle, parameters.prior, parameters.context, deadline=deadline
            )
            self._queue(request, read, reply, revision=revision, deadline=deadline)

    # -- from the queue to the answers

    def encode(self, entries: Sequence[Entry]) -> list[Answer]:
        """The JSON answers to requests that were scored together."""
        outputs, top_k = entries[0].outputs, entries[0].work.top_k
        for entry in entries:
            if entry.outputs is not outputs or entry.work.top_k != top_k:
                return _encoded_apart(entries)
        return _encoded(entries)


def _encoded_apart(entries: Sequence[Entry]) -> list[Answer]:
    """Answers to requests whose rows come from several outputs, or that differ in top_k."""
    alike: dict[tuple[int, int], list[int]] = {}
    for at, entry in enumerate(entries):
        alike.setdefault((id(entry.outputs), entry.work.top_k), []).append(at)
    found: dict[int, Answer] = {}
    for places in alike.values():
        found.update(zip(places, _encoded([entries[at] for at in places]), strict=True))
    return [found[at] for at in range(len(entries))]


def _encoded(entries: Sequence[Entry]) -> list[Answer]:
    """Answers to requests of one model with the same outputs and top_k."""
    outputs, k = entries[0].outputs, entries[0].work.top_k
    model: ServedModel = entries[0].ask.model
    begin, end = entries[0].start, entries[-1].stop
    rows: slice | list[int] = slice(begin, end)
    count = 0
    for entry in entries:
        count += entry.stop - entry.start
    if count != end - begin:  # rows of other requests are in between
        rows = [row for entry in entries for row in range(entry.start, entry.stop)]
    predictions = rows_json(
        model.class_json,
        *ranked(outputs, rows, k),
        outputs.unadjusted_index[rows],
        outputs.unadjusted_probability[rows],
    )
    if outputs.decision is not None:
        assert outputs.expected_cost is not None
        names = model.bundle.class_names
        predictions = with_decisions(
            predictions, names, outputs.decision[rows], outputs.expected_cost[rows]
        )
    far = None if outputs.features is None else model.far_inputs(entries)
    answers, at = [], 0
    for number, entry in enumerate(entries):
        count = entry.stop - entry.start
        own = predictions[at] if count == 1 else b",".join(predictions[at : at + count])
        at += count
        answers.append(_answer(entry, own, count, None if far is None else far[number]))
    return answers


def _answer(entry: Entry, predictions: bytes, rows: int, far: str | None) -> Answer:
    """One answer, with the facts for its log line. far: the warning about its inputs, if any."""
    asked: Asked = entry.ask
    bundle, revision, tau = asked.model.bundle, asked.revision, entry.work.tau
    assert isinstance(tau, float)
    warnings = revision.prior.warnings
    if tau:
        warnings += asked.model.source_warnings
    if far is not None:
        warnings = (*warnings, far)
    prior = _prior_json(revision.name, revision.revision)
    if revision.chosen_by is not None:
        warnings += revision.chosen_by.warnings
        prior = b',"prior":%b,"predictions":[' % orjson.dumps(prior_shown(revision))
    body = b"".join(  # which lets other threads run meanwhile, if it is long
        (
            _model_json(bundle.name, bundle.version),
            orjson.dumps(tau),
            prior,
            predictions,
            b"]",
            b',"warnings":' + orjson.dumps(warnings) if warnings else b"",
            b"}",
        )
    )
    facts = {
        "model": bundle.name,
        "version": bundle.version,
        "prior": revision.name,
        "revision": revision.revision,
        "tau": tau,
        "rows": rows,
        "queue_seconds": entry.begun - entry.admitted,
        "inference_seconds": entry.inference_seconds,
    }
    return new(Answer, (body, facts, b"application/json", ()))


@lru_cache(maxsize=256)
def _model_json(name: str, version: int) -> bytes:
    return orjson.dumps({"model": name, "version": version})[:-1] + b',"tau":'


@lru_cache(maxsize=1024)
def _prior_json(name: str | None, revision: int) -> bytes:
    return b',"prior":%b,"predictions":[' % orjson.dumps({"name": name, "revision": revision})
