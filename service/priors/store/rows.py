"""Entries of the history as rows, with a checksum that reveals a damaged one."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Row

from service.contract.members.body import PriorBody, body_of, document_of
from service.priors.revisions import StoredRevision
from service.process.slices import decoded, stored_json

_SLICE_CHARACTERS = 2**18
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, UTC: the one form of time that both engines store unchanged."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(since_1970: int) -> datetime:
    """The moment of microseconds since 1970, UTC."""
    try:
        return _EPOCH + timedelta(microseconds=since_1970)
    except (OverflowError, TypeError, ValueError):  # damaged
        return _EPOCH


def row_of(entry: StoredRevision) -> dict[str, Any]:
    """The values of an entry's row."""
    body = None
    if entry.body is not None:
        body = stored_json(document_of(entry.body, without=("note",)))
    values: dict[str, Any] = {
        "change": entry.change,
        "model": entry.model,
        "name": entry.name,
        "revision": entry.revision,
        "class_digest": entry.class_digest,
        "updated_us": microseconds(entry.updated_at),
        "author": entry.by,
        "note": entry.note,
        "body": body,
        "deleted": int(entry.deleted),
    }
    return {**values, "checksum": _checksum(values)}


IDENTITY: dict[str, tuple[str, ...]] = {
    "numbers": ("change", "revision"),
    "texts": ("model", "name"),
}
"""The columns that every entry of the history must have."""


def entry_of(row: Row[Any]) -> StoredRevision:
    """The entry of a complete row; marked as damaged when its checksum does not match.

    The columns of IDENTITY must have their types.
    """
    values = {name: value for name, value in row._mapping.items() if name != "checksum"}  # noqa: SLF001 - public API
    damaged = _checksum(values) != row.checksum
    body = None
    if not damaged and row.body is not None:
        try:
            body = body_of({**decoded(row.body), "note": row.note})
        except (
            ValidationError,
            ValueError,
            TypeError,
            RecursionError,
        ):  # a prior in a form that this version of the program does not know
            damaged = True
    return _entry(row, body, damaged=damaged)


def bare_entry_of(row: Row[Any]) -> StoredRevision:
    """The entry of a row that was read without its body, and so unchecked."""
    return _entry(row, None, damaged=False)


def _entry(row: Row[Any], body: PriorBody | None, *, damaged: bool) -> StoredRevision:
    return StoredRevision(
        model=row.model,
        name=row.name,
        revision=row.revision,
        body=body,
        class_digest=str(row.class_digest),
        updated_at=moment(row.updated_us),
        by=str(row.author),
        note=str(row.note),
        deleted=bool(row.deleted) and not damaged,
        change=row.change,
        damaged=damaged,
    )


def _checksum(values: dict[str, Any]) -> str:
    """The digest of the values as JSON with sorted members; a long text is encoded in slices."""
    found = hashlib.sha256()
    for at, (name, value) in enumerate(sorted(values.items())):
        found.update(f"{', ' if at else '{'}{json.dumps(name)}: ".encode())
        if not isinstance(value, str):
            found.update(json.dumps(value, sort_keys=True, default=repr).encode())
            continue
        found.update(b'"')
        for begin in range(0, len(value), _SLICE_CHARACTERS):
            part = json.dumps(value[begin : begin + _SLICE_CHARACTERS])
            found.update(part[1:-1].encode())
        found.update(b'"')
    found.update(b"}")
    return found.hexdigest()
