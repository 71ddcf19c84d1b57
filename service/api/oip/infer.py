"""POST /v2/models/{model}[/versions/{version}]/infer: the Open Inference Protocol V2, JSON and binary tensors both ways."""

import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.api.content import DEAR_BYTES, TIMEOUT_HEADER, deadline_of, decoded
from service.api.edge.request import Answer, HotRequest
from service.api.oip.answer import classes_of, encoded, is_full
from service.api.oip.request import HEADER_LENGTH, InferRequest, parse_infer, raw_request
from service.batching.pool import Pool
from service.batching.work import Entry
from service.classifier import Classifier, RowSettings, check_room, check_top_k
from service.contract.bundle import Bundle
from service.repository.repository import Repository, UnknownModel
from service.repository.served import ServedModel
from service.wire.arrays import InvalidInput, Malformed, fitted, text_array, texts_per_row
from service.wire.parameters import prior_of_text, query_parameters
from service.wire.tensors import BY_DTYPE, Tensor

MAX_ROW_PRIORS = 64
"""Different priors in one request: each takes a row of the model's table while it is used."""
_TAU, _PRIOR = "tau", "prior"
_PREFIX, _VERSIONS = "/v2/models/", "/versions/"


class Infer:
    """The hot route."""

    oip = True
    direct: Literal[False] = False
    template = "/v2/models/{model}/infer"

    def __init__(
        self,
        repository: Repository,
        classifier: Classifier,
        *,
        pool: Pool,
        timeout_seconds: float,
    ) -> None:
        self._repository, self._classifier = repository, classifier
        self._pool, self._timeout_seconds = pool, timeout_seconds

    def match(self, path: str) -> dict[str, str] | None:
        """See WaitingRoute."""
        if not (path.startswith(_PREFIX) and path.endswith("/infer")):
            return None
        name, versions, version = path[len(_PREFIX) : -len("/infer")].partition(_VERSIONS)
        if not name or "/" in name or "/" in version or (versions and not version):
            return None
        return {"model": name, "version": version}

    async def answer(self, request: HotRequest, path: dict[str, str]) -> Answer:
        """Parse, score, encode."""
        query = query_parameters(request.query)
        header_length = request.headers.get(HEADER_LENGTH)
        version = version_of(path["version"]) if path["version"] else query.version
        if len(request.body) > DEAR_BYTES:
            check_room(self._repository.find(path["model"], version))
        asked = None if header_length == b"0" else parse_infer(request.body, header_length)
        model = self._repository.find(path["model"], version)
        with model.held():
            bundle = model.bundle
            if asked is None:
                asked = raw_request(request.body, bundle.input)
            parameters = query.merged(asked.parameters)
            rows = _Rows(asked, bundle)
            settings = await self._classifier.settings_of(
                bundle,
                rows.taus(parameters.tau),
                *rows.priors(parameters.prior),
            )
            k = classes_of(
                asked.outputs, check_top_k(parameters.top_k, len(bundle.class_names)), bundle
            )
            deadline = _deadline(request, asked, self._timeout_seconds)
            scored = await self._classifier.score(
                model,
                await self._inputs(request, rows.own, model, deadline),
                settings,
                top_k=max(k.values(), default=1),
                deadline=deadline,
                hard_deadline=TIMEOUT_HEADER in request.headers
                or asked.timeout_seconds is not None,
                is_abandoned=request.is_abandoned,
                full=any(is_full(each, k) for each in asked.outputs),
            )
        _note(request, bundle, settings, scored)
        return encoded(asked, bundle, settings, scored, k)

    async def _inputs(
        self, request: HotRequest, tensor: Tensor, model: ServedModel, deadline: float
    ) -> NDArray[Any]:
        """The model's input; encoded images are decoded in the pool."""
        spec, values = model.bundle.input, tensor.values
        expected = BY_DTYPE[spec.dtype]
        if spec.kind == "image" and tensor.datatype == "BYTES":
            _check_column(tensor, 1)
            encoded: list[bytes | str] = list(values)
            return await decoded(request, model, encoded, self._pool, deadline)
        if tensor.datatype != expected:
            also = " or encoded images as BYTES" if spec.kind == "image" else ""
            raise InvalidInput(
                f"input '{spec.name}' is {tensor.datatype}; the model takes {expected}{also}"
            )
        if spec.kind == "text":
            _check_column(tensor, texts_per_row(spec))
            return text_array([_text(each, spec.name) for each in values], spec)
        assert isinstance(values, np.ndarray)
        return fitted(values, spec)


