"""Long documents are decoded and checked in portions, as strictly as short ones in one call."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from service.contract import portions
from service.contract.bundle import InvalidBundle, parse_bundle
from service.contract.members.body import pydantic_errors
from service.contract.members.named import SLICE, VAST
from service.contract.portions import Long, Undecodable, decode, left_out, release
from service.contract.values import Positive
from tests.service.contract.test_bundle import WHOLE

LONGEST_CALL = 600
"""Values that one call may handle: 512 in a run, and some members around them."""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('aé\\"', max_size=5), inner),
    max_leaves=30,
)  # fmt: skip


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_is_decoded_as_by_json(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert decode(b" \n" + text + b"\t ") == value


@pytest.mark.parametrize(
    "items",
    [
        ["a, b]", 'c "\\d"', "é", ""] * 1000,
        [1, -2.5, 3e5, True, None] * 1000,
        [[1, 2], [], [[3]], ["x"]] * 500,
        [list(range(200))] * 20,
        [{"a": [1]}, 2] * 700,
        ["\\" * 300, "x" * 5000] * 300,
    ],
)
def test_long_lists_of_every_kind_are_decoded_as_by_json(items):
    for indent in (None, 2):
        assert decode(json.dumps({"items": items}, indent=indent).encode()) == {"items": items}


def test_no_call_decodes_more_than_a_portion(monkeypatch):
    sizes = []
    real = json.loads

    def counted(text, **how):
        found = real(text, **how)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(portions.json, "loads", counted)
    names, counts = [f"class {n}" for n in range(20_000)], list(range(1, 20_001))
    text = json.dumps(WHOLE | {"class_names": names, "class_counts": counts})
    bundle = parse_bundle(text)
    assert (list(bundle.class_names), list(bundle.class_counts)) == (names, counts)
    assert max(sizes) <= LONGEST_CALL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected a value (line 1, column 1)"),
        (b"[1,\n 2,,3]", "expected a value (line 2, column 4)"),
        (b"[1,]", "expected a value (line 1, column 4)"),
        (b"[1 2]", "expected ',' or ']' (line 1, column 4)"),
        (b'{"a" 1}', "expected ':' (line 1, column 6)"),
        (b"{a: 1}", "expected the name of a member, in double quotes"),
        (b'{"a": [];}', "expected ',' or '}'"),
        (b"{} {}", "expected the end of the text (line 1, column 4)"),
        (b"[NaN, 1]", "'NaN' is not a JSON number; write null for a missing value"),
        (b"1e999", "1e999 is larger than a double can hold"),
        (b"01", "line 1, column 2"),
        (b"[1, 2, ab, 3]", "Expecting value (line 1, column 8)"),
        (b"[\xa0]", "expected UTF-8 (line 1, column 2)"),
        (b'["a", "\xff", "b"]', "expected UTF-8 (line 1, column 8)"),
        (b"[\x0b1]", "expected a value"),
        (b'"a', "a text has no end; expected one within 1048576 bytes"),
        (b'"' + b"a" * 2**20 + b'"', "a text has no end; expected one within 1048576 bytes"),
        (b'["\\ud800", 1]', "a text holds half of a surrogate pair"),
        (b'["a\nb"]', "Invalid control character"),
        (b"1" * 5000, "5000"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice in one object; keep one of them"),
        (b"[" * 101, "nested too deeply; expected at most 100 levels (line 1, column 101)"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text, message):
    with pytest.raises(Undecodable) as refused:
        decode(text)
    assert message in str(refused.value)


def test_pairs_of_surrogates_and_many_blanks_are_json():
    assert decode(b" " * 5000 + b'["\\ud83d\\ude00"' + b"\n" * 3000 + b"]") == ["😀"]


def test_an_object_of_very_many_members_is_refused():
    most = portions.MAX_MEMBERS
    assert len(decode(json.dumps({str(n): n for n in range(most)}).encode())) == most
    with pytest.raises(Undecodable, match="expected at most 10000"):
        decode(json.dumps({str(n): n for n in range(most + 1)}).encode())


def test_a_name_that_is_half_of_a_pair_is_refused_in_a_text_that_python_made():
    with pytest.raises(InvalidBundle, match="expected UTF-8"):
        parse_bundle('{"name": "\ud800"}')


def test_faults_of_a_long_list_are_named_by_their_place_in_it_and_counted():
    numbers = [1.0] * (3 * SLICE)
    wrong = [SLICE + 5, *range(2 * SLICE, 2 * SLICE + 30)]
    for place in wrong:
        numbers[place] = 0.0
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Long[Positive]).validate_python(numbers)
    found = pydantic_errors(refused.value)
    assert [name for name, _ in found] == [str(place) for place in wrong[: portions.MAX_FAULTS]]
    assert found[0][1] == "Input should be greater than 0; got 0.0"
    assert left_out(refused.value) == len(wrong) - portions.MAX_FAULTS


def test_a_few_faults_of_a_long_list_are_all_named():
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Long[Long[int]]).validate_python([[1]] * SLICE + [[1, "x"]])
    assert refused.value.errors()[0]["loc"] == (SLICE, 1)
    assert left_out(refused.value) == 0


def test_a_list_stays_a_list_if_it_is_short_and_is_written_as_one_if_it_is_long():
    adapter = TypeAdapter(Long[int])
    assert adapter.validate_python([1, 2]) == [1, 2]
    kept = adapter.validate_python(list(range(VAST + 1)))
    assert isinstance(kept, tuple)
    assert adapter.dump_python(kept) == list(range(VAST + 1))
    assert adapter.dump_python([1, 2]) == [1, 2]


def test_what_is_no_list_is_refused_as_ever():
    with pytest.raises(ValidationError, match="valid list"):
        TypeAdapter(Long[int]).validate_python("12")


def test_released_documents_hold_nothing_long_any_more():
    kept = object()
    before = sys.getrefcount(kept)
    document = {"a": [[kept] * (2 * SLICE)], "b": 1}
    release(document)
    assert sys.getrefcount(kept) <= before + SLICE


def test_the_value_of_a_wrong_member_is_shown_by_its_beginning():
    with pytest.raises(InvalidBundle) as refused:
        parse_bundle(json.dumps(WHOLE | {"loss_tau": [list(range(100_000))] * 9}))
    assert "loss_tau: Input should be a valid number; got [[0, 1, 2" in str(refused.value)
    assert len(str(refused.value)) < 300
