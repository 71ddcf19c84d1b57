"""Numeric options of losses and samplers: their defaults, their ranges, and one check for both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.faults import WrongUse


class InvalidObjective(WrongUse):
    """A loss or sampler that does not exist, a wrong option, or frequencies that cannot be used."""


@dataclass(frozen=True)
class Option:
    """A number with its default and its range. `below` excludes the upper end itself."""

    default: float
    low: float = 0.0
    high: float = math.inf
    below: bool = False

    def allows(self, value: float) -> bool:
        """Whether the value is a number of the range; NaN is not."""
        return self.low <= value and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{self.low:g} or more"
        return f"{self.low:g} … {'below ' if self.below else ''}{self.high:g}"


def completed(
    kind: str, name: str, given: Mapping[str, float], options: Mapping[str, Option]
) -> dict[str, float]:
    """The given options with the defaults of the others. Raises InvalidObjective for a wrong one.

    kind: `loss` or `sampler`; with the name, it stands in the message.
    """
    unknown = sorted(set(given) - set(options))
    if unknown:
        known = ", ".join(options) or "none"
        raise InvalidObjective(
            f"{kind} '{name}' has no option '{unknown[0]}'; its options: {known}"
        )
    for key, value in given.items():
        if not options[key].allows(value):
            raise InvalidObjective(
                f"{kind} '{name}', option {key}={value:g}: expected a number in {options[key]}"
            )
    return {key: given.get(key, option.default) for key, option in options.items()}
