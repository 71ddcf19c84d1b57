"""POST /models/{model}/adjust: one answer for many settings of tau and prior.

The rows are scored once, or the request brings their logits.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import orjson
from numpy.typing import NDArray

from service.api.content import (
    Content,
    in_pool,
    instances_of,
    is_json,
    is_large,
    rows_or_images,
)
from service.api.edge.errors import Problem
from service.api.edge.request import Answer, Later, Request
from service.batching.pool import Pool
from service.batching.queue import Entry, Reply
from service.batching.work import LARGE_ANSWER_VALUES, Deadline, Work
from service.classifier import (
    MAX_ANSWER_VALUES,
    RANKED_VALUES,
    Classifier,
    check_adjustable,
    check_top_k,
    prior_shown,
    warnings_of,
)
from service.contract.bundle import Bundle
from service.contract.inputs.spec import InputSpec
from service.priors.revisions import PriorRevision, RevisionNotInMemory
from service.priors.rule import Ranking, Rule, rank
from service.repository.repository import Repository
from service.repository.served import ServedModel
from service.wire.arrays import array_of, may_hold_strings
from service.wire.faults import InvalidInput, Malformed
from service.wire.json_rows import numbers_of_json
from service.wire.json_text import holds, parse_json_object
from service.wire.parameters import Parameters, body_parameters, query_parameters
from service.wire.ranked import ClassJson, rows_json, with_decisions
from service.wire.shown import short

MAX_SETTINGS = 100
_MEMBERS = ("instances", "logits", "settings", "parameters")
MAX_CELLS = 20_000_000
"""The most numbers (rows × classes × settings) of one request: about one second of one core."""
_CHEAP_CELLS = 20_000
"""Up to this many numbers, computing on the event loop is faster than using a thread."""
_CHEAP_VALUES = LARGE_ANSWER_VALUES // RANKED_VALUES
"""The most ranked classes of an answer that is encoded on the event loop."""


class Setting(NamedTuple):
    """One tau and one prior revision to answer for."""

    tau: float
    revision: PriorRevision


class Asked(NamedTuple):
    """What `encode` needs, besides the logits, to answer a request."""

    request: Request
    model: ServedModel
    settings: Sequence[Setting]
    top_k: int


class _Read(NamedTuple):
    """A parsed request. values: the logits or the model's input tensor; None for images."""

    model: ServedModel
    common: Parameters
    wanted: Sequence[Parameters]
    values: NDArray[Any] | None
    content: Content | None
    are_logits: bool


