"""Slices of a vector are what one call for all of it would make."""

import gc

import numpy as np
import pytest

from service.contract.members.body import body_of, document_of
from service.contract.members.named import (
    SLICE,
    VAST,
    are_equal,
    by_class,
    list_of,
    places_of,
    short_form,
    vector_of,
)

SIZES = [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 7]


@pytest.mark.parametrize("size", SIZES)
def test_slices_are_what_one_call_makes(size):
    names, values = [f"c{n}" for n in range(size)], [n / 7 for n in range(size)]
    assert by_class(names, values) == dict(zip(names, values, strict=True))
    found = by_class(names, np.array(values, np.float64))
    assert found == by_class(names, values)
    assert all(type(value) is float for value in found.values())
    assert np.array_equal(vector_of(values), np.array(values))
    assert list_of(np.array(values, np.float64)) == list_of(values) == values
    assert places_of(names[::2], names) == {name: at for at, name in enumerate(names) if not at % 2}
    assert short_form(names, values) == by_class(names, values)


@pytest.mark.parametrize("size", SIZES[2:])
def test_another_number_of_values_is_refused(size):
    names = [f"c{n}" for n in range(size)]
    for wrong in (size - 1, size + 1):
        with pytest.raises(ValueError, match="argument 2 is"):
            by_class(names, [1.0] * wrong)


@pytest.mark.parametrize(
    ("one", "other"),
    [([1.0], [1.0, 2.0]), ([1.0], {"a": 1.0}), ({"a": 1.0}, {"b": 1.0}), ([1.0], [2.0])],
)
def test_vectors_are_equal_where_form_and_values_are(one, other):
    assert are_equal(one, type(one)(one))
    assert not are_equal(one, other)
    assert are_equal({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0})


def test_a_list_equals_a_dict_where_the_order_of_classes_is_known():
    names, by_name = ["a", "b"], {"b": 2.0, "a": 1.0}
    for one, other in ([1.0, 2.0], by_name), (by_name, [1.0, 2.0]):
        assert are_equal(one, other, names)
        assert not are_equal(one, other)
        assert not are_equal(one, other, ["a", "c"])
        assert not are_equal(one, other, ["a", "b", "c"])
    assert not are_equal([2.0, 1.0], by_name, names)


def test_the_vectors_of_very_many_classes_are_lists():
    names = [f"c{n}" for n in range(VAST + 1)]
    assert isinstance(short_form(names[:-1], [1.0] * VAST), dict)
    assert short_form(names, np.arange(VAST + 1.0)) == [float(n) for n in range(VAST + 1)]


def test_the_garbage_collector_does_not_look_at_a_kept_vector_of_many_classes():
    body = body_of({"target": [1.0] * 5000, "label_frequencies": [2] * 5000})
    gc.collect()
    for kept in (body.target, body.label_frequencies):
        assert not gc.is_tracked(kept)
    assert list(body.label_frequencies) == [2.0] * 5000
    assert document_of(body)["target"] == list(body.target)
