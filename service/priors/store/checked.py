"""Checks the values that a store returns: SQLite accepts any type in any column, and either engine
may hold values that were altered by hand.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Row

from service.priors.revisions import StoreUnavailable

log = logging.getLogger(__name__)

MAX_WHOLE = 2**63 - 1
_SHOWN = 60
_RESTORE = "restore the store from a backup"


def whole_of(value: object, what: str) -> int:
    """A whole number from 0 to 2^63 − 1. Raises StoreUnavailable for anything else."""
    if not is_whole(value):
        shown = repr(value)[:_SHOWN]
        raise StoreUnavailable(
            "corrupt", f"{what} is {shown}; expected a whole number of at least 0: {_RESTORE}"
        )
    assert isinstance(value, int)
    return value


def text_of(value: object, what: str) -> str:
    """A text. Raises StoreUnavailable for anything else."""
    if not isinstance(value, str):
        shown = repr(value)[:_SHOWN]
        raise StoreUnavailable("corrupt", f"{what} is {shown}; expected a text: {_RESTORE}")
    return value


def is_whole(value: object) -> bool:
    """Whether a value is a whole number from 0 to 2^63 − 1."""
    return type(value) is int and 0 <= value <= MAX_WHOLE


def readable_rows(
    rows: Iterable[Row[Any]], *, numbers: tuple[str, ...], texts: tuple[str, ...]
) -> list[Row[Any]]:
    """The rows in which these columns have their type; a line in the log for each other row."""
    found = []
    for row in rows:
        wrong = [name for name in numbers if not is_whole(getattr(row, name))]
        wrong += [name for name in texts if not isinstance(getattr(row, name), str)]
        if not wrong:
            found.append(row)
            continue
        log.error(
            "a row of the store is left out, since its %s is %.60r; restore the store from a "
            "backup",
            wrong[0],
            getattr(row, wrong[0]),
        )
    return found


@contextmanager
def readable(what: str, remedy: str = _RESTORE) -> Iterator[None]:
    """Turn the errors of reading a value of the wrong form into StoreUnavailable."""
    try:
        yield
    except StoreUnavailable:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
        raise StoreUnavailable("corrupt", f"{what} is damaged; {remedy}") from None
