"""Reads whole numbers that a client writes in digits, at a bounded cost."""


def whole_number(text: str | bytes, *, below: int) -> int | None:
    """The number that ASCII digits write; None for anything else and for `below` or more.

    int() accepts other alphabets, signs and underscores, takes quadratic time for long texts, and
    raises ValueError from 4,301 digits on.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip(b"0" if isinstance(text, bytes) else "0")  # type: ignore[arg-type]
    if len(digits) > len(str(below)):
        return None
    number = int(digits or 0)
    return number if number < below else None
