"""POST and GET /feedback: true labels of answers, and the error of live traffic from them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from service.api.edge.access import Access
from service.api.edge.errors import Problem
from service.api.edge.json_body import check_json, media_type, read_bytes
from service.api.edge.numbers import Whole
from service.api.edge.turns import Turns
from service.api.openapi import routes as openapi
from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.contract.prior import UnknownLabelFrequencies
from service.evaluate.answers import EVERY_SECONDS, Answers
from service.evaluate.contexts import ROWS_PER_CLASS, Context, pooled
from service.evaluate.feedback import (
    MAX_FAULTS,
    MAX_ITEMS,
    Feedback,
    InvalidFeedback,
    Item,
    Taken,
    parse_items,
)
from service.evaluate.live import Evaluation, Live, Mix
from service.evaluate.ppi import Interval
from service.priors.preview import TooLittleTraffic, estimate
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import PriorDoesNotFit, PriorRevision
from service.repository.on_demand import UnknownModel
from service.repository.repository import Repository
from service.wire.digits import decimal_number, whole_number
from service.wire.faults import Malformed
from service.wire.json_text import parse_storable
from service.wire.shown import short
from service.wire.tables import csv_text
from service.wire.tables.parquet import read_parquet
from service.wire.tables.reader import CSV, PARQUET

MAX_TABLE_BYTES = 64 * 2**20
"""The most bytes of a Parquet file once decompressed: 100,000 ids of 256 characters are 26 MB."""
_BODY_PROBLEMS = ("malformed", "conflict", "too-large", "unsupported-media-type", "overloaded")
_COLUMNS = ("request_id", "row", "label", "sampled")


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FeedbackFault(_View):
    """A label that was refused."""

    request_id: str
    row: int
    reason: str


class FeedbackTaken(_View):
    """The outcome of labelling. `unknown`: labels whose answer (id and row) is no longer kept."""

    accepted: int
    changed: int
    unknown: int
    unknown_ids: list[str]
    faults: list[FeedbackFault]


class Bounds(_View):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Confusion(_View):
    """How often one class is answered where another is true, as a share of the traffic."""

    true: str
    decided: str | None
    share: Bounds


class ByLabels(_View):
    """The errors of live traffic, from labels with a known sampling probability.

    `calibration_gap` is the mean probability of the decisions minus the share that is right.
    """

    labels: int
    balanced_error: Bounds
    error: Bounds
    many: Bounds | None
    medium: Bounds | None
    few: Bounds | None
    calibration_gap: Bounds
    confusions: list[Confusion]
    class_shares: dict[str, float]


class ByPosterior(_View):
    """Errors without labels: correct only if the model is calibrated for this traffic."""

    balanced_error: float
    error: float
    many: float | None
    medium: float | None
    few: float | None


class OfLabelled(_View):
    """The plain error among the labelled answers; it may differ from the error of the traffic."""

    labels: int
    error: float


class FeedbackView(_View):
    """The estimated error of recent answers of a model version.

    `mix` says which class mix the posteriors assume: the estimate of recent traffic, an expected
    target, or the training mix. `labels` are the counts by class, as PATCH of a prior takes them.
    """

    model: str
    version: int
    answers: int
    rejected: int
    since: datetime | None
    until: datetime | None
    mix: str
    by_labels: ByLabels | None
    by_posterior: ByPosterior | None
    of_labelled: OfLabelled | None
    labels: dict[str, int]
    warnings: list[str]


class ContextMix(_View):
    """One context of a prior: its rows and their class mix, pulled towards the overall mix.

    `own_share`: the weight of its own rows in the mix, from 0 to 1.
    """

    key: str
    value: str
    rows: int
    own_share: float
    mix: dict[str, float]


class ContextMixes(_View):
    """The class mix of recent answers, by the context that selected their prior."""

    model: str
    version: int
    name: str
    revision: int
    rows: int
    mix: dict[str, float]
    contexts: list[ContextMix]


class Kept(NamedTuple):
    """The objects that the feedback routes need."""

    answers: Answers
    feedback: Feedback
    evaluation: Evaluation


def kept(
    answers: Answers,
    repository: Repository,
    priors: Priors,
    find_reservoir: Callable[[Bundle], LogitReservoir | None],
) -> Kept:
    """Connect the kept answers with their models and priors."""

    def classes_of(model: str, version: int) -> Sequence[str] | None:
        try:
            return repository.find(model, version).bundle.class_names
        except UnknownModel:
            return None

    def mix_of(bundle: Bundle) -> Mix:
        return traffic_mix(bundle, priors, find_reservoir(bundle))

    return Kept(answers, Feedback(answers, classes_of), Evaluation(answers, mix_of))


def traffic_mix(bundle: Bundle, priors: Priors, reservoir: LogitReservoir | None) -> Mix:
    """The best known class mix of a version's recent traffic."""
    try:
        prior = priors.in_force(bundle, "default").prior
    except (PriorDoesNotFit, UnknownLabelFrequencies):
        prior = priors.in_force(bundle, "uniform").prior
    source = prior.log_source
    if source is None:
        return Mix(np.full(len(bundle.class_names), 1.0), None, "training")
    if reservoir is not None and reservoir.capacity:
        logits = reservoir.sample().logits
        try:
            found = estimate(logits, bundle=bundle, prior=prior, capacity=reservoir.capacity)
        except (TooLittleTraffic, ValueError):
            pass
        else:
            if found.verdict == "usable":
                return Mix(found.estimate.prior, source, "estimate")
    if prior.expected:
        return Mix(prior.target, source, "target")
    return Mix(np.exp(source), source, "training")