class Adjust:
    """The scoring route POST /models/{model}/adjust."""

    with_error = False
    template = "/models/{model}/adjust"

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
        pool: runs what takes long: decoding images, reading large bodies, large adjustments.
        timeout_seconds: the deadline of a request that sets none.
        """
        self._repository, self._classifier = repository, classifier
        self._pool, self._timeout_seconds = pool, timeout_seconds

    def match(self, path: str) -> dict[str, str] | None:
        """Return {"model": name}; None if the path is not of this route."""
        if path.endswith("/adjust") and path.startswith("/models/"):
            name = path[8:-7]
            return {"model": name} if name and "/" not in name else None
        return None

    # -- from a request to the queue

    def begin(self, request: Request, path: dict[str, str], reply: Reply) -> Answer | Later | None:
        """Resolve each setting's prior, then queue the instances or answer the given logits."""
        kind = request.content_type
        if not is_json(request):
            raise Problem(
                "unsupported-media-type",
                f"content type '{kind[:80]}' is not accepted here; expected application/json",
            )
        if is_large(request):
            return self._large(request, path["model"], reply)
        return self._begin(request, self._read(request, path["model"]), reply)

    async def _large(self, request: Request, name: str, reply: Reply) -> Answer | None:
        """Read a large body in the pool."""
        model = self._repository.find(name, query_parameters(request.query).version, request.body)
        with model.held():
            read = await in_pool(
                self._pool,
                partial(self._read, request, name),
                request=request,
                model=model,
                size=len(request.body),
                deadline=request.deadline(self._timeout_seconds),
            )
        found = self._begin(request, read, reply)
        return found if found is None or isinstance(found, Answer) else await found

    def _read(self, request: Request, name: str) -> "_Read":
        """Parse a body. Raises the errors of the status table."""
        body, query = request.body, query_parameters(request.query)
        document, values = self._numbers(request, name, query) or (
            parse_json_object(body, _MEMBERS),
            None,
        )
        common = query.merged(body_parameters(document.get("parameters")))
        wanted = _settings(document, common)
        model = self._repository.find(name, common.version, body)
        content = None
        if values is None and "logits" in document:
            given = document["logits"]
            if not isinstance(given, list) or not given:
                raise InvalidInput(
                    f"logits are {short(given)}; expected a list of rows, each a list of numbers"
                )
            spec = _logits_spec(len(model.bundle.class_names))
            values = array_of(given, spec, are_numbers=not may_hold_strings(body, b"logits"))
        elif values is None:
            instances = instances_of(document)
            instances, are_images = rows_or_images(instances, model.bundle)
            if are_images:
                content = Content.of_instances(instances)
            else:
                are_numbers = not may_hold_strings(body)
                values = array_of(instances, model.bundle.input, are_numbers=are_numbers)
        return _Read(model, common, wanted, values, content, "logits" in document)

    def _numbers(
        self, request: Request, name: str, query: Parameters
    ) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """Read the members and the numbers of a large body slice by slice.

        None if the body is small or may name a version: then it is decoded whole.
        """
        if not is_large(request) or holds(request.body, b"version"):
            return None
        model = self._repository.find(name, query.version, request.body)
        logits = holds(request.body, b'"logits"')
        return numbers_of_json(
            request.body,
            _logits_spec(len(model.bundle.class_names)) if logits else model.bundle.input,
            member="logits" if logits else "instances",
            allowed=_MEMBERS,
            max_rows=(
                MAX_CELLS // len(model.bundle.class_names)
                if logits
                else model.batcher.max_request_rows
            ),
        )

    def _begin(self, request: Request, read: "_Read", reply: Reply) -> Answer | Later | None:
        model = read.model
        top_k = check_top_k(read.common.top_k, len(model.bundle.class_names))
        deadline = request.deadline(self._timeout_seconds)
        classifier, bundle = self._classifier, model.bundle
        try:
            revisions = [
                classifier.in_context(
                    bundle, classifier.revision_at_hand(bundle, each.prior), each.context
                )
                for each in read.wanted
            ]
        except RevisionNotInMemory:
            return self._fetched(request, read, top_k, deadline=deadline, reply=reply)
        asked = Asked(request, model, self._chosen(model, read.wanted, revisions), top_k)
        return self._scored(asked, read, deadline, reply)

    async def _fetched(
        self,
        request: Request,
        read: "_Read",
        top_k: int,
        *,
        deadline: Deadline,
        reply: Reply,
    ) -> Answer | None:
        """Answer a request whose priors must first be read from the store."""
        model = read.model
        with model.held():
            revisions = [
                await self._classifier.revision_for(
                    model.bundle, each.prior, each.context, deadline=deadline
                )
                for each in read.wanted
            ]
            asked = Asked(request, model, self._chosen(model, read.wanted, revisions), top_k)
            found = self._scored(asked, read, deadline, reply)
            return found if found is None or isinstance(found, Answer) else await found

    def _chosen(
        self, model: ServedModel, wanted: Sequence[Parameters], revisions: Sequence[PriorRevision]
    ) -> list[Setting]:
        settings = []
        for parameters, revision in zip(wanted, revisions, strict=True):
            tau = self._classifier.tau_of(model.bundle, parameters.tau)
            check_adjustable(model.bundle, revision, tau)
            settings.append(Setting(tau, revision))
        return settings

    def _scored(
        self, asked: Asked, read: "_Read", deadline: Deadline, reply: Reply
    ) -> Answer | Later | None:
        """Queue the instances, or answer given logits."""
        if read.content is not None:
            return self._decoded(asked, read.content, deadline)
        values = read.values
        assert values is not None
        cells, ranked_classes = _check_size(asked, len(values))
        is_cheap = cells <= _CHEAP_CELLS and ranked_classes <= _CHEAP_VALUES
        if read.are_logits:
            if is_cheap:
                return _answer(asked, values)
            return self._worked_out(asked, lambda: values, values.nbytes, deadline)
        if not is_cheap:
            return self._later(asked, values, deadline)
        work = self._work(asked, values, deadline)
        work = work._replace(answer_values=ranked_classes * RANKED_VALUES)
        asked.model.batcher.put(Entry(work, caller=asked.request, reply=reply, ask=asked))
        return None

    def _work(self, asked: Asked, inputs: NDArray[Any], deadline: Deadline) -> Work:
        """Make the work for the batcher: score at tau = 0, for the logits alone.

        At tau = 0 the prior has no effect, so that of the first setting will do.
        """
        return self._classifier.admit(
            asked.model,
            inputs,
            Parameters(tau=0.0, top_k=1),
            asked.settings[0].revision,
            deadline=deadline,
            full=True,
            is_traffic=False,
        )

    async def _decoded(self, asked: Asked, content: Content, deadline: Deadline) -> Answer:
        """Decode images, score them, and apply the formula."""
        with asked.model.held():
            inputs = await content.decoded_images(asked.request, asked.model, self._pool, deadline)
            _check_size(asked, len(inputs))
            return await self._later(asked, inputs, deadline)

    async def _later(self, asked: Asked, inputs: NDArray[Any], deadline: Deadline) -> Answer:
        """Score the inputs, then apply the formula in a thread."""
        with asked.model.held():
            work = self._work(asked, inputs, deadline)
            entry = await asked.model.batcher.submit(work, caller=asked.request)
            size = 4 * len(inputs) * len(asked.model.bundle.class_names)
            return await self._worked_out(
                asked, lambda: _logits_of(entry), size, deadline, _far(asked, entry)
            )

    async def _worked_out(
        self,
        asked: Asked,
        logits: Callable[[], NDArray[Any]],
        logits_bytes: int,
        deadline: Deadline,
        far: str | None = None,
    ) -> Answer:
        """Apply the formula in a thread: on the event loop it would delay other requests."""
        return await self._pool.run(
            lambda: _answer(asked, logits(), far),
            size=logits_bytes * len(asked.settings),
            deadline=deadline,
            caller=asked.request,
        )

    # -- from the queue to the answers

    def encode(self, entries: Sequence[Entry]) -> list[Answer]:
        """Apply the formula to the logits of requests that were scored together."""
        return [_answer(e.ask, _logits_of(e), _far(e.ask, e)) for e in entries]


