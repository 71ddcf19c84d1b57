"""Rows of several inputs are records, cut and joined like other rows."""

import numpy as np
import pytest
from pydantic import ValidationError

from service.contract.inputs.columns import (
    empty_record,
    empty_values,
    fields,
    float_names,
    float_rows,
    records,
)
from service.contract.inputs.spec import InputSpec

AGE = np.array([[41.0], [7.5]], np.float32)
SEX = np.array([["f"], ["männlich und lang"]], object)


def test_columns_come_back_from_records_as_they_were():
    rows = records({"age": AGE, "sex": SEX})
    assert rows.shape == (2,)
    found = fields(np.concatenate([rows[1:], rows[:1]]))
    np.testing.assert_array_equal(found["age"], AGE[::-1])
    assert found["sex"].tolist() == SEX[::-1].tolist()
    assert all(column.flags.c_contiguous for column in found.values())


def test_an_empty_record_has_zeros_and_empty_strings_in_the_columns_shapes():
    columns = [
        InputSpec(name="age", kind="tensor", shape=[None, 1], dtype="float32"),
        InputSpec(name="ids", kind="tensor", shape=[None, None], dtype="int64"),
        InputSpec(name="sex", kind="text", shape=[None, 1], dtype="string"),
    ]
    found = fields(empty_record(columns, free=3))
    assert {name: column.tolist() for name, column in found.items()} == {
        "age": [[0.0]],
        "ids": [[0, 0, 0]],
        "sex": [[""]],
    }


def test_an_empty_record_takes_the_first_category():
    column = InputSpec(
        name="sex", kind="text", shape=[None, 1], dtype="string", categories=["f", "m"]
    )
    assert fields(empty_record([column], free=1))["sex"].tolist() == [["f"]]


def test_each_column_of_one_tensor_takes_its_own_first_category():
    spec = InputSpec(
        name="x",
        kind="text",
        shape=[None, 3],
        dtype="string",
        categories=[["f", "m"], None, ["red"]],
    )
    assert [spec.categories_of(at) for at in range(3)] == [["f", "m"], None, ["red"]]
    assert empty_values(spec, (1, 3)).tolist() == [["f", "", "red"]]


def test_categories_of_another_number_of_columns_are_refused():
    with pytest.raises(ValidationError, match="categories covers 1 columns; expected 3"):
        InputSpec(name="x", kind="text", shape=[None, 3], dtype="string", categories=[["f"]])


def test_the_float_columns_of_records_stand_side_by_side():
    spec = InputSpec(name="age", kind="tensor", shape=[None, 1], dtype="float32")
    assert float_names(spec) == ("age",)
    assert float_rows(AGE, ("age",)) is AGE
    rows = records({"age": AGE, "sex": SEX, "size": np.array([[1.0, 2.0], [3.0, 4.0]])})
    np.testing.assert_array_equal(float_rows(rows, ("age",)), AGE)
    np.testing.assert_array_equal(float_rows(rows, ("age", "size")), [[41, 1, 2], [7.5, 3, 4]])