class FeedbackRoutes:
    """The handlers of the feedback routes.

    Each searches all kept answers in a thread. Only one runs at a time, and a few may wait.
    """

    def __init__(self, kept: Kept, *, repository: Repository, priors: Priors, workers: int) -> None:
        """workers: the number of workers of this service."""
        self._kept, self._repository, self._priors = kept, repository, priors
        self._workers = workers
        self._turns = Turns("feedback is being processed")

    async def post(self, request: Request) -> Response:
        """Label answers by request id and row, as JSON, CSV or Parquet.

        `sampled` is the probability with which the row was chosen to be labelled. Labels without it
        are counted, but not used for the traffic's error.
        """
        self._check_kept()
        model = request.path_params.get("model")
        if model is not None:
            self._repository.find(model)
        kind = media_type(request)
        read = _TABLES.get(kind, json_items)
        if kind not in _TABLES:
            check_json(kind, or_else=f", {CSV} or {PARQUET}")
        body, take = await read_bytes(request), self._kept.feedback.take
        async with self._turns.place() as turn:
            items = await asyncio.to_thread(read, body)
            async with turn:
                taken, missing = await asyncio.to_thread(take, items, model=model)
            if missing and self._workers > 1:  # another may not have written its answers yet
                await asyncio.sleep(2 * EVERY_SECONDS)
                async with turn:
                    more, missing = await asyncio.to_thread(take, missing, model=model)
                taken = _together(taken, more)
        for (name, version, outcome), number in taken.counts.items():
            try:
                self._repository.find(name, version).metrics.feedback(outcome, number)
            except UnknownModel:  # unloaded since
                continue
        return _json(
            FeedbackTaken(
                accepted=taken.accepted,
                changed=taken.changed,
                unknown=taken.unknown,
                unknown_ids=list(dict.fromkeys(item.request_id for item in missing[:MAX_FAULTS])),
                faults=[FeedbackFault(**fault) for fault in taken.faults],
            )
        )

    async def get(
        self, request: Request, version: Annotated[Whole | None, Query(ge=1, le=999_999_999)] = None
    ) -> Response:
        """The errors of recent answers with intervals, from labels and from the posterior alone."""
        self._check_kept()
        bundle = self._repository.find(request.path_params.get("model"), version).bundle
        async with self._turns.turn():
            found = await asyncio.to_thread(self._kept.evaluation.of, bundle)
        return _json(view_of(bundle, found))

    async def contexts(
        self, request: Request, name: Annotated[str, Path(description="A prior's name")]
    ) -> Response:
        """The class mix of recent answers per context, pulled towards the overall mix."""
        self._check_kept()
        bundle = self._repository.find(request.path_params.get("model")).bundle
        revision = await self._priors.selected(bundle, name)
        switch = revision.prior.switch
        if switch is None:
            raise Problem(
                "conflict",
                f"prior '{name}' has neither a context nor a schedule, so there is one mix for all "
                "traffic: see /priors/NAME/estimate, or PUT the prior with a context",
            )
        evaluation = self._kept.evaluation
        async with self._turns.turn():
            mix = await asyncio.to_thread(evaluation.mix_of, bundle)
            if mix.log_source is None:
                raise UnknownLabelFrequencies(
                    "a mix needs label frequencies, and neither the prior nor the model has any: "
                    "PUT the prior with label_frequencies"
                )
            rows = await asyncio.to_thread(evaluation.rows, bundle)
            found = await asyncio.to_thread(pooled, rows, name, switch.cases(), mix)
        return _json(mixes_of(bundle, revision, *found))

    def _check_kept(self) -> None:
        if not self._kept.answers.kept:
            raise Problem(
                "conflict", "this service keeps no answers: start it with --feedback-mib above 0"
            )