def _check_size(asked: Asked, rows: int) -> tuple[int, int]:
    """Return (the numbers to compute, the ranked classes in the answer).

    Raises Problem(too-large) if either exceeds the limit for one request.
    """
    classes, settings = len(asked.model.bundle.class_names), len(asked.settings)
    cells = rows * classes * settings
    if cells > MAX_CELLS:
        raise Problem(
            "too-large",
            f"{rows} rows of {classes} classes under {settings} settings make {cells} numbers; at "
            f"most {MAX_CELLS} are computed at once; send fewer rows or settings",
        )
    ranked_classes = rows * asked.top_k * settings
    most = MAX_ANSWER_VALUES // RANKED_VALUES
    if ranked_classes > most:
        raise Problem(
            "too-large",
            f"{rows} rows with {asked.top_k} classes each under {settings} settings make "
            f"{ranked_classes} ranked classes; at most {most} are allowed; send fewer rows or "
            "settings, or ask for a smaller top_k",
        )
    return cells, ranked_classes


def _logits_of(entry: Entry) -> NDArray[Any]:
    entry.join()
    logits = entry.outputs.logits
    assert logits is not None
    return logits[entry.start : entry.stop]


def _far(asked: Asked, entry: Entry) -> str | None:
    """The warning if a request's inputs are far from those of training, else None."""
    found = asked.model.far_inputs([entry])
    return None if found is None else found[0]


