"""Numeric options of losses and samplers: their defaults, their ranges, and one check for both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.faults import WrongUse


class InvalidObjective(WrongUse):
    """An unknown loss or sampler, an invalid option, or class counts that cannot be used.

    The message says which.
    """


@dataclass(frozen=True)
class Option:
    """A numeric option: its default and its range low … high, without `high` itself if `below`.

    switch: only 0, off, and 1, on, are allowed.
    """

    default: float
    low: float = 0.0
    high: float = math.inf
    below: bool = False
    switch: bool = False

    def allows(self, value: float) -> bool:
        """Return whether the value is in the range; NaN never is."""
        if self.switch:
            return value in (0, 1)
        return self.low <= value and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.switch:
            return "0 or 1"
        if self.high == math.inf:
            return f"{self.low:g} or more"
        return f"{self.low:g} … {'below ' if self.below else ''}{self.high:g}"


def completed(
    kind: str, name: str, given: Mapping[str, float], options: Mapping[str, Option]
) -> dict[str, float]:
    """Return all options: the given values, and the defaults of the others.

    kind: "loss" or "sampler"; it is named in the message, as is `name`. Raises InvalidObjective for
    an unknown option or a value out of its range.
    """
    unknown = sorted(set(given) - set(options))
    if unknown:
        known = ", ".join(options) or "none"
        raise InvalidObjective(
            f"{kind} '{name}' has no option '{unknown[0]}'; its options: {known}"
        )
    for key, value in given.items():
        if not options[key].allows(value):
            expected = f"{'' if options[key].switch else 'a number in '}{options[key]}"
            raise InvalidObjective(f"{kind} '{name}', option {key}={value:g}: expected {expected}")
    return {key: given.get(key, option.default) for key, option in options.items()}
