"""The stored states of the workers' traffic trackers: the newest state of each worker, by model.

States are not part of the history of priors. They are overwritten, and a lost one is rebuilt from
traffic. Their table is created when the first state is stored, so a store of an earlier version
needs no migration.
"""

import sqlite3
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    case,
    func,
    insert,
    inspect,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy import delete as sql_delete

from service.priors.store.checked import is_whole, readable_rows
from service.priors.store.engine import Database
from service.priors.store.reports import clock_us, time_us
from service.priors.store.rows import microseconds, moment
from service.priors.store.trouble import typed_trouble

_DAY_US = 86_400_000_000
FORGET_DAYS = 7
"""States that were not renewed for this long are removed."""
_LOCK = 0x7368696674  # any number: the same in every replica, and not that of the history

_PART_BYTES = 2**20
_ROW: ColumnElement[int] = literal_column("rowid")

_metadata = MetaData()
_states = Table(
    "priordial_tracking",
    _metadata,
    Column("model", String(64), primary_key=True),
    Column("keeper", String(300), primary_key=True),
    Column("class_digest", String(64), nullable=False),
    Column("kept_us", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("judged", Text, nullable=False),
)


@dataclass(frozen=True)
class KeptState:
    """The state of one worker: `keeper` is its replica and slot, `judged` a JSON document."""

    model: str
    keeper: str
    class_digest: str
    state: bytes
    judged: str = "{}"
    kept_at: datetime | None = None
    age: timedelta | None = field(default=None, compare=False)
    """How long ago it was stored, by the store's clock; None before it was."""


class KeptStates:
    """The states in a store. Calls block, may be made from any thread, and raise
    StoreUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._made = False

    def keep(self, kept: KeptState) -> None:
        """Replace the last state of the same keeper."""
        mine = (_states.c.model == kept.model) & (_states.c.keeper == kept.keeper)
        values: dict[str, Any] = {
            "class_digest": kept.class_digest,
            "state": self._placed(kept.state),
            "judged": kept.judged,
        }
        with typed_trouble(), self._database.transaction() as connection:
            if not self._made and self._database.is_postgres:
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
            if not self._made:
                _metadata.create_all(connection)
            now = clock_us(connection)
            values["kept_us"] = now
            if connection.execute(update(_states).where(mine).values(values)).rowcount == 0:
                named = {"model": kept.model, "keeper": kept.keeper}
                connection.execute(insert(_states).values(**named, **values))
            self._fill(connection, kept, kept.keeper)
            old = now - FORGET_DAYS * _DAY_US
            connection.execute(sql_delete(_states).where(_states.c.kept_us < old))
        self._made = True

    def of(self, model: str, *, but: str = "") -> list[KeptState]:
        """The states of a model, the newest first. but: a keeper whose state is not wanted."""
        with typed_trouble(), self._database.engine.connect() as connection:
            if not self._made and not inspect(connection).has_table(_states.name):
                return []
            wanted = select(*self._columns()).where(
                (_states.c.model == model) & (_states.c.keeper != but)
            )
            now = time_us(connection)
            rows = readable_rows(
                connection.execute(wanted.order_by(_states.c.kept_us.desc())),
                numbers=(),
                texts=("model", "keeper", "class_digest", "judged"),
            )
            return [self._kept_in(connection, row, moment(now)) for row in rows]

    def take_over(self, kept: KeptState, keeper: str) -> bool:
        """Give a state to another keeper, in place of that keeper's own.

        Returns False if the state has changed since it was read, as when another keeper was first.
        """
        if kept.kept_at is None:
            return False
        named = _states.c.model == kept.model
        unchanged = (_states.c.keeper == kept.keeper) & (
            _states.c.kept_us == microseconds(kept.kept_at)
        )
        with typed_trouble(), self._database.transaction() as connection:
            if not connection.execute(sql_delete(_states).where(named & unchanged)).rowcount:
                return False
            connection.execute(sql_delete(_states).where(named & (_states.c.keeper == keeper)))
            connection.execute(
                insert(_states).values(
                    model=kept.model,
                    keeper=keeper,
                    class_digest=kept.class_digest,
                    kept_us=clock_us(connection),
                    state=self._placed(kept.state),
                    judged=kept.judged,
                )
            )
            self._fill(connection, kept, keeper)
        return True

    def _kept_in(self, connection: Connection, row: Row[Any], now: datetime) -> KeptState:
        kept_at = moment(row.kept_us)
        return KeptState(
            row.model,
            row.keeper,
            row.class_digest,
            self._state(connection, row),
            row.judged,
            kept_at=kept_at,
            age=now - kept_at,
        )

    # ---- long states

    def _is_parted(self, size: int) -> bool:
        """Whether a state goes to SQLite in parts. From a store, every long state comes in parts.

        The driver copies a value in one call, which lets no other thread run: 52 MB for 1,000,000
        classes.
        """
        return not self._database.is_postgres and size > _PART_BYTES

    def _placed(self, state: bytes) -> Any:
        """The value of the column: the state, or room for its parts."""
        return func.zeroblob(len(state)) if self._is_parted(len(state)) else state

    def _fill(self, connection: Connection, kept: KeptState, keeper: str) -> None:
        """Write the parts of a long state into its row."""
        if self._is_parted(len(kept.state)):
            mine = (_states.c.model == kept.model) & (_states.c.keeper == keeper)
            row = connection.execute(select(_ROW).where(mine)).scalar_one()
            with _blob(connection, row) as blob:
                for at in range(0, len(kept.state), _PART_BYTES):
                    blob.write(kept.state[at : at + _PART_BYTES])

    def _columns(self) -> list[Any]:
        columns: list[Any] = list(_states.c)
        size = func.length(_states.c.state)
        is_long = size > _PART_BYTES
        if not self._database.is_postgres:
            is_long &= func.typeof(_states.c.state) == "blob"
        short = case((is_long, null()), else_=_states.c.state).label("state")
        columns[columns.index(_states.c.state)] = short
        own = [] if self._database.is_postgres else [_ROW.label("row")]
        return [*columns, *own, size.label("size")]

    def _state(self, connection: Connection, row: Row[Any]) -> bytes:
        """The state in a row of `_columns`; b"" if the row holds no state, or was replaced while it
        was read.
        """
        if row.state is not None or not (is_whole(row.size) and row.size > _PART_BYTES):
            return row.state if isinstance(row.state, bytes) else b""
        if self._database.is_postgres:
            return self._parts(connection, row)
        with _blob(connection, row.row) as blob:
            return b"".join(iter(partial(blob.read, _PART_BYTES), b""))

    def _parts(self, connection: Connection, row: Row[Any]) -> bytes:
        """Read a long state from PostgreSQL. The driver, too, turns a value into bytes in one call:
        26 MB held the interpreter lock for 0.2 s.
        """
        same = (_states.c.model == row.model) & (_states.c.keeper == row.keeper)
        parts = []
        for at in range(1, row.size + 1, _PART_BYTES):
            part = func.substring(_states.c.state, at, _PART_BYTES)
            found = connection.execute(
                select(part).where(same & (_states.c.kept_us == row.kept_us))
            ).scalar_one_or_none()
            if not isinstance(found, bytes):
                return b""
            parts.append(found)
        return b"".join(parts)


def _blob(connection: Connection, row: int) -> sqlite3.Blob:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver.blobopen(_states.name, "state", row)
