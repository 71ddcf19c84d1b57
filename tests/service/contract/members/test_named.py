"""Slices of a vector are what one call for all of it would make."""

import numpy as np
import pytest

from service.contract.members.named import SLICE, are_equal, by_class, set_of, vector_of

SIZES = [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 7]


@pytest.mark.parametrize("size", SIZES)
def test_slices_are_what_one_call_makes(size):
    names, values = [f"c{n}" for n in range(size)], [n / 7 for n in range(size)]
    assert by_class(names, values) == dict(zip(names, values, strict=True))
    found = by_class(names, np.array(values, np.float64))
    assert found == by_class(names, values)
    assert all(type(value) is float for value in found.values())
    assert np.array_equal(vector_of(values), np.array(values))
    assert set_of(names) == set(names)


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
