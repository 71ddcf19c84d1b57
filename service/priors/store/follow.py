"""Following the store: its change number, new entries and notifications, over one connection."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Select, func, select, text

from service.priors.feed import Changes, spread
from service.priors.orders.wishes import ModelOrder
from service.priors.revisions import StoredRevision, StoreUnavailable
from service.priors.store.checked import readable_rows, whole_of
from service.priors.store.engine import CHANNEL, Database
from service.priors.store.orders import newest_orders, order_row, orders_since
from service.priors.store.reports import write_report
from service.priors.store.rows import IDENTITY, entry_of, row_of
from service.priors.store.schema import history, meta, model_orders
from service.priors.store.trouble import typed_trouble
from service.process.waker import Waker

LOOK_SECONDS = 1.0
"""Pause between two polls of PostgreSQL while it notifies. They only check that it answers."""
STANDBY_SECONDS = 0.25
"""Pause between two polls of a PostgreSQL standby, which cannot notify."""
WORKERS_A_SECOND = 5000.0
LONGEST_SPREAD_SECONDS = 0.3
"""Workers spread their polls after a notification: WORKERS_A_SECOND, over at most this long."""
MAX_STEPS = 256
"""The most changes that are read one by one; of more, only the newest entries are read."""


class Follower:
    """Reads what changes, over one connection that is kept open. Used from one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._file: tuple[int, int] | None = None
        """Identity of the SQLite file to which the connection belongs."""
        self._listens = False
        self._fleet = 1
        self._mark: tuple[int, str] | None = None
        """The newest change that was read, and the checksum of its row."""
        self._read_to = -1
        """The change number up to which the history was read last."""
        self._last_read: tuple[int, int] | None = None
        """SQLite's data_version before the change number was last read, and that number."""

    def newest(self) -> Changes:
        """The newest entry of each prior and class list; if damaged, also the last readable one."""
        with self._following() as connection:
            number = self._number(connection)
            self._check_since_last(connection, number)
            newest = select(func.max(history.c.change)).group_by(
                history.c.model, history.c.name, history.c.class_digest
            )
            entries = entries_of(connection, select(history).where(history.c.change.in_(newest)))
            for damaged in [entry for entry in entries if entry.damaged]:
                entries += _readable_before(connection, damaged)
            return self._marked(Changes(number, tuple(entries), newest_orders(connection)))

    def since(self, change: int) -> Changes:
        """The entries after a change number; only the newest when there are many."""
        with self._following() as connection:
            number = self._number(connection)
            if number <= change:
                return Changes(number, ())
            self._check_since_last(connection, number)
            if number - change <= MAX_STEPS:
                # Each query sees what was committed before it. Up to `number` all of them see
                # everything; a later order could be read without an entry that came before it.
                new = (history.c.change > change) & (history.c.change <= number)
                entries = entries_of(connection, select(history).where(new))
                orders = orders_since(connection, change, number)
                return self._marked(Changes(number, tuple(entries), orders))
        return self.newest()

    def wait(self, seconds: float, woken: Waker) -> None:
        """Return on a notification of PostgreSQL, when woken, or after about `seconds`.

        With many workers, each waits a little after a notification, and polls less often while
        there is none.
        """
        if not self._database.is_postgres or self._connection is None:
            woken.wait(seconds)
            return
        if not self._listens:
            woken.wait(spread(max(seconds, STANDBY_SECONDS)))
            return
        driver: Any = self._connection.connection.driver_connection
        dbapi: Any = self._database.engine.dialect.dbapi
        deadline = time.monotonic() + spread(max(seconds, LOOK_SECONDS))
        try:
            while not woken.is_set() and (left := deadline - time.monotonic()) > 0:
                if list(driver.notifies(timeout=0, stop_after=1)):
                    most = min(LONGEST_SPREAD_SECONDS, self._fleet / WORKERS_A_SECOND)
                    woken.wait(random.uniform(0, most))  # noqa: S311 - it spreads workers
                    return
                woken.wait_for(
                    driver.fileno(), left
                )  # the driver's own wait polls, for 0.7 ms each
        except dbapi.Error:
            self._unfollow()

    def report(self, worker: str, values: dict[str, Any], *, forget_us: int) -> None:
        """Write what a worker serves, over the open connection: a worker needs only one."""
        with self._following() as connection:
            self._fleet = write_report(connection, worker, values, forget_us=forget_us)

    def close(self) -> None:
        """Close the connection; the next reading opens another one."""
        self._unfollow()

    @contextmanager
    def _following(self) -> Iterator[Connection]:
        """The connection that is kept open; opened again after an error."""
        with typed_trouble():
            try:
                file = self._database.file
                if file is not None and file.identity() != self._file:
                    self._unfollow()
                if self._connection is None:
                    self._connection = self._follow()
                    self.check_history(self._connection)
                    self._connection.rollback()
                yield self._connection
            except BaseException:
                self._unfollow()
                raise

    def _follow(self) -> Connection:
        database = self._database
        if database.file is not None:
            self._file = database.file.identity()
            return database.engine.connect()
        connection = database.reader.connect()
        try:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            is_standby = connection.execute(text("SELECT pg_is_in_recovery()")).scalar()
            self._listens = not is_standby
            if self._listens:
                connection.execute(text("SET synchronous_commit = off"))  # it writes reports only
                connection.execute(text(f"LISTEN {CHANNEL}"))
        except BaseException:
            _drop(connection)
            raise
        return connection

    def _unfollow(self) -> None:
        connection, self._connection, self._last_read = self._connection, None, None
        if connection is not None:
            _drop(connection)

    def _marked(self, changes: Changes) -> Changes:
        """Note the newest row that was read, which identifies this store among others."""
        rows: tuple[StoredRevision | ModelOrder, ...] = (*changes.entries, *changes.orders)
        newest = next((row for row in rows if row.change == changes.number), None)
        if newest is not None:
            self.note(newest)
        return changes

    def note(self, row: StoredRevision | ModelOrder) -> None:
        """Note a row that this worker serves, or has written itself, from any thread."""
        if isinstance(row, ModelOrder):
            mark = row.change, str(order_row(row)["checksum"])
        elif row.damaged:
            return
        else:
            mark = row.change, str(row_of(row)["checksum"])
        if self._mark is None or mark > self._mark:
            self._mark = mark

    def _check_since_last(self, connection: Connection, number: int) -> None:
        """Check the history before reading on: an older copy may have been restored in place, and
        have got as many changes since. A standby that has not received all yet is no such copy.
        """
        if number == self._read_to:
            return
        mark = self._mark  # read once: a writing thread may note what a standby lacks so far
        if mark is not None and mark[0] <= number:
            _check_contains(connection, mark)
            connection.rollback()
        self._read_to = number

    def check_history(self, connection: Connection) -> None:
        """Raise StoreUnavailable("behind") when the store lacks what this worker has served.

        A standby that was promoted is accepted when it has received all of that.
        """
        mark = self._mark
        if mark is not None:
            _check_contains(connection, mark)

    def _number(self, connection: Connection) -> int:
        """The change number; on SQLite read only after another connection has committed.

        A statement through SQLAlchemy takes the GIL a dozen times. At ten polls a second that would
        slow requests down.
        """
        version = self._data_version(connection)
        if version is not None and self._last_read is not None and self._last_read[0] == version:
            return self._last_read[1]
        found, store_id = connection.execute(select(meta.c.change, meta.c.store_id)).one()
        connection.rollback()
        number = whole_of(found, "its change number")
        if store_id != self._database.store_id:
            raise StoreUnavailable(
                "behind", "another store was put in its place; restart every worker to accept it"
            )
        self._last_read = None if version is None else (version, number)
        return number

    def _data_version(self, connection: Connection) -> int | None:
        """Return a number that changes when another connection commits; None on PostgreSQL.

        See sqlite.org/pragma.html#pragma_data_version.
        """
        if self._database.is_postgres:
            return None
        driver: Any = connection.connection.driver_connection
        return int(driver.execute("PRAGMA data_version").fetchone()[0])


def _check_contains(connection: Connection, mark: tuple[int, str]) -> None:
    """Raise StoreUnavailable("behind") when the store lacks a change with this checksum."""
    change, checksum = mark
    found = [
        connection.execute(select(table.c.checksum).where(table.c.change == change)).scalar()
        for table in (history, model_orders)
    ]
    if checksum not in found:
        raise StoreUnavailable(
            "behind",
            f"its history does not contain change {change}, which this worker has served: an "
            "older copy, or a standby that had not received it, has taken its place; restart "
            "every worker to accept it",
        )


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
    rows = readable_rows(connection.execute(query), **IDENTITY)
    return sorted((entry_of(row) for row in rows), key=lambda entry: entry.change)
