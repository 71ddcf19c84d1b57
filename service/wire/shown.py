"""Shows a received value in an error message: shortened, or by its kind when it is long."""

from collections.abc import Mapping, Sequence

NO_ROWS = "there are no instances; expected at least one row"
"""The message about a request without rows."""


def short(value: object, limit: int = 60) -> str:
    """A JSON value in at most `limit` characters; lists and objects as "a list" or "an object"."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        text = repr(value[:limit])
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shape_words(shape: Sequence[int | None]) -> str:
    """A model's input shape in words, such as [batch, 3, any]."""
    return "[" + ", ".join(["batch", *("any" if n is None else str(n) for n in shape[1:])]) + "]"
