"""A small body that declares large data costs no more memory than its limit: it is refused before
the allocation.
"""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.inputs.spec import InputSpec
from service.wire import digits, parameters
from service.wire.arrays import MAX_TENSOR_BYTES, array_of, cast, may_hold_strings
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.json_text import MAX_DECODED_BYTES, holds, parse_json, parse_storable

MIB = 2**20
NUMBERS = InputSpec(name="x", kind="tensor", shape=[None, 3], dtype="float32")


@pytest.fixture
def peak():
    """The most memory that Python and NumPy have allocated so far, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_one_long_string_does_not_give_its_width_to_every_element(peak):
    body = json.dumps({"instances": ["x" * 200_000] + [""] * 3000}).encode()
    assert may_hold_strings(body)
    with pytest.raises(InvalidInput, match="instance 0 is 'xxx"):
        array_of(parse_json(body)["instances"], NUMBERS)
    nested = [["x" * 200_000, 1, 2]] + [[0, 1, 2]] * 3000
    with pytest.raises(InvalidInput, match="instance 0 holds 'xxx"):
        array_of(nested, NUMBERS)
    assert peak() < 4 * 2**20


@pytest.mark.parametrize("item", [b"[],", b'{"":0},', b"[1],", b"1,", b"[[[[]]]],", b'"",'])
def test_json_of_many_small_values_is_refused_before_it_is_decoded(peak, item):
    body = b'{"instances":[' + item * (16 * 2**20 // len(item)) + b"0]}"
    before = peak()
    with pytest.raises(TooLarge, match=r"decoded it would need|texts and names"):
        parse_json(body)
    assert peak() - before < 2**20


@pytest.mark.parametrize("item", [b"[]", b'{"":0}', b"[1]", b"1.5", b'""', b'{"a":{}}', b"null"])
def test_the_estimate_of_decoded_json_is_not_far_below_its_memory(peak, item):
    size, count = 0, 16 * 2**10
    body = b"[" + b",".join([item] * count) + b"]"
    before = peak()
    parsed = parse_json(body)
    size = peak() - before
    assert len(parsed) == count
    estimate = 40 * body.count(b",") + 64 * body.count(b"[") + 240 * body.count(b"{")
    assert size < 2 * estimate + len(body)
    assert estimate < MAX_DECODED_BYTES


def test_json_that_nests_without_end_is_malformed():
    for body in (b"[" * 10**6, b'{"instances": ' + b"[" * 10**6):
        with pytest.raises(Malformed):
            parse_json(body)


BODIES = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(BODIES, max_size=4),
    st.sampled_from([None, {"prior": "a"}, {"target": [1, 2]}]),
    st.booleans(),
)
def test_a_body_that_is_said_to_hold_no_strings_holds_none(instances, settings, first):
    padding = " " * 3000  # a short body may hold strings: they cannot become a large array
    members = [("instances", instances), ("parameters", settings)]
    parts = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in (members if first else members[::-1])]
    body = ("{" + ",".join(parts) + padding + "}").encode()
    if not may_hold_strings(body):
        text = json.dumps(instances)
        assert '"' not in text
        assert "true" not in text
        assert "false" not in text


def test_numbers_alone_are_known_to_hold_no_strings():
    rows = [[0.5] * 100] * 20
    assert not may_hold_strings(json.dumps({"instances": rows}, separators=(",", ":")).encode())
    both = {"instances": rows, "parameters": {"prior": "default"}}
    assert not may_hold_strings(json.dumps(both, separators=(",", ":")).encode())
    twice = b'{"instances":[1],"instances":["a"]' + b" " * 3000 + b"}"
    assert may_hold_strings(twice)
    hidden = b'{"instances":[1],"inst\\u0061nces":["a"]' + b" " * 3000 + b"}"
    assert may_hold_strings(hidden)


def test_a_conversion_to_a_wider_type_is_bounded():
    many = np.broadcast_to(np.zeros(1, np.uint8), (MAX_TENSOR_BYTES // 8 + 1,))
    with pytest.raises(TooLarge, match="as float64"):
        cast(many, np.dtype("float64"))


def test_only_short_queries_are_kept():
    parameters._cached_query.cache_clear()
    for number in range(3000):
        assert parameters.query_parameters(b"prior=" + b"a" * 300 + b"%d" % number).prior
    assert parameters._cached_query.cache_info().currsize == 0
    for number in range(3000):
        assert parameters.query_parameters(b"prior=a%d" % number).prior
    assert parameters._cached_query.cache_info().currsize <= 1024


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("007", 7),
        ("0", 0),
        ("99", 99),
        ("100", None),
        ("", None),
        ("+7", None),
        ("1_0", None),
        ("٧", None),
        ("9" * 5000, None),
        ("0" * 5000, 0),
        (b"7", 7),
        (b"9" * 5000, None),
        (b"\xb2", None),
    ],
)
def test_a_whole_number_has_ascii_digits_and_a_bound(text, number):
    assert digits.whole_number(text, below=100) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("7.", 7.0),
        ("1e999", float("inf")),
        *((wrong, None) for wrong in ("", ".", "1_0", "٧", " 1", "1\n", "nan", "0x1", "9" * 401)),
    ],
)
def test_a_decimal_number_has_ascii_digits_and_a_bound(text, number):
    assert digits.decimal_number(text) == number


@pytest.mark.parametrize("at", [0, 1, MIB - 4, MIB - 1, MIB, 2 * MIB - 3, 3 * MIB - 7])
def test_a_word_of_a_long_body_is_found_wherever_it_stands(at):
    body = bytearray(b"versio" * (MIB // 2))
    assert not holds(body, b"version")
    body[at : at + 7] = b"version"
    assert holds(body, b"version")
    assert holds(body, b"version", at)
    assert not holds(body, b"version", at + 1)


@pytest.mark.parametrize("blanks", [b"", b" \n" * 4000, b" " * 20_000])
def test_strings_hidden_behind_many_blanks_are_told(blanks):
    filler = b"[" + b"1," * 2000 + b"1]"
    body = b'{"instances":%b%b}' % (blanks, filler)
    assert may_hold_strings(body) is (len(blanks) > 16_384)
    assert may_hold_strings(b'{"instances":%b"a",%b}' % (blanks, filler))


@pytest.mark.parametrize(
    "odd",
    [
        b"NaN", b"-Infinity", b"1e309", b"-1e309", b"9" * 400, b"9" * 5000, b"01", b"1.", b"+1",
        b"1_0", b"\xd9\xa1", b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\u0000"', b'"a\nb"',
        b"]", b'{"a": 1, "a": 2}', b"[" * 40 + b"]" * 40, b"nul", b"'a'", b"1 /* a */", b"",
    ],
)  # fmt: skip
def test_a_long_body_to_be_stored_is_read_as_strictly_as_a_short_one(odd):
    """From 256 KiB on, it is decoded in steps that let other threads run."""
    for filling in (b"", b"0," * 140_000):
        with pytest.raises((Malformed, InvalidInput, TooLarge)):
            parse_storable(b'{"target": [' + filling + odd + b", 1]}")


@pytest.mark.parametrize("parse", [parse_json, parse_storable])
@pytest.mark.parametrize("marks", [2, 5000])
def test_one_byte_order_mark_is_skipped_and_more_are_no_json(parse, marks):
    """A body of nothing else must neither be copied for each mark nor exhaust the stack."""
    assert parse(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(Malformed):
        parse(b"\xef\xbb\xbf" * marks + b"[1]")


def test_a_long_body_to_be_stored_is_what_it_says():
    rest = b'1, 2.5, -0.0, 1e300, 18446744073709551616, "\xc3\xa9", "\\u00e9", null, true'
    short, long = (
        parse_storable(b'{"target": [' + filling + rest + b"]}")["target"]
        for filling in (b"", b"0," * 140_000)
    )
    assert repr(long[-9:]) == repr(short)
    for filling in (b"", b"0," * 140_000):  # a byte order mark says nothing
        body = b'{"target": [' + filling + b"1]}"
        assert parse_storable(b"\xef\xbb\xbf" + body) == parse_storable(body)
    with pytest.raises(Malformed):
        parse_storable(('{"target": [' + "0," * 140_000 + "1]}").encode("utf-16"))
