"""Reads numbers that a client writes as text, at a bounded cost.

int() and float() accept other alphabets' digits, underscores and the words nan and inf. int() takes
quadratic time for long texts, and raises ValueError from 4,301 digits on.
"""

import re

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MOST_CHARACTERS = 400
"""The most characters of a decimal number: float() needs no more digits for a double."""


def whole_number(text: str | bytes, *, below: int) -> int | None:
    """Parse a whole number in ASCII digits. None for any other text, and for `below` or more."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip(b"0" if isinstance(text, bytes) else "0")  # type: ignore[arg-type]
    if len(digits) > len(str(below)):
        return None
    number = int(digits or 0)
    return number if number < below else None


def decimal_number(text: str) -> float | None:
    """Parse a decimal number in ASCII: sign, digits, point and exponent. None for any other text.

    It is infinite where a double cannot hold it.
    """
    if len(text) > _MOST_CHARACTERS or not _DECIMAL.fullmatch(text):
        return None
    return float(text)
