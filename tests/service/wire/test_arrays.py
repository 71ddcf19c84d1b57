"""Bytes become exactly the intended array, or an error that names the fault; nothing else."""

import contextlib
import functools
import io
import itertools
import json
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.contract.inputs.spec import MAX_TEXT_CHARACTERS, InputSpec
from service.wire.arrays import array_of, example_input, fitted
from service.wire.faults import InvalidInput, InvalidParameter, Malformed, TooLarge
from service.wire.forms import MAX_FIELD_BYTES, parse_form
from service.wire.json_text import parse_json, parse_json_object
from service.wire.npy import parse_npy
from service.wire.parameters import Parameters, body_parameters, query_parameters

REFUSED = (Malformed, InvalidInput, InvalidParameter)


def spec(dtype="float32", shape=(None, 3), kind="tensor"):
    return InputSpec(name="x", kind=kind, shape=list(shape), dtype=dtype)


TEXT = spec("string", (None, 1), "text")


def npy(array, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=True)
    return buffer.getvalue()


# ---- .npy


@settings(max_examples=200, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from(
            ["<f2", "<f4", ">f4", "<f8", "|u1", "<i2", ">i4", "<i8", "|b1", "<U5", "|S4"]
        ),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_what_numpy_saves_is_read_back(array, fortran, version):
    array = np.asfortranarray(array) if fortran else array
    found = parse_npy(npy(array, version))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_make_the_npy_reader_do_anything_but_refuse(data):
    body = bytearray(npy(np.arange(6, dtype=np.float32).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    with contextlib.suppress(REFUSED):
        fitted(parse_npy(bytes(body)), spec())


def header(text, data=b""):
    raw = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data


def described(descr, shape="(2, 3)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a .npy file"),
        (b"PK\x03\x04", "not a .npy file"),
        (npy(np.zeros((2, 3)))[:9], "ends within its header"),
        (npy(np.zeros((2, 3)))[:40], "ends within its header"),
        (npy(np.zeros((2, 3)))[:-1], "has 47 bytes of data; shape [2, 3] of float64 needs 48"),
        (npy(np.zeros((2, 3))) + b"x", "has 49 bytes of data"),
        (npy(np.array([{"pickled": 1}], object)), "dtype '|O', which is refused"),
        (npy(np.zeros(2, [("a", "<f4")])), "which is refused"),
        (npy(np.zeros(2, "<M8[s]")), "which is refused"),
        (npy(np.zeros(2, "<c16")), "which is refused"),
        (header(described("'<U0'", "(1000000000,)")), "no usable shape"),
        (header(described("'<f3'")), "cannot be read"),
        (header(described("'<f4'", "()"), bytes(4)), "no usable shape"),
        (header(described("'<f4'", "(-1, 3)")), "no usable shape"),
        (header(described("'<f4'", "(True, 3)")), "no usable shape"),
        (header(described("'<f4'", f"({10**30},)")), "no usable shape"),
        (header(described("'<f4'", "(1099511627775, 1099511627775)")), "no usable shape"),
        (header(described("'<f4'", "(0, 549755813888, 549755813888)")), "no usable shape"),
        (header(described("'<f4'", "(10L, 3)")), "cannot be read"),
        (header(described("'<f4'", "(" + "9" * 3900 + ",)")), "no usable shape"),
        (header(described("'<f4'", order="'yes'")), "cannot be read"),
        (header("__import__('os').system('true')"), "cannot be read"),
        (header("(" * 3000), "cannot be read"),
        (header("[1]"), "cannot be read"),
        (header("{}"), "cannot be read"),
        (b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + bytes(10**6), "at most 4096"),
    ],
)
def test_a_npy_file_that_is_no_plain_array_is_refused_for_what_it_is(body, message):
    with pytest.raises(Malformed) as refused:
        parse_npy(body)
    assert message in str(refused.value)


@pytest.mark.parametrize("offset", range(1, 8))
def test_an_array_that_lies_askew_in_its_body_is_copied_into_place(offset):
    raw = bytes(offset) + np.arange(6, dtype=np.float32).tobytes()
    found = fitted(np.frombuffer(raw, np.float32, 6, offset).reshape(2, 3), spec())
    assert found.flags.aligned
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))


