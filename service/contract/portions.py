"""Decodes a JSON text, and checks a long list, in portions.

A decoder in C, or pydantic, holds the interpreter lock until it has finished. For a model.json of a
million classes that takes 0.4 s, during which no other thread can run, not even the event loop.
Here, one call handles a few hundred values.
"""

import gc
import json
import math
import re
from collections.abc import Sized
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapSerializer,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.contract.members.named import SLICE, VAST

MAX_LEVELS = 100
"""The deepest nesting that is decoded."""
MAX_MEMBERS = 10_000
"""The most members of one object: one call of pydantic looks at all of them."""
MAX_TEXT_BYTES = 2**20
"""The longest text, as JSON: one call decodes it."""
MAX_FAULTS = 20
"""The most faults of one list that are described: there can be one for each entry."""
MORE_FAULTS = "more_faults"
"""The type of the error that stands for a list's further faults; its context holds their
`count`.
"""

_T = TypeVar("_T")
_BLANKS = rb"[ \t\r\n]{0,1000}+"
_SHORT_TEXT = rb'"[^"\\\x00-\x1f]{0,200}+(?:\\.[^"\\\x00-\x1f]{0,200}+){0,32}+"'
_WORD = rb'[^"\[\]{},:\s]{1,5000}+'
_SHORT = rb"%b(?>%b|%b)%b" % (_BLANKS, _SHORT_TEXT, _WORD, _BLANKS)
_SHORT_LIST = rb"%b\[(?>%b,){0,64}+%b\]%b" % (_BLANKS, _SHORT, _SHORT, _BLANKS)
_RUN = re.compile(rb"(?>(?>%b|%b),){1,512}+" % (_SHORT, _SHORT_LIST))
"""List items that contain no further list or object, each with the comma after it."""
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_A_WORD = re.compile(_WORD)
_SKIPPED = re.compile(_BLANKS)
_MAY_BE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Undecodable(ValueError):
    """A text that is not JSON, or not within the limits above; the message names the place."""


class _Found(NamedTuple):
    value: Any
    end: int


