"""Rows with NaN or infinity are found, whichever type they have."""

import numpy as np
import pytest

from service.contract.inputs.finite import is_finite, not_finite, rows_not_finite

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_with_its_row(dtype, bad):
    rows = np.zeros((4, 2, 3), dtype)
    assert is_finite(rows)
    rows[1, 1, 2] = rows[3, 0, 0] = bad
    assert not is_finite(rows)
    assert rows_not_finite(rows) == [1, 3]


def test_numbers_whose_squares_overflow_are_finite():
    assert is_finite(np.full((2, 3), LARGEST, np.float32))


@pytest.mark.parametrize("array", [np.ones((2, 3), np.int64), np.array([["a"], ["nan"]])])
def test_whole_numbers_and_texts_are_finite(array):
    assert is_finite(array)


def test_the_message_names_the_type():
    assert not_finite(np.dtype("float16")) == (
        "holds NaN or infinity in float16; expected finite numbers"
    )
