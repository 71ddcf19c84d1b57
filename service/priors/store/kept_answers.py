"""Answers that workers keep in the store for feedback, and the labels that were given for them.

They are not part of the history of priors. Each worker overwrites its own answers; labels are
appended, so that every worker can read those that others took. The tables are created when the
first answers are stored, so a store of an earlier version needs no migration.
"""

from collections.abc import Collection
from typing import NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import delete as sql_delete

from service.priors.store.checked import is_whole, readable_rows
from service.priors.store.engine import Database
from service.priors.store.reports import clock_us
from service.priors.store.trouble import typed_trouble

_LOCK = 0x616E7377  # any number, the same in every replica; another than the history's

_metadata = MetaData()
_answers = Table(
    "priordial_answers",
    _metadata,
    Column("model", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("keeper", String(300), primary_key=True),
    Column("kept_us", BigInteger, nullable=False),
    Column("rows", LargeBinary, nullable=False),
)
_labels = Table(
    "priordial_labels",
    _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("kept_us", BigInteger, nullable=False),
    Column("labels", LargeBinary, nullable=False),
)

_IDENTITY: dict[str, tuple[str, ...]] = {
    "numbers": ("version", "kept_us"),
    "texts": ("model", "keeper"),
}


def _bytes(value: object) -> bytes:
    """The bytes of a row; none where it holds anything else."""
    return value if isinstance(value, bytes) else b""


KeptAt: TypeAlias = tuple[str, int, str, int]
"""Model, version, keeper, and when answers were stored, in microseconds since 1970."""


class KeptAnswers(NamedTuple):
    """The answers that one worker gave for one model version. `keeper` names the worker by its
    replica and slot.
    """

    model: str
    version: int
    keeper: str
    kept_us: int
    rows: bytes


class KeptLabels(NamedTuple):
    """Labels that one request gave. `number` rises with each that is stored."""

    number: int
    model: str
    version: int
    labels: bytes


class AnswerStore:
    """The answers and labels in a store. Calls block, may be made from any thread, and raise
    StoreUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._made = False

    def keep(self, model: str, version: int, keeper: str, rows: bytes, *, seconds: float) -> None:
        """Replace the answers of the same keeper; remove what nobody has renewed for `seconds`."""
        mine = (
            (_answers.c.model == model)
            & (_answers.c.version == version)
            & (_answers.c.keeper == keeper)
        )
        with typed_trouble(), self._database.transaction() as connection:
            self._make(connection)
            now = clock_us(connection)
            values = {"kept_us": now, "rows": rows}
            if connection.execute(update(_answers).where(mine).values(values)).rowcount == 0:
                named = {"model": model, "version": version, "keeper": keeper}
                connection.execute(insert(_answers).values(**named, **values))
            old = now - round(seconds * 1_000_000)
            for table in (_answers, _labels):
                connection.execute(sql_delete(table).where(table.c.kept_us < old))

    def of(self, keeper: str) -> list[KeptAnswers]:
        """The answers that a keeper has stored."""
        return self._read(_answers.c.keeper == keeper)

    def changed(self, known: Collection[KeptAt], *, but: Collection[str]) -> list[KeptAnswers]:
        """The answers of all keepers but these, except those that were read before.

        known: (model, version, keeper, microseconds) of answers that were read before. The times
        are those of the keepers' clocks, so they are compared one by one.
        """
        columns = (_answers.c.model, _answers.c.version, _answers.c.keeper, _answers.c.kept_us)
        with typed_trouble(), self._database.engine.connect() as connection:
            if not self._is_made(connection):
                return []
            wanted = select(*columns).where(_answers.c.keeper.not_in(but))
            stored = readable_rows(connection.execute(wanted), **_IDENTITY)
        found: list[KeptAnswers] = []
        for row in stored:
            if tuple(row) not in known:
                found += self._read(
                    (_answers.c.model == row.model)
                    & (_answers.c.version == row.version)
                    & (_answers.c.keeper == row.keeper)
                )
        return found

    def add_labels(self, model: str, version: int, labels: bytes) -> None:
        """Store labels for answers of any replica."""
        values = {"model": model, "version": version, "labels": labels}
        with typed_trouble(), self._database.transaction() as connection:
            # Numbers are committed in their order, so that no reader passes one over.
            self._make(connection, lock=True)
            now = clock_us(connection)
            connection.execute(insert(_labels).values(kept_us=now, **values))

    def labels_after(self, number: int, *, most: int) -> list[KeptLabels]:
        """The labels that were stored after a number, the oldest first, at most `most` times."""
        with typed_trouble(), self._database.engine.connect() as connection:
            if not self._is_made(connection):
                return []
            later = select(_labels).where(_labels.c.number > number)
            rows = connection.execute(later.order_by(_labels.c.number).limit(most)).all()
        return [
            KeptLabels(row.number, row.model, row.version, _bytes(row.labels))
            if isinstance(row.model, str) and is_whole(row.version)
            else KeptLabels(row.number, "", 0, b"")  # damaged: of no version
            for row in rows
        ]

    def _read(self, which: ColumnElement[bool]) -> list[KeptAnswers]:
        with typed_trouble(), self._database.engine.connect() as connection:
            if not self._is_made(connection):
                return []
            rows = readable_rows(connection.execute(select(_answers).where(which)), **_IDENTITY)
        return [
            KeptAnswers(row.model, row.version, row.keeper, row.kept_us, _bytes(row.rows))
            for row in rows
        ]

    def _make(self, connection: Connection, *, lock: bool = False) -> None:
        if (lock or not self._made) and self._database.is_postgres:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        if not self._made:
            _metadata.create_all(connection)
            self._made = True

    def _is_made(self, connection: Connection) -> bool:
        if not self._made:
            self._made = inspect(connection).has_table(_labels.name)
        return self._made