def decode(text: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises Undecodable.

    Stricter than Python's decoder: no NaN and infinity, no member that occurs twice, and no half of
    a surrogate pair.
    """
    value, end = _Reader(text).value(0, 0)
    end = _skipped(text, end)
    if end < len(text):
        raise _fault(text, end, "not JSON: expected the end of the text")
    return value


class _Reader:
    """Reads one text. Positions are in bytes."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def value(self, at: int, level: int) -> _Found:
        """The value that begins at or after a position."""
        at = _skipped(self._text, at)
        first = self._text[at : at + 1]
        if first in (b"[", b"{"):
            if level == MAX_LEVELS:
                raise _fault(
                    self._text, at, f"nested too deeply; expected at most {MAX_LEVELS} levels"
                )
            return self._list(at + 1, level) if first == b"[" else self._object(at + 1, level)
        if first == b'"':
            return self._string(at)
        word = _A_WORD.match(self._text, at)
        if word is None:
            raise _fault(self._text, at, "not JSON: expected a value")
        return _Found(self._decoded(at, word.end())[0], word.end())

    def _list(self, at: int, level: int) -> _Found:
        found: list[Any] = []
        at = _skipped(self._text, at)
        if self._text[at : at + 1] == b"]":
            return _Found(found, at + 1)
        while True:
            while (run := _RUN.match(self._text, at)) is not None:
                found += self._decoded(at, run.end() - 1)
                at = run.end()
            value, at = self.value(at, level + 1)
            found.append(value)
            at, ended = self._behind(at, b"]")
            if ended:
                _seen_by_collector(found)
                return _Found(found, at)

    def _object(self, at: int, level: int) -> _Found:
        found: dict[str, Any] = {}
        at = _skipped(self._text, at)
        if self._text[at : at + 1] == b"}":
            return _Found(found, at + 1)
        while True:
            at = begin = _skipped(self._text, at)
            if self._text[at : at + 1] != b'"':
                raise _fault(
                    self._text, at, "not JSON: expected the name of a member, in double quotes"
                )
            name, at = self._string(at)
            if name in found:
                twice = f"'{name[:60]}' occurs twice in one object; keep one of them"
                raise _fault(self._text, begin, twice)
            if len(found) == MAX_MEMBERS:
                raise _fault(
                    self._text, begin, f"an object has more members; expected at most {MAX_MEMBERS}"
                )
            at = _skipped(self._text, at)
            if self._text[at : at + 1] != b":":
                raise _fault(self._text, at, "not JSON: expected ':'")
            found[name], at = self.value(at + 1, level + 1)
            at, ended = self._behind(at, b"}")
            if ended:
                return _Found(found, at)

    def _behind(self, at: int, closing: bytes) -> tuple[int, bool]:
        """(the position behind a comma or the closing bracket, whether it was the bracket)."""
        at = _skipped(self._text, at)
        mark = self._text[at : at + 1]
        if mark not in (b",", closing):
            raise _fault(self._text, at, f"not JSON: expected ',' or '{closing.decode()}'")
        return at + 1, mark == closing

    def _string(self, at: int) -> _Found:
        text = _TEXT.match(self._text, at, at + MAX_TEXT_BYTES)
        if text is None:
            raise _fault(
                self._text, at, f"a text has no end; expected one within {MAX_TEXT_BYTES} bytes"
            )
        return _Found(self._decoded(at, text.end())[0], text.end())

    def _decoded(self, begin: int, end: int) -> list[Any]:
        """The values between two positions, with commas between them."""
        part = self._text[begin:end]
        try:
            items = f"[{part.decode()}]"
            values: list[Any] = json.loads(items, parse_float=_finite, parse_constant=_no_constant)
            if _MAY_BE_SURROGATE.search(part):
                json.dumps(values, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            within = len(items[1 : error.pos].encode())
            raise _fault(self._text, begin + within, f"not JSON: {error.msg}") from None
        except UnicodeEncodeError:
            raise _fault(
                self._text, begin, "a text holds half of a surrogate pair; expected both halves"
            ) from None
        except UnicodeDecodeError as error:
            raise _fault(self._text, begin + error.start, "not JSON: expected UTF-8") from None
        except ValueError as error:
            raise _fault(self._text, begin, f"not JSON that can be read: {error}") from None
        return values


def release(document: object) -> None:
    """Empty the long lists of a decoded document, in slices: freeing one takes up to 30 ms."""
    level = [document]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            level += item.values()
        elif isinstance(item, list):
            while len(item) > SLICE:
                del item[-SLICE:]
            level += item


def _skipped(text: bytes, at: int) -> int:
    """The position of the first byte at or after `at` that is not a blank."""
    while text[at : at + 1].isspace():
        found = _SKIPPED.match(text, at)
        assert found is not None
        if found.end() == at:  # a blank that JSON does not have
            break
        at = found.end()
    return at


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is larger than a double can hold; give a smaller one")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"'{word}' is not a JSON number; write null for a missing value")


def _fault(text: bytes, at: int, what: str) -> Undecodable:
    line = text.count(b"\n", 0, at) + 1
    column = at - text.rfind(b"\n", 0, at)
    return Undecodable(f"{what} (line {line}, column {column})")


def _in_slices(given: object, check: ValidatorFunctionWrapHandler) -> Any:
    """The list as pydantic checks it, a slice at a time."""
    if not isinstance(given, list) or len(given) <= SLICE:
        return check(given)
    found: list[Any] = []
    faults: list[InitErrorDetails] = []
    more = 0
    for at in range(0, len(given), SLICE):
        try:
            found += check(given[at : at + SLICE])
        except ValidationError as error:
            left = MAX_FAULTS - len(faults)
            if left:
                faults += _moved(error, at)[:left]
            more += max(0, error.error_count() - left)
    if faults:
        if more:
            more_faults = PydanticCustomError(MORE_FAULTS, "{count} more faults", {"count": more})
            faults.append(InitErrorDetails(type=more_faults, loc=(), input=None))
        raise ValidationError.from_exception_data("list", faults)
    kept = tuple(found)
    del found
    _seen_by_collector(kept)
    return kept


def _seen_by_collector(made: Sized) -> None:
    """Let the garbage collector visit one vast list or tuple now: up to 30 ms for a million
    entries.

    A later collection would otherwise visit several of them in one go.
    """
    if len(made) > VAST:
        gc.collect(0)


def _as_list(kept: Any, write: SerializerFunctionWrapHandler) -> Any:
    return write(list(kept) if isinstance(kept, tuple) else kept)


def left_out(error: ValidationError) -> int:
    """How many faults of long lists are counted in an error and not described."""
    found = error.errors(include_url=False, include_input=False)
    return sum(each["ctx"]["count"] for each in found if each["type"] == MORE_FAULTS)


def _moved(error: ValidationError, by: int) -> list[InitErrorDetails]:
    """The faults of a slice as faults of the list that it begins at."""
    moved = []
    for each in error.errors(include_url=False, include_context=False):
        first, *rest = each["loc"]
        assert isinstance(first, int)
        moved.append(
            InitErrorDetails(
                type=PydanticCustomError(each["type"], each["msg"]),
                loc=(first + by, *rest),
                input=each["input"],
            )
        )
    return moved


Long = Annotated[list[_T], WrapValidator(_in_slices), WrapSerializer(_as_list)]
"""A list of any length; a long one becomes a tuple.

Each full garbage collection visits every entry of a list, in one go. It visits the entries of a
tuple of texts or numbers only once. Limits of the length belong around this type, since each slice
is checked alone.
"""
