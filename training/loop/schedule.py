"""The learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

from training.faults import WrongUse

SCHEDULES = ("steps", "cosine", "constant")


def in_steps(points: Sequence[float], *, steps: int, name: str) -> tuple[int, ...]:
    """Convert points of a run to steps; a number below 1 is a fraction of the run.

    steps: the steps of the run. name: the flag, for messages. Raises WrongUse for a point beyond
    the run, or points that do not ascend.
    """
    turned = []
    for point in points:
        if not 0 <= point <= steps:
            raise WrongUse(
                f"{name} {point:g} is outside the run of {steps} steps; give an earlier step"
            )
        turned.append(int(point * steps) if point < 1 else int(point))
    if sorted(turned) != turned:
        raise WrongUse(f"{name} are not in ascending order: {list(points)}; sort them")
    return tuple(turned)


def learning_rate(
    step: int,
    *,
    base: float,
    steps: int,
    schedule: str,
    warmup: int = 0,
    milestones: Sequence[int] = (),
    drop: float = 0.1,
) -> float:
    """Return the learning rate of a step, 0 … steps - 1.

    Warm-up is linear over the first `warmup` steps. schedule "steps" multiplies the rate by
    `drop` at each milestone; "cosine" lowers it from `base` after the warm-up to 0 at the end of
    the run. Raises WrongUse for another schedule.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    if schedule == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "steps":
        return float(base * drop ** sum(step >= milestone for milestone in milestones))
    raise WrongUse(f"unknown schedule '{schedule}'; expected {', '.join(SCHEDULES)}")