def router(
    kept: Kept, *, repository: Repository, priors: Priors, access: Access, workers: int
) -> APIRouter:
    """The routes, for the default model and for each model. workers: their number."""
    post = openapi.documented(FeedbackTaken, problems=_BODY_PROBLEMS, body=openapi.FEEDBACK)
    content = post["openapi_extra"]["requestBody"]["content"]
    content[CSV] = {"schema": {"type": "string"}}
    content[PARQUET] = {"schema": {"type": "string", "format": "binary"}}
    feedback = FeedbackRoutes(kept, repository=repository, priors=priors, workers=workers)
    routes = APIRouter(tags=["feedback"])
    for prefix, suffix, names_model in (
        ("", "", []),
        ("/models/{model}", "_of_model", [Depends(_model_in_path)]),
    ):
        for method, path, call, role, documented in (
            ("POST", "/feedback", feedback.post, "predict", post),
            ("GET", "/feedback", feedback.get, "observe",
             openapi.documented(FeedbackView, problems=("conflict", "overloaded"))),
            ("GET", "/priors/{name}/contexts", feedback.contexts, "observe",
             openapi.documented(ContextMixes, problems=("conflict", "overloaded"))),
        ):  # fmt: skip
            routes.add_api_route(
                prefix + path,
                call,
                methods=[method],
                operation_id=f"feedback_{call.__name__}{suffix}",
                dependencies=[Depends(access.require(role)), *names_model],
                response_class=Response,
                **documented,
            )
    return routes


def mixes_of(
    bundle: Bundle, revision: PriorRevision, rows: int, whole: Vector, each: Sequence[Context]
) -> ContextMixes:
    """Make the answer of GET /priors/{name}/contexts.

    rows: the number of kept answers. whole: [C] the class mix of all of them.
    """
    pull = ROWS_PER_CLASS * len(bundle.class_names)

    def by_class(vector: Vector) -> dict[str, float]:
        return dict(zip(bundle.class_names, vector.tolist(), strict=True))

    return ContextMixes(
        model=bundle.name,
        version=bundle.version,
        name=revision.name or "",
        revision=revision.revision,
        rows=rows,
        mix=by_class(whole),
        contexts=[
            ContextMix(
                key=one.key,
                value=one.value,
                rows=one.rows,
                own_share=one.rows / (one.rows + pull),
                mix=by_class(one.mix),
            )
            for one in each
        ],
    )


def _json(view: BaseModel) -> Response:
    return Response(view.model_dump_json(), media_type="application/json")


async def _model_in_path(model: Annotated[str, Path(description="A model's name")]) -> None:
    """Declare the path parameter for /openapi.json; the handlers read it from the request."""


def json_items(body: bytes) -> list[Item]:
    """Read labels from JSON. Raises Malformed, TooLarge, InvalidInput or InvalidFeedback."""
    document = parse_storable(body)
    if not isinstance(document, dict) or set(document) != {"items"}:
        raise Problem(
            "invalid",
            f"the body is {short(document)}; expected "
            '{"items": [{"request_id": …, "row": …, "label": …, "sampled": …}]}',
        )
    return parse_items(document["items"])


def csv_items(body: bytes) -> list[Item]:
    """Read labels from CSV with a header. Raises Malformed, TooLarge or InvalidFeedback."""
    lines = csv_text.Lines(body)
    rows = csv_text.rows_of(lines)
    header = next(rows, [])
    _check_columns(header)
    items: list[dict[str, Any]] = []
    for fields in rows:
        if len(fields) != len(header):
            raise Malformed(
                f"line {lines.number} has {len(fields)} fields; expected {len(header)}, as the "
                "header has"
            )
        items.append(_typed(dict(zip(header, fields, strict=True)), lines.number))
        if len(items) > MAX_ITEMS:
            break
    return parse_items(items)


