"""POST /predict and /models/{model}/predict: any body to ranked classes.

A request waits in its model's batcher; those that were scored together are answered together.
"""

import asyncio
import time
from collections.abc import Coroutine
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

import orjson
from numpy.typing import NDArray

from service.api.content import DEAR_BYTES, NPY, TIMEOUT_HEADER, Content, deadline_of
from service.api.edge.request import HotRequest, Response, ok
from service.batching.pool import Pool
from service.batching.work import Entry, Work
from service.classifier import (
    Classifier,
    check_room,
    deadline_passed,
    enqueue,
    ranked,
    rejection,
    warnings_of,
)
from service.priors.revisions import PriorRevision, RevisionNotInMemory
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.arrays import fitted
from service.wire.npy import parse_npy
from service.wire.parameters import Parameters, query_parameters
from service.wire.ranked import rows_json


class Asked(Entry):
    """A request in the batcher's queue, with what its answer tells."""

    __slots__ = ("model", "predict", "request", "revision", "timer")

    def __init__(
        self,
        work: Work,
        predict: "Predict",
        request: HotRequest,
        model: ServedModel,
        revision: PriorRevision,
    ) -> None:
        super().__init__(work)
        self.predict, self.request, self.model, self.revision = predict, request, model, revision
        self.timer: asyncio.TimerHandle | None = None

    def told(self) -> None:
        """See Entry."""
        self.predict.ready(self)

    def expire(self) -> None:
        """The caller's hard deadline is over, and the graph still runs."""
        if not self.done():
            self.fail(deadline_passed())


class Predict:
    """One hot route: the default model's, or a named model's."""

    oip = False
    direct: Literal[True] = True

    def __init__(
        self,
        repository: Repository,
        classifier: Classifier,
        *,
        default: bool,
        pool: Pool,
        timeout_seconds: float,
    ) -> None:
        self._repository, self._classifier = repository, classifier
        self._default, self._pool, self._timeout_seconds = default, pool, timeout_seconds
        self.template = "/predict" if default else "/models/{model}/predict"
        self._ready: list[Asked] = []

    def match(self, path: str) -> dict[str, str] | None:
        """See DirectRoute."""
        if self._default:
            return {} if path == "/predict" else None
        if path.startswith("/models/") and path.endswith("/predict"):
            name = path[8:-8]
            return {"model": name} if name and "/" not in name else None
        return None

    def begin(self, request: HotRequest, path: dict[str, str]) -> Coroutine[Any, Any, None] | None:
        """See DirectRoute: parse and queue; what has to wait for something first is the coroutine."""
        parameters = query_parameters(request.query)
        if len(request.body) > DEAR_BYTES and b"version" not in request.body:
            check_room(self._repository.find(path.get("model"), parameters.version))
        content: Content | None = None
        inputs: NDArray[Any] | None
        if request.content_type == NPY and request.body:  # a tensor alone
            model = self._repository.find(path.get("model"), parameters.version)
            inputs = fitted(parse_npy(request.body), model.bundle.input)
        else:
            content = Content.of(request)
            parameters = parameters.merged(content.parameters)
            model = self._repository.find(path.get("model"), parameters.version)
            inputs = content.array(model.bundle)
        if inputs is not None:
            try:
                revision = self._classifier.revision_at_hand(model.bundle, parameters.prior)
            except RevisionNotInMemory:
                pass
            else:
                deadline = deadline_of(request, self._timeout_seconds)
                self._enqueue(request, model, inputs, parameters, revision, deadline=deadline)
                return None
        return self._later(request, model, content, inputs, parameters)

    async def _later(
        self,
        request: HotRequest,
        model: ServedModel,
        content: Content | None,
        inputs: NDArray[Any] | None,
        parameters: Parameters,
    ) -> None:
        """Queue a request whose images must be decoded or whose prior must be fetched."""
        deadline = deadline_of(request, self._timeout_seconds)
        with model.held():
            if inputs is None:
                assert content is not None
                inputs = await content.decoded_images(request, model, self._pool, deadline)
            revision = await self._classifier.revision_of(model.bundle, parameters.prior)
            self._enqueue(request, model, inputs, parameters, revision, deadline=deadline)

    def _enqueue(
        self,
        request: HotRequest,
        model: ServedModel,
        inputs: NDArray[Any],
        parameters: Parameters,
        revision: PriorRevision,
        *,
        deadline: float,
    ) -> None:
        work = self._classifier.work(
            model,
            inputs,
            parameters,
            revision,
            deadline=deadline,
            is_abandoned=request.is_abandoned,
        )
        asked = Asked(work, self, request, model, revision)
        enqueue(model, asked)
        model.hold()
        if TIMEOUT_HEADER in request.headers:
            wait = max(0.0, deadline - time.monotonic())
            asked.timer = asyncio.get_running_loop().call_later(wait, asked.expire)

    # -- from the batcher to the callers

    def ready(self, asked: Asked) -> None:
        """Answer a request together with all that were scored with it."""
        if not self._ready:
            asked.model.batcher.afterwards(self._answer_ready)
        self._ready.append(asked)

    def _answer_ready(self) -> None:
        ready, self._ready = self._ready, []
        good: list[Asked] = []
        for asked in ready:
            asked.model.let_go()
            if asked.timer is not None:
                asked.timer.cancel()
            if asked.error is None:
                good.append(asked)
            else:
                asked.model.metrics.rejected(rejection(asked.error))
                asked.request.lane.fail(asked.request, asked.error)
        for _, group in groupby(good, key=_batch_of):
            self._answer_batch(list(group))

    def _answer_batch(self, batch: list[Asked]) -> None:
        """Answer requests that were scored in one graph call with one top_k."""
        lane = batch[0].request.lane
        failure: Exception | None = None
        try:
            responses = _responses(batch)
        except Exception as error:  # noqa: BLE001 - whatever one request broke, the others have their answers
            failure = error
        if failure is None:
            self._count(batch)
            lane.succeed([asked.request for asked in batch], responses)
        elif len(batch) == 1:
            lane.fail(batch[0].request, failure)
        else:
            for asked in batch:
                self._answer_batch([asked])

    @staticmethod
    def _count(batch: list[Asked]) -> None:
        """The taus that were used, and what the log lines tell."""
        metrics, single = batch[0].model.metrics, []
        for asked in batch:
            tau, rows = asked.work.tau, asked.stop - asked.start
            assert isinstance(tau, float)
            if rows == 1:
                single.append(tau)
            else:
                metrics.used_tau(tau, rows)
            asked.request.log = _facts(asked)
        metrics.used_taus(single)


