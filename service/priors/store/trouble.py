"""Maps the errors of database drivers to kinds of StoreUnavailable."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    MultipleResultsFound,
    NoResultFound,
    SQLAlchemyError,
)

from service.priors.revisions import StoreTrouble, StoreUnavailable
from service.process.allowance import file_limit

_SQLITE: tuple[tuple[str, StoreTrouble], ...] = (
    ("readonly", "read-only"),
    ("read-only", "read-only"),
    ("disk is full", "full"),
    ("malformed", "corrupt"),
    ("not a database", "corrupt"),
    ("no such table", "corrupt"),
    ("no such column", "corrupt"),
    ("locked", "slow"),
    ("busy", "slow"),
)

_SQLSTATE: tuple[tuple[str, StoreTrouble], ...] = (
    ("25006", "read-only"),
    ("53100", "full"),
    ("55P03", "slow"),  # lock not available
    ("57014", "slow"),  # statement timeout
    ("XX001", "corrupt"),
    ("XX002", "corrupt"),
    ("42P01", "corrupt"),  # a table of the store is missing
    ("42703", "corrupt"),
    ("22003", "corrupt"),  # a number out of range: the counter was altered
    ("42501", "read-only"),  # insufficient privilege
)

_ADVICE: dict[StoreTrouble, str] = {
    "away": "check --store, and that this user can reach it",
    "full": "free space on the disk of the store",
    "slow": "try again; if it stays slow, end what locks or delays the store",
    "corrupt": "restore the store from a backup",
    "read-only": "give this user the right to write to it (of a file, to its folder too)",
}


_REFUSED: tuple[tuple[str, str], ...] = (
    (
        r"password authentication failed|not permitted to log in|no pg_hba|role .* does not exist",
        "check the user and the password in --store, and what the server permits them",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved",
        "raise the server's limit of connections, or end some of them",
    ),
    (
        "in a read-only transaction",
        "give the primary, not a standby, with --store, and unset default_transaction_read_only",
    ),
)
"""Errors of PostgreSQL whose words say more than their kind, and what to do about each."""


@contextmanager
def typed_trouble() -> Iterator[None]:
    """Turn every failure of the database into StoreUnavailable."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise trouble_of(error) from error


def trouble_of(error: Exception) -> StoreUnavailable:
    """The kind and text of a failure, on one line and without the statement's parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(error, (NoResultFound, MultipleResultsFound, IntegrityError)):
        return StoreUnavailable(
            "corrupt", "its tables contradict each other; restore the store from a backup"
        )
    words = " ".join(str(cause).split())[:300] or type(cause).__name__
    if isinstance(cause, OSError) and cause.filename is not None:
        words = f"'{cause.filename}': {cause.strerror}"
    kind = _kind_of(cause, words)
    limit = file_limit()
    if limit is not None and "disk I/O error" in words:
        kind, advice = "full", limit
    elif "not a database" in words:
        advice = "expected one that this service made: name another with --store"
    else:
        fitting = (advice for pattern, advice in _REFUSED if re.search(pattern, words))
        advice = next(fitting, _ADVICE.get(kind, ""))
    return StoreUnavailable(kind, f"{words}; {advice}" if advice else words)


def _kind_of(cause: BaseException, words: str) -> StoreTrouble:
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return dict(_SQLSTATE).get(state, "away")
    return next((kind for part, kind in _SQLITE if part in words), "away")
