"""GET …/shift: the tracked class mix of traffic over time, and the state of automatic adoption."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from service.api.edge.numbers import Whole
from service.api.long_views import rendered, shown_in_order, view_of
from service.contract.bundle import Bundle
from service.contract.shift.verdict import Verdict
from service.priors.priors import Priors
from service.priors.shift.history import Point
from service.priors.shift.watch import Followed, ShiftWatch

MAX_POINTS = 1000
MAX_SHOWN_NUMBERS = 200_000
"""The most numbers in an answer's points; with many classes there are fewer points."""
Name = Annotated[str, Path(description="A prior's name")]


class ShiftPoint(BaseModel):
    """The estimate at one time: vectors in class order, with a 95 % interval for each class."""

    at: datetime
    estimate: list[float]
    low: list[float]
    high: list[float]
    verdict: Verdict | None


class ShiftView(BaseModel):
    """The class mix of a model's traffic, compared with the target of a prior.

    `estimate` follows the newest traffic of all workers and replicas. `judged` is the last verdict
    on the newest rows, with its evidence. `automatic` is the decision of automatic adoption at that
    time: `adopt`, `wait` or `hold`, with the reason. Numbers are null before the first traffic, and
    where the model's source prior is unknown.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    version: int
    name: str
    revision: int
    class_names: list[str]
    target: list[float]
    rows: int
    effective_rows: float
    workers: int
    estimate: list[float] | None
    low: list[float] | None
    high: list[float] | None
    judged: dict[str, Any] | None
    automatic: dict[str, Any] | None
    points: list[ShiftPoint]


class ShiftRoutes:
    """The handler of the route: serves the tracked estimate and its history."""

    def __init__(
        self,
        priors: Priors,
        find_model: Callable[[str | None], Bundle],
        watch: ShiftWatch,
    ) -> None:
        self._priors, self._find_model, self._watch = priors, find_model, watch

    async def shift(
        self,
        request: Request,
        name: Name,
        points: Annotated[
            Whole,
            Query(ge=0, le=MAX_POINTS, description="moments, spread over the remembered time"),
        ] = 240,
    ) -> Response:
        """The tracked class mix of traffic over time, the verdict, and automatic adoption."""
        bundle = self._find_model(request.path_params.get("model"))
        revision = await self._priors.selected(bundle, name)
        view = partial(
            shift_view,
            bundle,
            name,
            revision.revision,
            revision.prior.target,
            self._watch.of(bundle),
            points=points,
        )
        return Response(await rendered(view, bundle), media_type="application/json")


def shift_view(
    bundle: Bundle,
    name: str,
    revision: int,
    target: Any,
    one: Followed | None,
    *,
    points: int,
) -> ShiftView:
    """Make the answer of GET /priors/{name}/shift.

    revision, target: of the prior in force. one: the tracked traffic; None before the first
    estimate. points: the most points in time.
    """
    together = None if one is None else one.together
    known = together is not None and together.rows > 0
    estimate = low = high = None
    if one is not None and together is not None and known:
        ends = together.interval(one.calibration_variance)
        estimate, low, high = (shown_in_order(v) for v in (together.prior, *ends))
    judged = None if one is None else one.judged
    verdict_view: dict[str, Any] | None = None
    automatic: dict[str, Any] | None = None
    if judged is not None:
        verdict_view = {**judged.__dict__, "at": judged.at.isoformat()}
        automatic = verdict_view.pop("automatic").get(name)
    return view_of(ShiftView, bundle)(
        model=bundle.name,
        version=bundle.version,
        name=name,
        revision=revision,
        class_names=bundle.class_names,
        target=shown_in_order(target),
        rows=0 if together is None else together.rows,
        effective_rows=0.0 if together is None else together.effective_rows,
        workers=0 if one is None else one.workers,
        estimate=estimate,
        low=low,
        high=high,
        judged=verdict_view,
        automatic=automatic,
        points=[] if one is None else _points(one, points, len(bundle.class_names)),
    )


def _points(one: Followed, wanted: int, classes: int) -> list[ShiftPoint]:
    """At most `wanted` points in time, evenly spread, including the newest."""
    found = list(one.history)
    most = min(wanted, MAX_SHOWN_NUMBERS // (3 * classes), len(found))
    if most == 0:
        return []
    chosen = np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))
    if most == 1:
        chosen = np.array([len(found) - 1])
    return [_point(found[i]) for i in chosen]


def _point(point: Point) -> ShiftPoint:
    return ShiftPoint.model_construct(
        at=point.at,
        estimate=shown_in_order(point.prior),
        low=shown_in_order(point.low),
        high=shown_in_order(point.high),
        verdict=point.verdict,
    )