class _Rows:
    """The inputs of a request: the model's own, and a tau and a prior for each row where they are given."""

    def __init__(self, asked: InferRequest, bundle: Bundle) -> None:
        name = bundle.input.name
        self._extra = {key: tensor for key, tensor in asked.inputs.items() if key != name}
        for key in self._extra:
            if key not in {_TAU, _PRIOR}:
                raise InvalidInput(
                    f"the model has no input '{key[:60]}'; it takes {name}, and {_TAU} and {_PRIOR} for each row"
                )
        if name not in asked.inputs:
            raise InvalidInput(f"input '{name}' is missing")
        self.own = asked.inputs[name]
        self._count = self.own.shape[0]

    def taus(self, common: float | None) -> float | NDArray[np.float32] | None:
        tensor = self._column(_TAU, "FP32", common)
        if tensor is None:
            return common
        assert isinstance(tensor.values, np.ndarray)
        return np.ascontiguousarray(tensor.values.ravel(), np.float32)

    def priors(
        self, common: str | dict[str, Any] | None
    ) -> tuple[list[str | dict[str, Any] | None], NDArray[np.int64] | None]:
        """The different priors, and which of them each row has."""
        tensor = self._column(_PRIOR, "BYTES", common)
        if tensor is None:
            return [common], None
        texts = [_text(each, _PRIOR) for each in tensor.values]
        number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        if len(number) > MAX_ROW_PRIORS:
            raise InvalidInput(
                f"the rows name {len(number)} different priors; at most {MAX_ROW_PRIORS} go into one request"
            )
        return [prior_of_text(text) for text in number], np.array(
            [number[t] for t in texts], np.int64
        )

    def _column(self, name: str, datatype: str, common: object) -> Tensor | None:
        tensor = self._extra.get(name)
        if tensor is None:
            return None
        if common is not None:
            raise Malformed(f"{name} is given twice: as a parameter and for each row")
        if tensor.datatype != datatype:
            raise InvalidInput(f"input '{name}' is {tensor.datatype}; expected {datatype}")
        _check_column(tensor, 1)
        if tensor.shape[0] != self._count:
            raise InvalidInput(
                f"input '{name}' has {tensor.shape[0]} rows; the request has {self._count}"
            )
        return tensor


def version_of(text: str) -> int:
    """A version in a path. Raises UnknownModel."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UnknownModel(f"'{text[:40]}' is not a version; versions are numbers")
    return int(text)


def _check_column(tensor: Tensor, width: int) -> None:
    rest = int(np.prod(tensor.shape[1:]))
    if rest != width or not tensor.shape[0]:
        raise InvalidInput(
            f"input '{tensor.name}' has shape {list(tensor.shape)}; expected [batch, {width}], batch at least 1"
        )


def _text(value: bytes | str, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"input '{name}' holds bytes that are not UTF-8 text") from None


def _deadline(request: HotRequest, asked: InferRequest, default_seconds: float) -> float:
    deadline = deadline_of(request, default_seconds)
    if asked.timeout_seconds is None:
        return deadline
    waited = time.perf_counter() - request.begun
    return min(deadline, time.monotonic() - waited + asked.timeout_seconds)


def _note(request: HotRequest, bundle: Bundle, settings: RowSettings, scored: Entry) -> None:
    request.log.update(
        model=bundle.name,
        version=bundle.version,
        rows=scored.stop - scored.start,
        queue_seconds=scored.queue_seconds,
        inference_seconds=scored.inference_seconds,
    )
    if settings.prior_of_row is None:
        revision = settings.revisions[0]
        request.log.update(prior=revision.name, revision=revision.revision)
    if isinstance(settings.tau, float):
        request.log["tau"] = settings.tau
