"""The history of priors and who serves it, in SQLite or PostgreSQL: blocking calls, safe from several threads."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, text, update
from sqlalchemy import delete as sql_delete

from service.prior_changes import Decide
from service.prior_feed import Changes, WorkerReport
from service.prior_store.engine import (
    CHANNEL,
    SqliteFile,
    parse_store_url,
    postgres_engine,
    sqlite_engine,
)
from service.prior_store.rows import bare_entry_of, entry_of, microseconds, moment, row_of
from service.prior_store.schema import SCHEMA, history, meta, migrate, schema_number, workers
from service.prior_store.trouble import typed_trouble
from service.revisions import Served, StoredRevision, StoreUnavailable, Written

MAX_STEPS = 256
"""Changes that are read one by one; beyond, the newest entries are read at once."""
ALIVE_SECONDS = 20
_NO_BODY = [column for column in history.c if column.name not in ("body", "checksum")]


def open_store(url: str) -> "SqlPriorStore":
    """The store of a URL, not yet connected. Raises InvalidStoreUrl."""
    return SqlPriorStore(url)


class SqlPriorStore:
    """One store; `open` it before the rest. Every call may block and may raise StoreUnavailable.

    open, heads, since, report and wait are for one thread, the others for any.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_store_url(url)
        self._file = (
            SqliteFile(Path(parsed.database or ""))
            if parsed.get_backend_name() == "sqlite"
            else None
        )
        self._engine = postgres_engine(parsed) if self._file is None else sqlite_engine(self._file)
        self._store_id = ""
        self._followed: Connection | None = None
        self._followed_file: tuple[int, int] | None = None

    def open(self) -> None:
        """Create or migrate the tables, unless they are as they should be."""
        with typed_trouble():
            with self._engine.connect() as connection:
                ready = schema_number(connection) == SCHEMA
                if self._file is not None and not ready:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if not ready:
                with self._transaction() as connection:
                    migrate(connection)
            with self._engine.connect() as connection:
                self._store_id = connection.execute(select(meta.c.store_id)).scalar_one()
            if self._file is not None:
                self._file.may_create = False

    # ---- following, from one thread

    def heads(self) -> Changes:
        """The newest entry of each prior and class list; before a damaged one also the one that can be read."""
        with self._following() as connection:
            number = self._number(connection)
            newest = select(func.max(history.c.change)).group_by(
                history.c.model, history.c.name, history.c.class_digest
            )
            entries = _entries(connection, select(history).where(history.c.change.in_(newest)))
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
                entries = _entries(connection, select(history).where(history.c.change > change))
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
        with typed_trouble(), self._transaction() as connection:
            if self._file is not None:
                connection.exec_driver_sql("PRAGMA busy_timeout=100")
            mine = workers.c.worker == report.worker
            if connection.execute(update(workers).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(workers).values(worker=report.worker, **values))
                connection.execute(
                    sql_delete(workers).where(workers.c.seen_us < now - 3_600_000_000)
                )

    def wait(self, seconds: float, woken: threading.Event) -> None:
        """Return on a notification of PostgreSQL, when woken, or after `seconds`."""
        if self._file is not None or self._followed is None:
            woken.wait(seconds)
            return
        driver: Any = self._followed.connection.driver_connection
        dbapi: Any = self._engine.dialect.dbapi
        deadline = time.monotonic() + seconds
        try:
            while not woken.is_set() and (left := deadline - time.monotonic()) > 0:
                if list(driver.notifies(timeout=min(left, 0.1), stop_after=1)):
                    return
        except dbapi.Error:
            self._unfollow()

    # ---- reading and writing, from any thread

    def write(self, model: str, name: str, decide: Decide, *, by: str, after: int) -> Written:
        """Store what decide makes of the newest entry, atomically, and return the entry that is newest then.

        Raises what decide raises, and StoreUnavailable("behind") when the store has not got change number `after`.
        """
        with typed_trouble(), self._transaction() as connection:
            raised = (
                update(meta)
                .values(change=meta.c.change + 1)
                .returning(meta.c.change, meta.c.store_id)
            )
            change, store_id = connection.execute(raised).one()
            if store_id != self._store_id or change <= after:
                raise StoreUnavailable(
                    "behind", "another or an older store was put in its place; restart every worker"
                )
            of_prior = (history.c.model == model) & (history.c.name == name)
            newest = select(history).where(of_prior).order_by(history.c.revision.desc()).limit(1)
            current = next(iter(_entries(connection, newest)), None)
            draft = decide(current)
            if draft is None:
                connection.rollback()
                assert current is not None, "a write that stores nothing finds something"
                return Written(current, created=False)
            revision = 1 if current is None else current.revision + 1
            entry = StoredRevision(
                model=model,
                name=name,
                revision=revision,
                body=draft.body,
                class_digest=draft.class_digest,
                updated_at=datetime.now(UTC),
                by=by,
                note=draft.note,
                deleted=draft.body is None,
                change=change,
            )
            connection.execute(insert(history).values(row_of(entry)))
            if self._file is None:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        return Written(entry, created=current is None or current.deleted)

    def read(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """One entry of the history."""
        wanted = (
            (history.c.model == model) & (history.c.name == name) & (history.c.revision == revision)
        )
        with typed_trouble(), self._engine.connect() as connection:
            return next(iter(_entries(connection, select(history).where(wanted))), None)

    def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first."""
        wanted = select(*_NO_BODY).where((history.c.model == model) & (history.c.name == name))
        if before is not None:
            wanted = wanted.where(history.c.revision < before)
        with typed_trouble(), self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(history.c.revision.desc()).limit(limit)).all()
            return [bare_entry_of(row) for row in rows]

    def served(self, model: str, name: str) -> list[Served]:
        """What each live worker serves of a prior."""
        alive = workers.c.seen_us > microseconds(
            datetime.now(UTC) - timedelta(seconds=ALIVE_SECONDS)
        )
        with typed_trouble(), self._engine.connect() as connection:
            rows = connection.execute(
                select(workers).where(alive).order_by(workers.c.replica, workers.c.pid)
            ).all()
            return [
                Served(
                    row.replica,
                    row.pid,
                    row.worker,
                    _served(connection, row, model, name),
                    moment(row.seen_us),
                )
                for row in rows
            ]

    def close(self) -> None:
        """Let all connections go."""
        self._unfollow()
        self._engine.dispose()

    # ---- inside

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.connect() as bare:
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
            return self._engine.connect()
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"LISTEN {CHANNEL}"))
        return connection

    def _unfollow(self) -> None:
        connection, self._followed = self._followed, None
        if connection is not None:
            with suppress(Exception):  # it may be broken already
                connection.invalidate()
                connection.close()

    def _number(self, connection: Connection) -> int:
        number, store_id = connection.execute(select(meta.c.change, meta.c.store_id)).one()
        connection.rollback()
        if store_id != self._store_id:
            raise StoreUnavailable(
                "behind", "another store was put in its place; restart every worker to accept it"
            )
        return int(number)


def _served(connection: Connection, worker: Row[Any], model: str, name: str) -> int:
    damaged = [revision for m, n, revision in json.loads(worker.damaged) if (m, n) == (model, name)]
    of_prior = (
        (history.c.model == model) & (history.c.name == name) & (history.c.change <= worker.change)
    )
    newest = select(func.max(history.c.revision)).where(
        of_prior & history.c.revision.not_in(damaged)
    )
    return connection.execute(newest).scalar() or 0


def _readable_before(connection: Connection, damaged: StoredRevision) -> list[StoredRevision]:
    """The newest entry of the same prior before a damaged one that can be read."""
    of_prior = (history.c.model == damaged.model) & (history.c.name == damaged.name)
    before = of_prior & (history.c.change < damaged.change)
    entries = _entries(
        connection, select(history).where(before).order_by(history.c.change.desc()).limit(20)
    )
    return [entry for entry in reversed(entries) if not entry.damaged][:1]


def _entries(connection: Connection, query: Select[Any]) -> list[StoredRevision]:
    """Entries in the order of their changes."""
    rows = connection.execute(query).all()
    return sorted((entry_of(row) for row in rows), key=lambda entry: entry.change)