def _batch_of(asked: Asked) -> tuple[int, int]:
    return id(asked.outputs), asked.work.top_k


def _facts(asked: Asked) -> dict[str, Any]:
    """What the log line tells of a scored request."""
    bundle, revision, work = asked.model.bundle, asked.revision, asked.work
    return {
        "model": bundle.name,
        "version": bundle.version,
        "prior": revision.name,
        "revision": revision.revision,
        "tau": work.tau,
        "rows": asked.stop - asked.start,
        "queue_seconds": asked.queue_seconds,
        "inference_seconds": asked.inference_seconds,
    }


def _responses(batch: list[Asked]) -> list[Response]:
    """The JSON of the answers to requests of one model with the same outputs and top_k."""
    outputs, k, model = batch[0].outputs, batch[0].work.top_k, batch[0].model
    begin, end = batch[0].start, batch[-1].stop
    rows: slice | list[int] = slice(begin, end)
    if sum([asked.stop - asked.start for asked in batch]) != end - begin:  # others are in between
        rows = [row for asked in batch for row in range(asked.start, asked.stop)]
    entries = rows_json(
        model.class_json,
        *ranked(outputs, rows, k),
        outputs.unadjusted_index[rows],
        outputs.unadjusted_probability[rows],
    )
    model_json = _model_json(model.bundle.name, model.bundle.version)
    found, at = [], 0
    for asked in batch:
        count = asked.stop - asked.start
        predictions = entries[at] if count == 1 else b",".join(entries[at : at + count])
        at += count
        found.append(ok(asked.request, _body(asked, model_json, predictions)))
    return found


def _body(asked: Asked, model_json: bytes, predictions: bytes) -> bytes:
    revision, tau = asked.revision, asked.work.tau
    assert isinstance(tau, float)
    warnings = warnings_of(asked.model.bundle, revision, tau)
    return b"%b%b%b%b]%b}" % (
        model_json,
        orjson.dumps(tau),
        _prior_json(revision.name, revision.revision),
        predictions,
        b',"warnings":' + orjson.dumps(warnings) if warnings else b"",
    )


@lru_cache(maxsize=256)
def _model_json(name: str, version: int) -> bytes:
    return orjson.dumps({"model": name, "version": version})[:-1] + b',"tau":'


@lru_cache(maxsize=1024)
def _prior_json(name: str | None, revision: int) -> bytes:
    return b',"prior":%b,"predictions":[' % orjson.dumps({"name": name, "revision": revision})
