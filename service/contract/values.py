"""Kinds of numbers in model.json, and the ranges that they are checked against."""

from typing import Annotated

from pydantic import AfterValidator, Field

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
"""Temperatures beyond these turn float32 logits into infinity, or every answer into a tie."""


def between(low: float, high: float) -> AfterValidator:
    """Refuse numbers outside of [low, high], with a message that is short for 1e-100 too."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g}")
        return value

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0), between(1e-100, 1e100)]
Temperature = Annotated[float, Field(gt=0), between(MIN_TEMPERATURE, MAX_TEMPERATURE)]
Single = Annotated[float, between(-1e30, 1e30)]
"""A number that stays finite as float32, in which graphs compute."""
Count = Annotated[int, Field(ge=0, le=10**15)]


def no_boolean(value: object) -> object:
    """The value. Raises ValueError for true, which equals 1 and would pass for it."""
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004 - pydantic catches no TypeError
    return value
