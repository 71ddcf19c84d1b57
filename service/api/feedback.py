"""POST and GET /feedback: true labels of answers, and the error of live traffic from them."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from service.api.edge.access import Access
from service.api.edge.errors import Problem
from service.api.edge.json_body import check_json, media_type, read_bytes
from service.api.edge.numbers import Whole
from service.api.edge.turns import Turns
from service.api.feedback_bodies import TABLES, json_items
from service.api.feedback_views import (
    ContextMixes,
    FeedbackFault,
    FeedbackTaken,
    FeedbackView,
    mixes_of,
    view_of,
)
from service.api.long_views import rendered
from service.api.openapi import routes as openapi
from service.contract.bundle import Bundle
from service.contract.prior import UnknownLabelFrequencies
from service.evaluate.answers import EVERY_SECONDS, Answers
from service.evaluate.contexts import pooled
from service.evaluate.feedback import (
    MAX_FAULTS,
    Feedback,
    Taken,
)
from service.evaluate.live import Evaluation, Mix
from service.priors.preview import TooLittleTraffic, estimate
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import PriorDoesNotFit
from service.repository.on_demand import UnknownModel
from service.repository.repository import Repository
from service.wire.tables.reader import CSV, PARQUET

_BODY_PROBLEMS = ("malformed", "conflict", "too-large", "unsupported-media-type", "overloaded")


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
        """Serve these kept answers. workers: the number of workers of this service."""
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
        read = TABLES.get(kind, json_items)
        if kind not in TABLES:
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
        body = await rendered(partial(view_of, bundle, found), bundle)
        return Response(body, media_type="application/json")

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
        body = await rendered(partial(mixes_of, bundle, revision, *found), bundle)
        return Response(body, media_type="application/json")

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


def _json(view: BaseModel) -> Response:
    return Response(view.model_dump_json(), media_type="application/json")


async def _model_in_path(model: Annotated[str, Path(description="A model's name")]) -> None:
    """Declare the path parameter for /openapi.json; the handlers read it from the request."""


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
