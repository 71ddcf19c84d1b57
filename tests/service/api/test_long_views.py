"""Answers for many classes are the same JSON as those for few, and are made in a thread."""

import asyncio
import json
import threading

import numpy as np
import pytest
from pydantic import BaseModel

from service.api.long_views import MANY_CLASSES, rendered, shown_by_class, shown_in_order, view_of
from tests.support.priors import make_bundle


class Part(BaseModel):
    """A view within a view."""

    name: str
    mix: dict[str, float]


class Whole(BaseModel):
    """A view with every kind of member."""

    rows: int
    mix: dict[str, float] | None
    order: list[float]
    one: Part
    parts: list[Part]
    none: list[Part]


@pytest.mark.parametrize("classes", [3, MANY_CLASSES, MANY_CLASSES + 1, 10_000])
def test_views_within_views_are_written_the_same_way_for_any_number_of_classes(classes):
    names = [f"class {at} é" for at in range(classes)]
    bundle = make_bundle(class_names=names, class_counts=[1] * classes)
    vectors = [np.arange(classes) / 7 + at for at in range(4)]
    made_in = []

    def make():
        made_in.append(threading.get_ident())
        return view_of(Whole, bundle)(
            rows=7,
            mix=shown_by_class(names, vectors[0]),
            order=shown_in_order(vectors[1]),
            one=view_of(Part, bundle)(name="a", mix=shown_by_class(names, vectors[2])),
            parts=[
                view_of(Part, bundle)(name=str(at), mix=shown_by_class(names, vectors[at]))
                for at in range(2)
            ],
            none=[],
        )

    found = json.loads(asyncio.run(rendered(make, bundle)))

    def by_class(vector):
        return dict(zip(names, vector.tolist(), strict=True))

    assert found == {
        "rows": 7,
        "mix": by_class(vectors[0]),
        "order": np.round(vectors[1], 6).tolist(),
        "one": {"name": "a", "mix": by_class(vectors[2])},
        "parts": [{"name": str(at), "mix": by_class(vectors[at])} for at in range(2)],
        "none": [],
    }
    assert (made_in[0] == threading.get_ident()) == (classes <= MANY_CLASSES)