# ---- arrays of the model's type and shape


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int32", "int64"])
def test_json_numbers_become_the_models_type(dtype):
    found = array_of([[1, 2, 3], [4, 5, 6]], spec(dtype), are_numbers=True)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("instances", "dtype", "message"),
    [
        ([[1, 2]], "float32", "the input has shape [1, 2]; the model takes [batch, 3]"),
        ([[[1, 2, 3]]], "float32", "the input has shape [1, 1, 3]"),
        ([1, 2, 3], "float32", "the input has shape [3]"),
        ([[1, 2, 3], [4, 5]], "float32", "instance 1 has shape [2]"),
        ([[1, [2], 3]], "float32", "instance 0 is ragged"),
        ([[]], "float32", "the input has shape [1, 0]"),
        ([[1, "2", 3]], "float32", "instance 0 holds"),
        ([[1, None, 3]], "float32", "instance 0 holds"),
        ([[1, {}, 3]], "float32", "instance 0 holds"),
        (["abc"], "float32", "instance 0 is 'abc'"),
        ([None], "float32", "instance 0 is null"),
        ([[1, True, 3]], "float32", "instance 0 holds true; expected numbers"),
        ([[1, 2, 3], [False, 2, 3]], "uint8", "instance 1 holds false"),
        ([[1, 2, 1e39]], "float32", "instance 0 holds NaN or infinity in float32"),
        ([[1, 2, 70000]], "float16", "instance 0 holds NaN or infinity in float16"),
        ([[1, 2, 3.5]], "int32", "the input is float64; the model takes int32"),
        ([[1, 2, 256]], "uint8", "the input holds 256; uint8 takes 0 to 255"),
        ([[1, 2, -1]], "uint8", "the input holds -1"),
        ([[2**63] * 3], "int64", "the input holds 9223372036854775808"),
        ([[1, 2, 3]], "bool", "the input is int64; the model takes bool"),
    ],
)
def test_instances_that_do_not_fit_are_refused_by_row_and_reason(instances, dtype, message):
    with pytest.raises(InvalidInput) as refused:
        array_of(instances, spec(dtype), are_numbers=False)
    assert message in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text(max_size=2), inner, max_size=2)
            ),
            max_leaves=12,
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(
        [spec(), spec("int64"), spec("uint8", (None, None)), spec("float16", (None, 1, None)), TEXT]
    ),
)
def test_any_json_becomes_a_fitting_array_or_a_named_error(instances, wanted):
    try:
        found = array_of(instances, wanted, are_numbers=False)
    except InvalidInput:
        return
    assert len(found) == len(instances)
    if wanted.kind == "tensor":
        assert found.dtype == wanted.dtype
        assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", [(None,), (None, 1), (None, None)])
def test_a_text_model_takes_strings_and_arrays_of_text(shape):
    wanted = spec("string", shape, "text")
    flat = array_of(["a", "ö", ""], wanted, are_numbers=True)
    assert flat.shape == ((3,) if len(shape) == 1 else (3, 1))
    for array in (np.array(["a", "ö", ""]), np.array([b"a", "ö".encode(), b""])):
        np.testing.assert_array_equal(fitted(array, wanted), flat)
    assert example_input(wanted).shape == flat[:1].shape


def test_a_row_of_one_text_may_be_a_list_as_the_shape_says():
    found = array_of([["a"], ["ö"]], TEXT, are_numbers=True)
    np.testing.assert_array_equal(found, array_of(["a", "ö"], TEXT, are_numbers=True))
    for wrong in ([["a", "b"]], [[]], [[["a"]]], [[1]]):
        with pytest.raises(InvalidInput, match=r"instance 0 holds .*; expected a string"):
            array_of(wrong, TEXT, are_numbers=True)
    with pytest.raises(InvalidInput, match="instance 0 holds a list; expected a string"):
        array_of([["a"]], spec("string", (None,), "text"), are_numbers=True)


def test_a_text_that_is_too_long_is_refused_with_its_row_in_every_form():
    longest, too_long = "a " * (MAX_TEXT_CHARACTERS // 2), "a " * (MAX_TEXT_CHARACTERS // 2) + "b"
    assert array_of(["x", longest], TEXT, are_numbers=True).shape == (2, 1)
    with pytest.raises(InvalidInput, match=r"instance 1 .* 20,001 characters.* 20,000"):
        array_of(["x", too_long], TEXT, are_numbers=True)
    with pytest.raises(InvalidInput, match=r"instance 1 .* 20,001 characters"):
        fitted(np.array(["x", too_long]), TEXT)


def test_a_model_of_several_texts_takes_a_list_of_them():
    wanted = spec("string", (None, 2), "text")
    found = array_of([["a", "b"], ["c", "d"]], wanted, are_numbers=True)
    np.testing.assert_array_equal(found, np.array([["a", "b"], ["c", "d"]], object))
    with pytest.raises(InvalidInput, match="instance 1 is a list; expected a list of 2 strings"):
        array_of([["a", "b"], ["c"]], wanted, are_numbers=True)
    with pytest.raises(InvalidInput, match="instance 0 holds 7; expected a string"):
        array_of([["a", 7]], wanted, are_numbers=True)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(2), "the input is float64; the model takes text"),
        (np.array([b"\xff"]), "not UTF-8"),
        (np.array(["\ud800"]), "not UTF-8"),
        (np.array([["a", "b"]]), "the input has shape [1, 2]"),
        (np.array([], "<U1"), "there are no instances"),
    ],
)
def test_an_array_that_is_no_text_is_refused_by_a_text_model(array, message):
    with pytest.raises(InvalidInput) as refused:
        fitted(array, TEXT)
    assert message in str(refused.value)


