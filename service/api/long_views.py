"""Answers with numbers for each class: of many classes, made and written in slices in a thread."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from pydantic import BaseModel

from service.contract.bundle import Bundle
from service.contract.members.named import by_class
from service.process.slices import Made, long_json

T = TypeVar("T")
V = TypeVar("V", bound=BaseModel)
ByClass: TypeAlias = dict[str, float]
MANY_CLASSES = 2_000
"""Answers for more classes than this take milliseconds to encode."""


async def rendered(make: Callable[[], BaseModel], bundle: Bundle) -> bytes:
    """Encode a view as JSON.

    For a model with many classes this runs in a thread, since it would block the event loop.
    make: builds the view, in the same thread.
    """
    if len(bundle.class_names) <= MANY_CLASSES:
        return make().model_dump_json().encode()
    return await asyncio.to_thread(lambda: long_json(members(make())))


async def apart_if_long(call: Callable[[], T], bundle: Bundle) -> T:
    """Make a call whose time grows with the number of classes: in a thread if there are many."""
    return call() if len(bundle.class_names) <= MANY_CLASSES else await asyncio.to_thread(call)


def view_of(view: type[V], bundle: Bundle) -> Callable[..., V]:
    """Return the function that makes a view.

    For many classes it skips pydantic's validation, during which no other thread could run.
    """
    return view if len(bundle.class_names) <= MANY_CLASSES else view.model_construct


def members(view: BaseModel) -> dict[str, Any]:
    """The members of a view, of the views in it, and of those in a list, as dicts."""
    fields = type(view).model_fields  # cached properties are in __dict__, too
    found = {name: value for name, value in view.__dict__.items() if name in fields}
    for name, value in found.items():
        if isinstance(value, BaseModel):
            found[name] = members(value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], BaseModel):
            found[name] = [members(each) for each in value]
    return found


def shown_by_class(names: Sequence[str], vector: Any) -> ByClass | Made:
    """The values [C] of a view by class name; for many classes, made slice by slice as written."""
    if len(names) <= MANY_CLASSES:
        return by_class(names, vector)

    def made(begin: int, end: int) -> ByClass:
        return by_class(names[begin:end], vector[begin:end])

    return Made(len(names), made, b"{}")


def shown_in_order(vector: Any) -> list[float] | Made:
    """The values [C] of a view in class order, with six digits after the point."""

    def made(begin: int, end: int) -> list[float]:
        found: list[float] = np.round(np.asarray(vector[begin:end], np.float64), 6).tolist()
        return found

    return made(0, len(vector)) if len(vector) <= MANY_CLASSES else Made(len(vector), made)
