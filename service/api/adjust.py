"""POST /models/{model}/adjust: score once, or take logits, and answer for many settings of tau and prior."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson
from numpy.typing import NDArray

from service.api.content import TIMEOUT_HEADER, Content, deadline_of, instances_of
from service.api.edge.errors import Problem
from service.api.edge.request import Answer, HotRequest
from service.batching.pool import Pool
from service.classifier import Classifier, check_adjustable, check_top_k, submit, warnings_of
from service.contract.bundle import Bundle, InputSpec
from service.priors.revisions import PriorRevision
from service.priors.rule import Ranking, Rule, rank
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.arrays import (
    InvalidInput,
    Malformed,
    array_of,
    may_hold_strings,
    parse_json_object,
    short,
)
from service.wire.parameters import Parameters, body_parameters, query_parameters
from service.wire.ranked import ClassJson, rows_json

MAX_SETTINGS = 100
MAX_CELLS = 20_000_000
"""Rows × classes × settings of one request: about a second of one core."""
_CHEAP_CELLS = 20_000
"""Up to here the event loop does it faster than a thread would be told."""


class Setting(NamedTuple):
    """A tau and the revision that goes with it."""

    tau: float
    revision: PriorRevision


class Adjust:
    """The hot route."""

    oip = False
    direct: Literal[False] = False
    template = "/models/{model}/adjust"

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
        if path.endswith("/adjust") and path.startswith("/models/"):
            name = path[8:-7]
            return {"model": name} if name and "/" not in name else None
        return None

    async def answer(self, request: HotRequest, path: dict[str, str]) -> Answer:
        """Read every setting's prior, score, then apply the formula for each."""
        kind = request.content_type
        if kind not in {"application/json", "text/json", ""}:
            raise Problem(
                "unsupported-media-type",
                f"content type '{kind[:80]}' is not taken here; expected application/json",
            )
        document = parse_json_object(
            request.body, ("instances", "logits", "settings", "parameters")
        )
        common = query_parameters(request.query).merged(body_parameters(document.get("parameters")))
        wanted = _settings(document, common)
        model = self._repository.find(path["model"], common.version)
        with model.held():
            bundle = model.bundle
            top_k = check_top_k(common.top_k, len(bundle.class_names))
            settings = [await self._setting(bundle, each) for each in wanted]
            deadline = deadline_of(request, self._timeout_seconds)
            logits = await self._logits(request, model, document, deadline)
            cells = logits.size * len(settings)
            if cells > MAX_CELLS:
                raise Problem(
                    "too-large",
                    f"{len(logits)} rows of {logits.shape[1]} classes under {len(settings)} settings are {cells} numbers; at most "
                    f"{MAX_CELLS} are worked out at once",
                )

            def work() -> bytes:
                return _encode(bundle, settings, logits, top_k)

            if cells <= _CHEAP_CELLS:
                body = work()
            else:
                body = await self._pool.run(
                    work,
                    size=logits.nbytes * len(settings),
                    deadline=deadline,
                    is_abandoned=request.is_abandoned,
                )
        request.log.update(
            model=bundle.name, version=bundle.version, rows=len(logits), settings=len(settings)
        )
        return Answer(body)

    async def _setting(self, bundle: Bundle, wanted: Parameters) -> Setting:
        tau = self._classifier.tau_of(bundle, wanted.tau)
        revision = await self._classifier.revision_of(bundle, wanted.prior)
        check_adjustable(bundle, revision, tau)
        return Setting(tau, revision)

    async def _logits(
        self,
        request: HotRequest,
        model: ServedModel,
        document: dict[str, Any],
        deadline: float,
    ) -> NDArray[Any]:
        """[n, C]: given, or the model's own for the instances."""
        member = b"logits" if "logits" in document else b"instances"
        booleans = may_hold_strings(request.body, member)
        if "logits" in document:
            given = document["logits"]
            if not isinstance(given, list) or not given:
                raise InvalidInput(f"logits are {short(given)}; expected a list of rows")
            spec = _logits_spec(len(model.bundle.class_names))
            return array_of(given, spec, are_numbers=not booleans)
        content = Content(Parameters(), instances=instances_of(document), booleans=booleans)
        inputs = content.array(model.bundle)
        if inputs is None:
            inputs = await content.decoded_images(request, model, self._pool, deadline)
        work = self._classifier.work(
            model,
            inputs,
            Parameters(tau=0.0, top_k=1),
            await self._classifier.revision_of(model.bundle, None),
            deadline=deadline,
            is_abandoned=request.is_abandoned,
            full=True,
            is_traffic=False,
        )
        scored = await submit(model, work, hard_deadline=TIMEOUT_HEADER in request.headers)
        assert scored.outputs.logits is not None
        return scored.outputs.logits[scored.start : scored.stop]


def _settings(document: dict[str, Any], common: Parameters) -> list[Parameters]:
    """The settings as they are written; what one leaves out comes from the request's own parameters."""
    if ("instances" in document) == ("logits" in document):
        raise Malformed("the body must have either 'instances' or 'logits'")
    found = document.get("settings")
    if not isinstance(found, list) or not found:
        raise Malformed(
            f"settings are {short(found)}; expected a list of objects with tau, prior or both"
        )
    if len(found) > MAX_SETTINGS:
        raise InvalidInput(f"there are {len(found)} settings; at most {MAX_SETTINGS} are taken")
    wanted = []
    for number, item in enumerate(found):
        if not isinstance(item, dict) or not set(item) <= {"tau", "prior"}:
            raise Malformed(f"setting {number} is not an object with tau, prior or both")
        own = body_parameters(item)
        wanted.append(
            Parameters(
                tau=common.tau if own.tau is None else own.tau,
                prior=common.prior if own.prior is None else own.prior,
            )
        )
    return wanted


def _encode(bundle: Bundle, settings: list[Setting], logits: NDArray[Any], top_k: int) -> bytes:
    classes = ClassJson(bundle.class_names)

    def ranked(rule: Rule | None, k: int) -> Ranking:
        return rank(logits, rule, temperature=bundle.temperature, top_k=k)

    plain = ranked(None, 1)
    unadjusted = plain.indices[:, 0], plain.probabilities[:, 0]
    results = []
    for setting in settings:
        revision = setting.revision
        found = ranked(Rule(revision.prior, setting.tau), top_k)
        rows = rows_json(classes, found.indices, found.probabilities, *unadjusted)
        result: dict[str, Any] = {
            "tau": setting.tau,
            "prior": {"name": revision.name, "revision": revision.revision},
            "predictions": orjson.Fragment(b"[%b]" % b",".join(rows)),
        }
        if warnings := warnings_of(bundle, revision, setting.tau):
            result["warnings"] = warnings
        results.append(result)
    return orjson.dumps({"model": bundle.name, "version": bundle.version, "results": results})


@lru_cache(maxsize=64)
def _logits_spec(classes: int) -> InputSpec:
    return InputSpec(name="logits", kind="tensor", shape=[None, classes], dtype="float32")
