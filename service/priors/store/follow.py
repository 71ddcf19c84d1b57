"""The side of the store that is followed: its change number, new entries, notifications, and who serves what."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, text, update
from sqlalchemy import delete as sql_delete

from service.priors.feed import Changes, WorkerReport
from service.priors.revisions import StoredRevision, StoreUnavailable
from service.priors.store.engine import (
    CHANNEL,
    SqliteFile,
    parse_store_url,
    postgres_engine,
    sqlite_engine,
)
from service.priors.store.rows import entry_of, microseconds
from service.priors.store.schema import SCHEMA, history, meta, migrate, schema_number, workers
from service.priors.store.trouble import typed_trouble

MAX_STEPS = 256
"""Changes that are read one by one; beyond, the newest entries are read at once."""
_FORGET_US = 3_600_000_000


class FollowedStore:
    """An engine, and one connection that is kept for following. For one thread, but for `transaction`."""

    def __init__(self, url: str) -> None:
        parsed = parse_store_url(url)
        self._file = (
            SqliteFile(Path(parsed.database or ""))
            if parsed.get_backend_name() == "sqlite"
            else None
        )
        self.engine = postgres_engine(parsed) if self._file is None else sqlite_engine(self._file)
        self.store_id = ""
        self._followed: Connection | None = None
        self._followed_file: tuple[int, int] | None = None
        self._last_read: tuple[int, int] | None = None
        """What SQLite's data_version was before the change number was last read, and that number."""

    @property
    def is_postgres(self) -> bool:
        """Whether the engine is PostgreSQL, which can notify."""
        return self._file is None

    def open(self, *, create: bool = True) -> None:
        """Create or migrate the tables, unless they are as they should be.

        Without `create` a SQLite file that is not there is not made.
        """
        if self._file is not None and not create:
            self._file.may_create = False
        with typed_trouble():
            with self.engine.connect() as connection:
                ready = schema_number(connection) == SCHEMA
                if self._file is not None and not ready:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if not ready:
                with self.transaction() as connection:
                    migrate(connection)
            with self.engine.connect() as connection:
                self.store_id = connection.execute(select(meta.c.store_id)).scalar_one()
            if self._file is not None:
                self._file.may_create = False

    def heads(self) -> Changes:
        """The newest entry of each prior and class list; before a damaged one also the one that can be read."""
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
        return self.heads()

    def report(self, report: WorkerReport) -> None:
        """Record what a worker serves, and forget workers that have been silent for an hour."""
        now = microseconds(datetime.now(UTC))
        values = {
            "replica": report.replica,
            "pid": report.pid,
            "change": report.change,
            "damaged": json.dumps(report.damaged),
            "seen_us": now,
        }
        with typed_trouble(), self.transaction() as connection:
            if self._file is not None:
                connection.exec_driver_sql("PRAGMA busy_timeout=100")
            mine = workers.c.worker == report.worker
            if connection.execute(update(workers).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(workers).values(worker=report.worker, **values))
                connection.execute(sql_delete(workers).where(workers.c.seen_us < now - _FORGET_US))

    def wait(self, seconds: float, woken: threading.Event) -> None:
        """Return on a notification of PostgreSQL, when woken, or after `seconds`."""
        if self._file is not None or self._followed is None:
            woken.wait(seconds)
            return
        driver: Any = self._followed.connection.driver_connection
        dbapi: Any = self.engine.dialect.dbapi
        deadline = time.monotonic() + seconds
        try:
            while not woken.is_set() and (left := deadline - time.monotonic()) > 0:
                if list(driver.notifies(timeout=min(left, 0.1), stop_after=1)):
                    return
        except dbapi.Error:
            self._unfollow()

    def close(self) -> None:
        """Let all connections go."""
        self._unfollow()
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that may write; committed unless it was rolled back or an error leaves the block."""
        with self.engine.connect() as bare:
            connection = bare.execution_options(writes=True)
            with connection.begin() as transaction:
                yield connection
                if not transaction.is_active:
                    return
                transaction.commit()

    @contextmanager
    def _following(self) -> Iterator[Connection]:
        """The connection that is kept for following, made anew after any trouble."""
        with typed_trouble():
            if self._file is not None and self._file.identity() != self._followed_file:
                self._unfollow()
            try:
                if self._followed is None:
                    self._followed = self._follow()
                yield self._followed
            except BaseException:
                self._unfollow()
                raise

    def _follow(self) -> Connection:
        if self._file is not None:
            self._followed_file = self._file.identity()
            return self.engine.connect()
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"LISTEN {CHANNEL}"))
        return connection

    def _unfollow(self) -> None:
        connection, self._followed, self._last_read = self._followed, None, None
        if connection is not None:
            with suppress(Exception):  # it may be broken already
                connection.invalidate()
                connection.close()

    def _number(self, connection: Connection) -> int:
        """The change number; read only when another connection has committed since it was read last.

        A statement through SQLAlchemy takes the GIL a dozen times, which requests feel ten times a second.
        """
        version = self._data_version(connection)
        if version is not None and self._last_read is not None and self._last_read[0] == version:
            return self._last_read[1]
        number, store_id = connection.execute(select(meta.c.change, meta.c.store_id)).one()
        connection.rollback()
        if store_id != self.store_id:
            raise StoreUnavailable(
                "behind", "another store was put in its place; restart every worker to accept it"
            )
        self._last_read = None if version is None else (version, int(number))
        return int(number)

    def _data_version(self, connection: Connection) -> int | None:
        """A number that another one's commit changes, see sqlite.org/pragma.html#pragma_data_version; None of PostgreSQL."""
        if self._file is None:
            return None
        driver: Any = connection.connection.driver_connection
        return int(driver.execute("PRAGMA data_version").fetchone()[0])


def _readable_before(connection: Connection, damaged: StoredRevision) -> list[StoredRevision]:
    """The newest entry of the same prior before a damaged one that can be read."""
    of_prior = (history.c.model == damaged.model) & (history.c.name == damaged.name)
    before = of_prior & (history.c.change < damaged.change)
    entries = entries_of(
        connection, select(history).where(before).order_by(history.c.change.desc()).limit(20)
    )
    return [entry for entry in reversed(entries) if not entry.damaged][:1]


def entries_of(connection: Connection, query: Select[Any]) -> list[StoredRevision]:
    """What a query of whole rows finds, in the order of the changes."""
    rows = connection.execute(query).all()
    return sorted((entry_of(row) for row in rows), key=lambda entry: entry.change)
