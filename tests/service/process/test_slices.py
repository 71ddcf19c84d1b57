"""JSON in slices is the JSON that one call makes, whatever its size and shape."""

import json
from datetime import UTC, datetime

import orjson
import pytest

from service.process.slices import SLICE, Made, decoded, long_json, stored_json

LONG = {f"class {n} é": n / 7 for n in range(2 * SLICE + 3)}
VALUES = [
    None, 1.5, 'é"\n', [], {}, [[]], {"a": {}}, [1, [2], {"b": 3}], LONG, list(LONG.values()),
    {"target": LONG, "costs": {"matrix": [[0.5] * 100] * 100, "pairs": [["a", "b", 1.0]] * 9000}},
    [{"label": name, "before": share} for name, share in LONG.items()],
    {f"key {n}": {"value": "prior"} for n in range(SLICE + 1)},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:20])
def test_slices_are_what_one_call_makes(value):
    assert stored_json(value) == json.dumps(value)
    assert long_json(value) == orjson.dumps(value)
    assert decoded(json.dumps(value)) == value
    assert repr(decoded(json.dumps(value))) == repr(json.loads(json.dumps(value)))


def test_what_json_does_not_have_is_refused_or_turned_into_what_it_has():
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            stored_json({"target": [1.0] * SLICE + [wrong]})
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    shown = long_json({"at": moment, "odd": [{1, 2}]}, default=sorted)
    assert shown == b'{"at":"2026-01-02T00:00:00Z","odd":[[1,2]]}'


@pytest.mark.parametrize("length", [0, 1, SLICE, 2 * SLICE + 3])
def test_a_list_that_is_made_by_slices_is_the_list(length):
    asked = []

    def make(begin, end):
        asked.append(end - begin)
        return [{"index": n} for n in range(begin, end)]

    whole = [{"index": n} for n in range(length)]
    assert long_json({"rows": 3, "classes": Made(length, make)}) == orjson.dumps(
        {"rows": 3, "classes": whole}
    )
    assert all(count <= SLICE for count in asked)


@pytest.mark.parametrize("length", [0, 1, SLICE, 2 * SLICE + 3])
def test_an_object_that_is_made_by_slices_is_the_object(length):
    whole = {f"class {n}": n / 7 for n in range(length)}
    entries = list(whole.items())
    made = Made(length, lambda begin, end: dict(entries[begin:end]), b"{}")
    assert long_json({"target": made}) == orjson.dumps({"target": whole})
