"""How far estimates may become the target automatically: the member `auto_adopt` of a prior.

The rule for adopting (service.contract.shift.verdict) decides whether an estimate is good enough.
This module limits how often, how far and when a step is taken.
"""

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from service.contract.adjustment import Vector
from service.contract.shift.verdict import Assessment, may_adopt
from service.contract.strict import Strict
from service.contract.time_zones import time_zone

AUTHOR = "auto-adopt"
"""The author (`by`) recorded for a revision that was adopted automatically."""
STRENGTH = 10.0
"""Pseudo-rows per class that pull an automatic candidate toward the target in force."""
SMALLEST_STEP = 1e-6
"""The least `largest_step`, in nats: with a smaller one the target would never move."""
_SMALLEST = 1e-6  # replaces a target of 0 when the length of a step is computed
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"


class AutoAdopt(Strict):
    """The bounds of automatic steps. A prior without the member only reports (`dry_run`).

    mode: `on` takes steps, `dry_run` only reports the steps that it would take, `off` does nothing.
    freeze: while true, no step is taken; set when an automatic step is rolled back.
    every_minutes: the shortest time from any change of the prior to the next step.
    largest_step: limit, in nats, on the Kullback-Leibler divergence of the new target from the old.
    floor: the smallest share a class may get. quiet_hours: [from, to], in
    `time_zone`, without steps.
    """

    mode: Literal["on", "dry_run", "off"] = "dry_run"
    freeze: bool = False
    every_minutes: Annotated[float, Field(ge=0.01, le=100_000)] = 60.0
    largest_step: Annotated[float, Field(ge=SMALLEST_STEP, le=20)] = 0.5
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0001
    quiet_hours: (
        Annotated[
            list[Annotated[str, Field(pattern=f"^{_CLOCK}$")]], Field(min_length=2, max_length=2)
        ]
        | None
    ) = None
    time_zone: Annotated[str, Field(max_length=64)] = "UTC"

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        time_zone(name)  # raises UnknownZone, which is a ValueError
        return name

    def is_quiet(self, moment: datetime) -> bool:
        """Whether a moment falls into the quiet hours, which may go past midnight."""
        if self.quiet_hours is None:
            return False
        begin, end = (time.fromisoformat(text) for text in self.quiet_hours)
        clock = moment.astimezone(time_zone(self.time_zone)).time()
        return begin <= clock < end if begin <= end else clock >= begin or clock < end


def quiet_hours_faults(value: object) -> list[tuple[str, str]]:
    """Quiet hours, in the JSON of `auto_adopt`, that would never apply; empty where there are none.

    Not a check of AutoAdopt: priors that hold such hours, stored by an earlier version, stay valid.
    """
    hours = value.get("quiet_hours") if isinstance(value, dict) else None
    if not isinstance(hours, list) or len(hours) != 2 or hours[0] != hours[1]:
        return []
    fault = (
        f"expected [from, to] of two different times; got {str(hours[0])[:20]!r} twice, which "
        'never applies: write the hours as in ["22:00", "06:00"], leave them out for none, or set '
        'mode to "off" for no steps at all'
    )
    return [("auto_adopt.quiet_hours", fault)]


@dataclass(frozen=True)
class Step:
    """What automatic adoption does now: `adopt` the target [C], `wait` for a while, or `hold`."""

    action: Literal["adopt", "wait", "hold"]
    reason: str
    target: Vector | None = None
    length: float = 0.0
    """Kullback-Leibler divergence in nats of the target from the one in force."""
    shortened: bool = False
    """Whether the candidate was further away than largest_step."""


def next_step(
    bounds: AutoAdopt,
    found: Assessment,
    *,
    current: Vector,
    steady: bool,
    now: datetime,
    changed_at: datetime | None,
) -> Step:
    """Decide on an estimate.

    current: [C] the target in force. steady: the previous estimate agreed with this one.
    changed_at: when the prior was last changed; None when it never was.
    """
    held = _why_held(bounds, found)
    if held is not None:
        return Step("hold", held)
    waits = _why_waiting(bounds, steady=steady, now=now, changed_at=changed_at)
    if waits is not None:
        return Step("wait", waits)
    target, length, shortened = bounded(
        found.candidate, current, largest=bounds.largest_step, floor=bounds.floor
    )
    return Step("adopt", found.reason, target, length, shortened)


def _why_held(bounds: AutoAdopt, found: Assessment) -> str | None:
    if bounds.mode == "off":
        return "automatic adoption is off"
    against = may_adopt(found)
    if against is None and bounds.freeze:
        return "automatic adoption is frozen; set auto_adopt.freeze to false to resume it"
    return against


def _why_waiting(
    bounds: AutoAdopt, *, steady: bool, now: datetime, changed_at: datetime | None
) -> str | None:
    if not steady:
        return "the next estimate must agree with this one first"
    if bounds.quiet_hours is not None and bounds.is_quiet(now):
        begin, end = bounds.quiet_hours
        return f"quiet hours, {begin} to {end} {bounds.time_zone}"
    if changed_at is None:
        return None
    left = timedelta(minutes=bounds.every_minutes) - (now - changed_at)
    if left <= timedelta(0):
        return None
    return (
        f"the prior changed {_span(now - changed_at)} ago; the next step may follow in "
        f"{_span(left)}"
    )


def bounded(
    candidate: Vector, current: Vector, *, largest: float, floor: float
) -> tuple[Vector, float, bool]:
    """Return (target, divergence of the step in nats, whether the step was shortened).

    All vectors are [C]. The target is the point nearest to the candidate, within the bounds, on
    the straight line from the current target to it. A class that is below the floor now, rises
    towards it as far as `largest` allows; no class falls below the floor.
    """
    wanted = _above(candidate, floor)
    length = divergence(wanted, current)
    if length <= largest:
        return wanted, length, False
    low, high = 0.0, 1.0
    for _ in range(50):  # the divergence grows with the share
        middle = (low + high) / 2
        if divergence((1 - middle) * current + middle * wanted, current) <= largest:
            low = middle
        else:
            high = middle
    target = (1 - low) * current + low * wanted
    return target, divergence(target, current), True


def divergence(new: Vector, old: Vector) -> float:
    """Kullback-Leibler divergence in nats of a new target [C] from an old one."""
    there = new > 0
    return float((new[there] * np.log(new[there] / np.maximum(old[there], _SMALLEST))).sum())


def _above(target: Vector, floor: float) -> Vector:
    """The distribution [C] with no entry below the floor, or below 1 / C if that is smaller."""
    least = min(floor, 1 / len(target))
    low = target < least
    raised = np.where(low, least, target)
    while True:
        free = 1 - least * low.sum()
        rest = raised[~low].sum()
        if rest <= 0 or free <= 0:
            return np.full(len(target), 1 / len(target))
        scaled: Vector = np.where(low, least, raised * free / rest)
        if (scaled[~low] >= least).all():
            return scaled
        low |= scaled < least


def _span(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