def parquet_items(body: bytes) -> list[Item]:
    """Read labels from a Parquet file. Raises the errors of `wire.faults`, or InvalidFeedback."""
    columns = read_parquet(
        body, None, max_rows=MAX_ITEMS, max_bytes=MAX_TABLE_BYTES, check=_check_columns
    )
    values = [
        column if isinstance(column, list) else column.tolist() for column in columns.values()
    ]
    found = []
    for fields in zip(*values, strict=True):
        item = {
            name: value
            for name, value in zip(columns, fields, strict=True)
            if value is not None and value == value  # noqa: PLR0124 - NaN stands for null
        }
        row = item.get("row")
        if isinstance(row, float) and row.is_integer():  # a column with nulls comes as float64
            item["row"] = int(row)
        found.append(item)
    return parse_items(found)


def _check_columns(names: Sequence[str], _: Sequence[str] | None = None) -> None:
    """Raise Malformed unless the columns of a table are those of labels."""
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or len(set(names)) != len(names) or not {"request_id", "label"} <= set(names):
        raise Malformed(
            f"the header is {', '.join(names[:20])[:200] or 'missing'}; expected request_id, "
            "label, and optionally row and sampled"
        )


_TABLES: dict[str, Callable[[bytes], list[Item]]] = {CSV: csv_items, PARQUET: parquet_items}


def _typed(fields: dict[str, str], line: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: text for name, text in fields.items() if text}
    for name, read in _READ.items():
        if name in found:
            number = read(found[name].strip(" "))
            if number is None:
                text = f"expected a number in digits; got {found[name][:40]!r}"
                raise InvalidFeedback([(f"line {line}.{name}", text)])
            found[name] = number
    return found


_READ: dict[str, Callable[[str], float | None]] = {
    "row": partial(whole_number, below=2**32),
    "sampled": decimal_number,
}


def _together(one: Taken, other: Taken) -> Taken:
    counts = dict(one.counts)
    for key, number in other.counts.items():
        counts[key] = counts.get(key, 0) + number
    return Taken(
        one.accepted + other.accepted,
        one.changed + other.changed,
        other.unknown,
        [*one.faults, *other.faults][:MAX_FAULTS],
        counts,
    )


def view_of(bundle: Bundle, found: Live) -> FeedbackView:
    """Make the answer of GET /feedback."""
    names, labels = bundle.class_names, found.by_labels
    warnings = []
    if found.labels > found.sampled:
        warnings.append(
            f"{found.labels - found.sampled} of {found.labels} labels came without `sampled`, the "
            "probability of being labelled, so they are not used for the traffic's error"
        )
    if found.mix.origin != "estimate":
        warnings.append(
            f"the posteriors assume the mix of {found.mix.origin}, since no usable estimate of the "
            "traffic's mix exists: the figures without labels hold for that mix"
        )
    by_labels = None
    if labels is not None:
        by_labels = ByLabels(
            labels=found.sampled,
            balanced_error=_bounds(labels.balanced_error),
            error=_bounds(labels.error),
            **{group: _maybe(labels.groups.get(group)) for group in ("many", "medium", "few")},
            calibration_gap=_bounds(labels.gap),
            confusions=[
                Confusion(
                    true=names[true],
                    decided=None if wrong < 0 else names[wrong],
                    share=_bounds(share),
                )
                for true, wrong, share in labels.confusions
            ],
            class_shares=dict(zip(names, labels.class_shares.tolist(), strict=True)),
        )
    alone = found.by_posterior
    by_posterior = None
    if alone:
        by_posterior = ByPosterior(
            balanced_error=alone["balanced_error"],
            error=alone["error"],
            **{group: alone.get(group) for group in ("many", "medium", "few")},
        )
    return FeedbackView(
        model=bundle.name,
        version=bundle.version,
        answers=found.rows,
        rejected=found.rejected,
        since=found.since,
        until=found.until,
        mix=found.mix.origin,
        by_labels=by_labels,
        by_posterior=by_posterior,
        of_labelled=None
        if found.of_labelled is None
        else OfLabelled(labels=found.of_labelled[0], error=found.of_labelled[1]),
        labels={names[at]: int(n) for at, n in enumerate(found.label_counts.tolist()) if n},
        warnings=warnings,
    )


def _bounds(found: Interval) -> Bounds:
    return Bounds(value=found.value, low=found.low, high=found.high)


def _maybe(found: Interval | None) -> Bounds | None:
    return None if found is None else _bounds(found)
