"""A long JSON body that is read in slices gives the same rows as one decoded whole."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.contract.inputs.spec import InputSpec
from service.wire import json_rows
from service.wire.arrays import array_of
from service.wire.faults import InvalidInput, InvalidParameter, Malformed, TooLarge
from service.wire.json_rows import ShortJson, numbers_of_json
from service.wire.json_text import parse_json_object

REFUSED = (Malformed, InvalidInput, InvalidParameter, TooLarge)
ALLOWED = ("instances", "parameters")
SPEC = InputSpec(name="x", kind="tensor", shape=[None, 2], dtype="float32")
FREE = InputSpec(name="x", kind="tensor", shape=[None, None], dtype="float32")


def in_slices(body, spec=SPEC, *, max_rows=1000, slice_bytes=8):
    return numbers_of_json(
        body, spec, member="instances", allowed=ALLOWED, max_rows=max_rows, slice_bytes=slice_bytes
    )


def whole(body, spec=SPEC):
    document = parse_json_object(body, ALLOWED)
    instances = document.get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidInput("there are no instances")
    return document, array_of(instances, spec)


def outcome(read, body, spec):
    try:
        found = read(body, spec)
    except REFUSED as error:
        return type(error)
    return None if found is None else ({**found[0], "instances": []}, found[1].tolist())


NUMBER = st.integers(-9, 9) | st.floats(-9, 9, allow_nan=False, width=16)
ROWS = st.lists(st.lists(NUMBER, min_size=2, max_size=2), max_size=9)
ODD = st.recursive(
    NUMBER | st.booleans() | st.none(), lambda each: st.lists(each, max_size=3), max_leaves=9
)
SETTINGS = st.none() | st.fixed_dictionaries({"tau": NUMBER, "prior": st.just({"target": [1, 2]})})


@settings(max_examples=300)
@given(ROWS | ODD, SETTINGS, st.booleans(), st.sampled_from([SPEC, FREE]), st.integers(1, 40))
def test_slices_give_what_the_whole_gives(rows, parameters, first, spec, slice_bytes):
    members = [("instances", rows), ("parameters", parameters)]
    body = json.dumps(dict(members if first else members[::-1])).encode()

    def sliced(body, spec):
        return in_slices(body, spec, slice_bytes=slice_bytes)

    found = outcome(sliced, body, spec)
    if found is not None:
        assert found == outcome(whole, body, spec)


@settings(max_examples=300)
@given(st.data())
def test_no_edit_of_a_body_makes_slices_accept_what_the_whole_refuses(data):
    body = bytearray(b'{"instances": [[1, 2], [3.5, -4], [5, 6e1]], "parameters": {"tau": 1}}')
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        new = data.draw(
            st.sampled_from(
                [b"", b",", b"[", b"]", b"{", b"}", b'"', b"1", b"-", b" ", b":", b"\\", b"e"]
            )
        )
        body[at : at + data.draw(st.integers(0, 2))] = new
    body = bytes(body)
    found = outcome(in_slices, body, SPEC)
    if isinstance(found, tuple):
        assert found == outcome(whole, body, SPEC)


DEEP = InputSpec(name="x", kind="tensor", shape=[None, None, None, 2], dtype="float32")
NESTED = st.recursive(
    NUMBER | st.none(), lambda each: st.lists(each, min_size=2, max_size=3), max_leaves=60
)


@settings(max_examples=300)
@given(st.lists(st.lists(st.lists(st.lists(NUMBER, min_size=2, max_size=2), min_size=1, max_size=4),
       min_size=1, max_size=4), min_size=1, max_size=2) | st.lists(NESTED, min_size=1, max_size=2),
       st.integers(1, 30), st.integers(1, 9))  # fmt: skip
@example([[[[0, 0]] * 4] * 2], 1, 1)
def test_parts_of_one_long_row_give_what_the_whole_gives(rows, slice_bytes, part_values):
    body = json.dumps({"instances": rows}).encode()

    def sliced(body, spec):
        return in_slices(body, spec, slice_bytes=slice_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_PART_VALUES", part_values)
        found = outcome(sliced, body, DEEP)
    assert found == outcome(whole, body, DEEP)


def test_a_long_row_is_decoded_in_parts_and_its_faults_are_named():
    numbers = ",".join(map(str, range(50_000)))
    body = b'{"instances": [[%b]]}' % numbers.encode()
    found = in_slices(body, FREE, slice_bytes=json_rows.SLICE_BYTES)
    assert np.array_equal(found[1], [np.arange(50_000)])
    with pytest.raises(InvalidInput, match="instance 0 holds null in column 50000"):
        in_slices(body.replace(b"]]}", b",null]]}"), FREE, slice_bytes=json_rows.SLICE_BYTES)
    with pytest.raises(InvalidInput, match="instance 0 holds lists in its values"):
        in_slices(b'{"instances": [[%b]]}' % body[15:-2], FREE, slice_bytes=json_rows.SLICE_BYTES)
    with pytest.raises(Malformed, match="not JSON: instances from 0 on"):
        in_slices(body.replace(b"]]}", b",]]}"), FREE, slice_bytes=json_rows.SLICE_BYTES)


def test_a_row_is_named_by_its_number_in_the_body():
    rows = [[1, 2]] * 50 + [[1, None]] + [[1, 2]] * 50
    with pytest.raises(InvalidInput, match="instance 50 holds null in column 1; expected numbers"):
        in_slices(json.dumps({"instances": rows}).encode())
    with pytest.raises(InvalidInput, match="instance 7 holds NaN or infinity"):
        in_slices(json.dumps({"instances": [[1, 2]] * 7 + [[1, 1e39]]}).encode())
    with pytest.raises(InvalidInput, match="instance 2 holds true"):
        in_slices(b'{"instances": [[1, 2], [3, 4], [true, 5]]}')


def test_rows_and_values_that_are_too_many_are_refused_before_they_are_decoded():
    with pytest.raises(TooLarge, match="more than 1000 instances"):
        in_slices(b'{"instances": [' + b"[]," * 10**6 + b"[]]}")
    with pytest.raises(InvalidInput, match="instance 1 holds more than 2 numbers"):
        in_slices(b'{"instances": [[1, 2], [' + b"1," * 10**6 + b"1]]}")
    with pytest.raises(InvalidInput, match="instance 0 holds more than 1000000 numbers"):
        in_slices(b'{"instances": [[' + b"1," * 5 * 10**6 + b"1]]}", FREE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": ["a"]}',
        b'{"inst\\u0061nces": [[1, 2]]}',
        b'{"instances": 1}',
        b'{"other": [1]}',
        b"[]",
        b'"',
        b'{"parameters": {"instances": [[1, 2]]}}',
        b'{"instances": [[1, 2]], "instances": [[1, 2]]}',
    ],
)
def test_a_body_that_is_not_simple_is_left_to_be_decoded_whole(body):
    assert outcome(in_slices, body, SPEC) in (None, Malformed)


def test_a_large_body_becomes_its_array():
    x = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    wanted = InputSpec(name="x", kind="tensor", shape=[None, 64], dtype="float32")
    body = json.dumps({"instances": x.tolist()}).encode()
    _, found = in_slices(body, wanted, slice_bytes=20_000)
    np.testing.assert_array_equal(found, x)


TEXTS = st.text(st.sampled_from('a"\\[]{},: ä\n'), max_size=6)
ITEMS = st.recursive(
    NUMBER | TEXTS | st.booleans() | st.none(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.lists(ITEMS, min_size=1, max_size=9), SETTINGS, st.booleans(), st.integers(1, 40))
def test_a_list_of_anything_is_read_in_slices_as_it_is_read_whole(items, parameters, pretty, size):
    body = json.dumps({"instances": items, "parameters": parameters}, indent=1 if pretty else None)
    expected = json.loads(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_BLOCK_BYTES", size)
        patch.setattr(json_rows, "SLICE_BYTES", size + 20)
        found = json_rows.document_of_json(
            body.encode(), member="instances", allowed=ALLOWED, max_rows=9
        )
    assert found == expected


def test_a_list_of_anything_has_bounds():
    def read(body, max_rows=3):
        return json_rows.document_of_json(
            body, member="instances", allowed=ALLOWED, max_rows=max_rows
        )

    with pytest.raises(TooLarge, match="more than 3 instances"):
        read(b'{"instances":["a","b","c","d"]}')
    with pytest.raises(Malformed, match="more than one member"):
        read(b'{"instances":["a"],"parameters":{},"instances":[]}')
    with pytest.raises(InvalidInput, match="no instances"):
        read(b'{"instances":[ ]}')
    with pytest.raises(TooLarge, match="bytes of JSON; at most"):
        read(b'{"instances":["' + b"a" * (json_rows.MAX_ROW_BYTES + 1) + b'"]}')
    for broken in (b'{"instances":["a",]}', b'{"instances":["a"', b'{"instances":["a]}'):
        with pytest.raises(Malformed):
            read(broken)


CUBE = InputSpec(name="x", kind="tensor", shape=[None, 2, 1, 3], dtype="float32")
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.1, -0.0, 1e-45, 4.9e-324, 1e38, 3.5e38, 1e300, 2**53 + 1, True, None, "1"]),
)
SPACES = st.sampled_from([None, (", ", ": "), (",", ":"), (" ,\n", " :\t")])


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=1, max_size=3), SPACES)
def test_a_short_body_of_numbers_is_read_as_any_body_is(rows, separators):
    body = json.dumps({"instances": rows}, separators=separators).encode()
    found = ShortJson(SPEC).read(body)
    if found is not None:
        assert found.tobytes() == whole(body)[1].tobytes()


@pytest.mark.parametrize("spec", [SPEC, CUBE, InputSpec(**{**dict(SPEC), "dtype": "float64"})])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), ("\n,", " : ")])
def test_ordinary_bodies_of_numbers_take_the_short_way(spec, rows, separators):
    values = np.random.default_rng(0).normal(size=(rows, *spec.shape[1:])).astype(np.float32)
    body = json.dumps({"instances": values.tolist()}, separators=separators).encode()
    found = ShortJson(spec).read(body)
    assert found is not None
    assert found.dtype == spec.dtype
    assert (found == values).all()


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[[1,2],[3]]}',
        b'{"instances":[[1],[2,3,4]]}',
        b'{"instances":[[1,2],3,4]}',
        b'{"instances":[[1,2],[[3,4]]]}',
        b'{"instances":[[[1,2]]]}',
        b'{"instances":[1,2]}',
        b'{"instances":[[1,2]],"instances":[[3,4]]}',
        b'{"instances":[[1,2]],"parameters":{}}',
        b'{"instances":[[1,true]]}',
        b'{"instances":[[1,null]]}',
        b'{"instances":[[1,{}]]}',
        b'{"instances":[[1,"2"]]}',
        b'{"instances":[[1,1e400]]}',
        b'{"instances":[[1,9007199254740993]]}',
        b'{"instances":[[1,3.5e38]]}',
        b'{"instances":[[1,01]]}',
        b'{"instances":[[1,NaN]]}',
        b'{"instances":[[1,2]]',
        b'{"instances":[[1,2]]}]}',
        b'{"instances":[[1,2,]]}',
        b'{"instances":[]}',
        b'{"instances":7}',
        b'{"instances":[[1,2]]} x',
        b'\xef\xbb\xbf{"instances":[[1,2]]}',
        b'{"instances\\u0020":[[1,2]]}',
        b"",
    ],
)
def test_whatever_is_not_plain_is_left_to_the_reader_of_all_bodies(body):
    reader = ShortJson(SPEC)
    assert reader.read(body) is None
    assert reader.read(b'{"instances":[[1,2]]}').tolist() == [[1, 2]]  # the parser can go on


def test_without_simdjson_every_body_is_left_to_the_reader_of_all_bodies(monkeypatch):
    monkeypatch.setattr(json_rows, "simdjson", None)
    assert ShortJson(SPEC).read(b'{"instances":[[1,2]]}') is None


def test_a_document_is_read_although_no_file_can_be_opened():
    """The codec was read from its file by the first request, which got 500 without descriptors."""
    script = """
import resource
from service.wire.json_text import parse_storable
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
assert parse_storable(b'{"target": "uniform"}') == {"target": "uniform"}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
