"""Tensors of every type survive a round trip through JSON and through bytes."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.tensors import (
    DATATYPES,
    MAX_BYTES_ELEMENTS,
    binary_pieces,
    describe,
    encode_binary,
    encode_json,
    join_bytes,
    split_bytes,
)

NUMERIC = [name for name in DATATYPES if name != "BYTES"]


def described(name, array, **more):
    return {"name": "x", "datatype": name, "shape": list(array.shape), **more}


@given(st.data(), st.sampled_from(NUMERIC), st.integers(0, 9))
def test_numbers_come_back_from_bytes_and_from_json(data, name, offset):
    dtype = DATATYPES[name]
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    array = data.draw(
        arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
            elements=finite,
        )
    )
    raw = encode_binary(array)
    assert b"".join(binary_pieces(array)) == raw
    entry = described(name, array, parameters={"binary_data_size": len(raw)})
    tensor, end = describe(entry).read(bytes(offset) + raw, offset)
    assert end == offset + len(raw)
    assert_array_equal(tensor.values, array)
    json_entry = orjson.loads(
        orjson.dumps(
            described(name, array, data=encode_json(array)), option=orjson.OPT_SERIALIZE_NUMPY
        )
    )
    tensor, end = describe(json_entry).read(b"", 0)
    assert_array_equal(tensor.values, array)
    assert tensor.values.dtype == dtype
    nested, _ = describe(described(name, array, data=array.tolist())).read(b"", 0)
    assert_array_equal(nested.values, array)


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_bytes_come_back(elements):
    raw = join_bytes(elements)
    assert split_bytes(memoryview(raw), "x", len(elements)) == elements
    entry = {"name": "x", "datatype": "BYTES", "shape": [len(elements)]}
    entry["parameters"] = {"binary_data_size": len(raw)}
    tensor, _ = describe(entry).read(raw, 0)
    assert tensor.values == elements


@given(st.binary(max_size=12), st.integers(0, 3))
def test_any_bytes_are_elements_or_malformed(raw, count):
    try:
        found = split_bytes(memoryview(raw), "x", count)
    except Malformed:
        return
    assert join_bytes(found) == raw
    assert len(found) == count


def test_a_shape_whose_elements_cannot_be_counted_is_refused():
    for shape in ([0, 2**39, 2**39], [2**39, 2**39], [0] * 15 + [2**39] * 2, [2**40]):
        for more in ({"data": []}, {"parameters": {"binary_data_size": 0}}):
            with pytest.raises(Malformed, match="expected"):
                describe({"name": "x", "datatype": "FP32", "shape": shape, **more})


def test_a_tensor_of_too_many_texts_is_refused_before_they_are_read():
    count = MAX_BYTES_ELEMENTS + 1
    entry = {"name": "x", "datatype": "BYTES", "shape": [count]}
    entry["parameters"] = {"binary_data_size": 4 * count}
    with pytest.raises(TooLarge, match="100001 elements"):
        describe(entry).read(bytes(4 * count), 0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT8", [1.5]),
        ("INT64", [2**63]),
        ("INT32", [True]),
        ("BOOL", [2]),
        ("BOOL", [1.0]),
        ("FP32", ["1"]),
        ("BYTES", [1]),
        ("FP16", [10**400]),
        ("INT64", [10**30]),
        ("FP32", [{}]),
    ],
)
def test_a_value_that_is_not_of_the_type_is_refused(name, data):
    with pytest.raises(InvalidInput):
        describe({"name": "x", "datatype": name, "shape": [1], "data": data})


@pytest.mark.parametrize("dtype", [np.float32, np.dtype(">i8")])
def test_long_binary_data_is_made_in_pieces(dtype):
    array = np.arange(1_200_000).reshape(3, -1).astype(dtype)[:, ::2]
    pieces = binary_pieces(array)
    assert len(pieces) == 2
    assert b"".join(pieces) == encode_binary(array)
