"""Finds the broken rows of a block, so that the others can be scored."""

from collections.abc import Callable
from typing import TypeVar

from training.faults import BadData, Fault, WrongUse

Found = TypeVar("Found")


def salvage(
    rows: int, convert: Callable[[slice], Found]
) -> tuple[list[tuple[slice, Found]], dict[int, str]]:
    """Convert the rows of a block in as few pieces as leave the broken ones out.

    convert: converts some neighbouring rows; raises BadData if one of them is broken. A block with
    a broken row is halved until that row is alone. Returns the pieces in order, each with its rows,
    and the message of each broken row. Raises WrongUse if the block as a whole does not fit.
    """
    pieces: list[tuple[slice, Found]] = []
    broken: dict[int, str] = {}
    waiting = [slice(0, rows)]
    while waiting:
        part = waiting.pop()
        size = part.stop - part.start
        try:
            pieces.append((part, convert(part)))
        except WrongUse as fault:
            if size == rows:
                raise
            _divide(part, fault, waiting, broken)
        except BadData as fault:
            _divide(part, fault, waiting, broken)
    return pieces, broken


def _divide(part: slice, fault: Fault, waiting: list[slice], broken: dict[int, str]) -> None:
    if part.stop - part.start == 1:
        broken[part.start] = str(fault)
        return
    middle = (part.start + part.stop) // 2
    waiting += [slice(middle, part.stop), slice(part.start, middle)]
