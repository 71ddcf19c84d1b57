"""Turns nested JSON lists into their shape and their values in row-major order, with all checks."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from service.wire.shown import shape_words, short

_NUMBERS: set[type] = {int, float}


class Ragged(ValueError):
    """Lists of one level differ in length, or a level mixes lists and values."""


def shape_of(nested: list[Any], *, max_levels: int = 32) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and their values flat. Raises Ragged.

    It takes no more memory than the values already do, whatever they are.
    """
    level, shape = nested, [len(nested)]
    while level and isinstance(level[0], list):
        lengths = {len(item) for item in level} if _are_lists(level) else set()
        if len(lengths) != 1 or len(shape) == max_levels:
            raise Ragged("lists of one level differ in length")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        raise Ragged("one level holds both lists and values")
    return tuple(shape), level


def only_numbers(values: Sequence[Any]) -> bool:
    """Whether all are numbers; booleans are not."""
    return set(map(type, values)) <= _NUMBERS


def first_wrong(instances: Sequence[Any], *, first_row: int, wanted: Sequence[int | None]) -> str:
    """Say which instance is not an array of numbers in the shape `wanted` [batch, …], and why."""
    words = shape_words(wanted)
    for row, item in enumerate(instances, first_row):
        try:
            shape, values = shape_of(item) if isinstance(item, list) else ((), [item])
        except Ragged:
            return f"instance {row} is ragged; the model takes {words}"
        boolean = next((value for value in values if isinstance(value, bool)), None)
        if boolean is not None:
            return f"instance {row} holds {str(boolean).lower()}; expected numbers"
        if not only_numbers(values):
            if not isinstance(item, list):
                return f"instance {row} is {short(item)}; expected numbers in the shape {words}"
            wrong = next(at for at, value in enumerate(values) if type(value) not in _NUMBERS)
            place = f" in column {wrong}" if len(shape) == 1 else ""
            return (
                f"instance {row} holds {short(values[wrong])}{place}; "
                f"expected numbers in the shape {words}"
            )
        if len(shape) != len(wanted) - 1 or any(
            want is not None and want != got for want, got in zip(wanted[1:], shape, strict=True)
        ):
            return f"instance {row} has shape {list(shape)}; the model takes {words}"
    return f"the instances differ in shape; the model takes {words}"


def _are_lists(level: Sequence[Any]) -> bool:
    return set(map(type, level)) == {list}
