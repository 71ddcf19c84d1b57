"""Following the store: its change number, new entries and notifications, over one connection."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Select, func, select, text

from service.priors.feed import Changes
from service.priors.revisions import StoredRevision, StoreUnavailable
from service.priors.store.engine import CHANNEL, Database
from service.priors.store.rows import entry_of
from service.priors.store.schema import history, meta
from service.priors.store.trouble import typed_trouble

MAX_STEPS = 256
"""Changes that are read one by one; if there are more, only the newest entries are read."""


class Follower:
    """Reads what changes, over one connection that is kept open. Used from one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._file: tuple[int, int] | None = None
        """Identity of the SQLite file to which the connection belongs."""
        self._last_read: tuple[int, int] | None = None
        """SQLite's data_version before the change number was last read, and that number."""

    def newest(self) -> Changes:
        """The newest entry of each prior and class list; if damaged, also the last readable one."""
        with self._following() as connection:
            number = self._number(connection)
            newest = select(func.max(history.c.change)).group_by(
                history.c.model, history.c.name, history.c.class_digest
            )
            entries = entries_of(connection, select(history).where(history.c.change.in_(newest)))
            for damaged in [entry for entry in entries if entry.damaged]:
                entries += _readable_before(connection, damaged)
            return Changes(number, tuple(entries))

    def since(self, change: int) -> Changes:
        """The entries after a change number; only the newest when there are many."""
        with self._following() as connection:
            number = self._number(connection)
            if number <= change:
                return Changes(number, ())
            if number - change <= MAX_STEPS:
                entries = entries_of(connection, select(history).where(history.c.change > change))
                return Changes(max([number, *(e.change for e in entries)]), tuple(entries))
        return self.newest()

    def wait(self, seconds: float, woken: threading.Event) -> None:
        """Return on a notification of PostgreSQL, when woken, or after `seconds`."""
        if not self._database.is_postgres or self._connection is None:
            woken.wait(seconds)
            return
        driver: Any = self._connection.connection.driver_connection
        dbapi: Any = self._database.engine.dialect.dbapi
        deadline = time.monotonic() + seconds
        try:
            while not woken.is_set() and (left := deadline - time.monotonic()) > 0:
                if list(driver.notifies(timeout=min(left, 0.1), stop_after=1)):
                    return
        except dbapi.Error:
            self._unfollow()

    def close(self) -> None:
        """Close the connection; the next reading opens another one."""
        self._unfollow()

    @contextmanager
    def _following(self) -> Iterator[Connection]:
        """The connection that is kept, opened anew after any trouble."""
        with typed_trouble():
            try:
                file = self._database.file
                if file is not None and file.identity() != self._file:
                    self._unfollow()
                if self._connection is None:
                    self._connection = self._follow()
                yield self._connection
            except BaseException:
                self._unfollow()
                raise

    def _follow(self) -> Connection:
        database = self._database
        if database.file is not None:
            self._file = database.file.identity()
            return database.engine.connect()
        connection = database.engine.connect()
        try:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {CHANNEL}"))
        except BaseException:
            _drop(connection)
            raise
        return connection

    def _unfollow(self) -> None:
        connection, self._connection, self._last_read = self._connection, None, None
        if connection is not None:
            _drop(connection)

    def _number(self, connection: Connection) -> int:
        """The change number; on SQLite read only after another connection has committed.

        A statement through SQLAlchemy takes the GIL a dozen times, and the store is read ten times
        a second, which requests would feel.
        """
        version = self._data_version(connection)
        if version is not None and self._last_read is not None and self._last_read[0] == version:
            return self._last_read[1]
        number, store_id = connection.execute(select(meta.c.change, meta.c.store_id)).one()
        connection.rollback()
        if store_id != self._database.store_id:
            raise StoreUnavailable(
                "behind", "another store was put in its place; restart every worker to accept it"
            )
        self._last_read = None if version is None else (version, int(number))
        return int(number)

    def _data_version(self, connection: Connection) -> int | None:
        """A number that changes when another connection commits; None on PostgreSQL.

        See sqlite.org/pragma.html#pragma_data_version.
        """
        if self._database.is_postgres:
            return None
        driver: Any = connection.connection.driver_connection
        return int(driver.execute("PRAGMA data_version").fetchone()[0])


def _drop(connection: Connection) -> None:
    """Close a connection that may be broken; it does not return to the pool."""
    with suppress(Exception):
        connection.invalidate()
    with suppress(Exception):
        connection.close()


def _readable_before(connection: Connection, damaged: StoredRevision) -> list[StoredRevision]:
    """The newest readable entry of the same prior before a damaged one."""
    of_prior = (history.c.model == damaged.model) & (history.c.name == damaged.name)
    before = of_prior & (history.c.change < damaged.change)
    entries = entries_of(
        connection, select(history).where(before).order_by(history.c.change.desc()).limit(20)
    )
    return [entry for entry in reversed(entries) if not entry.damaged][:1]


def entries_of(connection: Connection, query: Select[Any]) -> list[StoredRevision]:
    """The entries that a query of whole rows finds, in the order of the changes."""
    rows = connection.execute(query).all()
    return sorted((entry_of(row) for row in rows), key=lambda entry: entry.change)
