"""The answers of the feedback routes, and how they are made from figures."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict

from service.api import long_views
from service.api.long_views import shown_by_class
from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.evaluate.contexts import ROWS_PER_CLASS, Context
from service.evaluate.live import Live
from service.evaluate.ppi import Interval
from service.priors.revisions import PriorRevision


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


def mixes_of(
    bundle: Bundle, revision: PriorRevision, rows: int, whole: Vector, each: Sequence[Context]
) -> ContextMixes:
    """Make the answer of GET /priors/{name}/contexts.

    rows: the number of kept answers. whole: [C] the class mix of all of them.
    """
    names = bundle.class_names
    pull = ROWS_PER_CLASS * len(names)
    return long_views.view_of(ContextMixes, bundle)(
        model=bundle.name,
        version=bundle.version,
        name=revision.name or "",
        revision=revision.revision,
        rows=rows,
        mix=shown_by_class(names, whole),
        contexts=[
            long_views.view_of(ContextMix, bundle)(
                key=one.key,
                value=one.value,
                rows=one.rows,
                own_share=one.rows / (one.rows + pull),
                mix=shown_by_class(names, one.mix),
            )
            for one in each
        ],
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
        by_labels = long_views.view_of(ByLabels, bundle)(
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
            class_shares=shown_by_class(names, labels.class_shares),
        )
    alone = found.by_posterior
    by_posterior = None
    if alone:
        by_posterior = ByPosterior(
            balanced_error=alone["balanced_error"],
            error=alone["error"],
            **{group: alone.get(group) for group in ("many", "medium", "few")},
        )
    return long_views.view_of(FeedbackView, bundle)(
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
        labels={
            names[at]: int(found.label_counts[at])
            for at in np.flatnonzero(found.label_counts).tolist()
        },
        warnings=warnings,
    )


def _bounds(found: Interval) -> Bounds:
    return Bounds(value=found.value, low=found.low, high=found.high)


def _maybe(found: Interval | None) -> Bounds | None:
    return None if found is None else _bounds(found)