def test_text_is_refused_by_a_model_of_numbers():
    with pytest.raises(InvalidInput, match="the input is text; the model takes float32"):
        fitted(np.array([["1", "2", "3"]]), spec())


# ---- JSON and parameters


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"nan",
        b'{"x": NaN}',
        b'{"x": 1e999}',
        b"\xff",
        b'"\xed\xa0\x80"',
    ],
)
def test_what_is_not_strict_json_is_malformed(body):
    with pytest.raises(Malformed):
        parse_json(body)


def test_unknown_members_are_named():
    with pytest.raises(Malformed, match="unknown member 'instance'; expected instances"):
        parse_json_object(b'{"instance": []}', ("instances",))


@pytest.mark.parametrize(
    "query",
    [
        b"tau=nan",
        b"tau=inf",
        b"tau=false",
        b"tau=",
        b"tau=1_0",
        "tau=١".encode(),
        b"tau=%D9%A1",
        b"tau=0x1",
        b"top_k=1.5",
        b"top_k=-1",
        b"version=abc",
        b"tauu=1",
        b"tau=1&tau=2",
        b"tau",
        b"prior={",
        b"&".join([b"tau=1"] * 50),
    ],
)
def test_a_query_that_is_wrong_is_refused(query):
    with pytest.raises(REFUSED):
        query_parameters(query)


def test_a_query_may_hold_an_inline_prior_and_say_a_thing_twice_alike():
    found = query_parameters(b'tau=1.5&tau=1.5&prior={"target":{"a":1}}&top_k=3')
    assert found == Parameters(1.5, {"target": {"a": 1}}, 3, None)


def test_a_tau_may_stand_anywhere_in_a_query_and_beside_anything():
    settings = {
        b"tau=0.7": {"tau": 0.7},
        b"prior=tau%3D2": {"prior": "tau=2"},
        b"top_k=3": {"top_k": 3},
    }
    for count in range(1, 4):
        for chosen in itertools.permutations(settings, count):
            wanted = functools.reduce(operator.or_, (settings[each] for each in chosen))
            for _ in range(2):  # the second time it is known
                assert query_parameters(b"&".join(chosen)) == Parameters(**wanted)


@pytest.mark.parametrize(
    "members",
    [
        {"tau": False},
        {"tau": "1"},
        {"tau": []},
        {"prior": 7},
        {"prior": ["a"]},
        {"top_k": 2.0},
        {"top_k": True},
        {"version": "1"},
        {"tao": 1},
        [],
        "tau",
    ],
)
def test_parameters_of_a_wrong_type_are_refused(members):
    with pytest.raises(REFUSED):
        body_parameters(members)


def test_query_and_body_may_agree_but_not_differ():
    assert Parameters(tau=1.0).merged(Parameters(tau=1.0, top_k=2)) == Parameters(1.0, None, 2)
    with pytest.raises(Malformed, match="tau is given twice"):
        Parameters(tau=1.0).merged(Parameters(tau=2.0))


# ---- multipart


def form(*parts, end=b"--b--\r\n"):
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + end


FORM = b"multipart/form-data; boundary=b"


def test_files_come_in_order_and_other_fields_are_text():
    found = parse_form(
        FORM,
        form(
            (b'name="second"; filename="2.png"', b"\x00\r\nbytes"),
            (b'name="tau"', b"0.5"),
            (b'name="first"; filename="1.png"', b""),
            (b'name="x"\r\nContent-Type: image/png', b"no file name"),
        ),
    )
    assert found.files == [b"\x00\r\nbytes", b"", b"no file name"]
    assert found.fields == [("tau", "0.5")]


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        (b"multipart/form-data", form(), "names no boundary"),
        (FORM, b"", "ends before its last boundary"),
        (FORM, form((b'name="a"; filename="a"', b"x"), end=b""), "ends before its last boundary"),
        (FORM, b"garbage", "cannot be read"),
        (FORM, form((b'name="tau"', b"\xff")), "'tau' is not UTF-8"),
        (FORM, form(*[(b'name="a"', b"")] * 1_001), "more than 1000 parts"),
        (b"multipart/form-data; boundary=" + b"b" * 5000, b"x", "cannot be read"),
    ],
)
def test_a_multipart_body_that_is_not_whole_is_malformed(content_type, body, message):
    with pytest.raises(Malformed) as refused:
        parse_form(content_type, body)
    assert message in str(refused.value)


def test_a_text_field_is_bounded_and_a_file_is_not():
    long = bytes(MAX_FIELD_BYTES + 1)
    with pytest.raises(TooLarge, match="form field 'prior' has 4194305 bytes of text; at most"):
        parse_form(FORM, bytearray(form((b'name="prior"', long))))
    found = parse_form(FORM, bytearray(form((b'name="a"; filename="a"', long))))
    assert found.files == [long]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_multipart_body_is_read_or_malformed(noise, inside):
    body = form((b'name="a"; filename="a"', noise)) if inside else noise
    try:
        found = parse_form(FORM, body)
    except Malformed:
        return
    assert json.dumps(found.fields) or found.files