def _answer(asked: Asked, logits: NDArray[Any], far: str | None = None) -> Answer:
    bundle = asked.model.bundle
    facts = {
        "model": bundle.name,
        "version": bundle.version,
        "rows": len(logits),
        "settings": len(asked.settings),
    }
    return Answer(_encode(bundle, asked.settings, logits, asked.top_k, far), facts)


def _settings(document: dict[str, Any], common: Parameters) -> list[Parameters]:
    """Read the settings of a request.

    common: the request's own parameters, which fill in what a setting leaves out.
    """
    if ("instances" in document) == ("logits" in document):
        both = "both 'instances' and 'logits'" if "logits" in document else "no rows"
        raise Malformed(f"the body has {both}; expected either 'instances' or 'logits'")
    found = document.get("settings")
    if not isinstance(found, list):
        raise Malformed(
            f"settings are {short(found)}; expected a list of objects with tau, prior or both"
        )
    if not found:
        raise Malformed("there are no settings; expected at least one, such as {}")
    if len(found) > MAX_SETTINGS:
        raise InvalidInput(
            f"there are {len(found)} settings; at most {MAX_SETTINGS} are allowed: send several "
            "requests"
        )
    wanted = []
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise Malformed(
                f"setting {number} is {short(item)}; expected an object with tau, prior and context"
            )
        unknown = next((name for name in item if name not in _MEMBERS_OF_A_SETTING), None)
        if unknown is not None:
            raise Malformed(
                f"setting {number} has an unknown member '{unknown[:60]}'; expected "
                f"{', '.join(_MEMBERS_OF_A_SETTING)}"
            )
        own = body_parameters(item)
        wanted.append(
            Parameters(
                tau=common.tau if own.tau is None else own.tau,
                prior=common.prior if own.prior is None else own.prior,
                context=common.context if own.context is None else own.context,
            )
        )
    return wanted


_MEMBERS_OF_A_SETTING = ("tau", "prior", "context")


def _encode(
    bundle: Bundle,
    settings: Sequence[Setting],
    logits: NDArray[Any],
    top_k: int,
    far: str | None,
) -> bytes:
    classes = ClassJson(bundle.class_names)

    def ranked(rule: Rule | None, k: int) -> Ranking:
        return rank(logits, rule, temperature=bundle.temperature, top_k=k)

    plain = ranked(None, 1)
    unadjusted = plain.indices[:, 0], plain.probabilities[:, 0]
    results: list[bytes] = []
    for setting in settings:
        revision = setting.revision
        found = ranked(Rule(revision.prior, setting.tau), top_k)
        rows = rows_json(classes, found.indices, found.probabilities, *unadjusted)
        if found.decisions is not None:
            rows = with_decisions(
                rows,
                bundle.class_names,
                found.decisions.index,
                found.decisions.expected_cost,
            )
        warnings = warnings_of(bundle, revision, setting.tau)
        if far is not None:
            warnings = (*warnings, far)
        head = orjson.dumps({"tau": setting.tau, "prior": prior_shown(revision)})
        tail = orjson.dumps({"warnings": warnings}).replace(b"{", b",", 1) if warnings else b"}"
        # Joining long texts lets other threads run meanwhile.
        parts = (head[:-1], b',"predictions":[', b",".join(rows), b"]", tail)
        results.append(b"".join(parts))
    model = orjson.dumps({"model": bundle.name, "version": bundle.version})
    return b"".join([model[:-1], b',"results":[', b",".join(results), b"]}"])


@lru_cache(maxsize=64)
def _logits_spec(classes: int) -> InputSpec:
    return InputSpec(name="logits", kind="tensor", shape=[None, classes], dtype="float32")
