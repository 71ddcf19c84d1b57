"""The history of priors, in SQLite or PostgreSQL: blocking calls, safe from several threads."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, Text, case, cast, func, insert, select, text, update
from sqlalchemy import delete as sql_delete

from service.priors.changes import Change
from service.priors.feed import Changes, WorkerReport
from service.priors.orders.wishes import ModelOrder, Wish, WorkerModel
from service.priors.revisions import Served, StoredRevision, StoreUnavailable, Written
from service.priors.store.checked import readable, readable_rows, text_of, whole_of
from service.priors.store.engine import CHANNEL, Database
from service.priors.store.follow import Follower, entries_of
from service.priors.store.kept import KeptStates
from service.priors.store.kept_answers import AnswerStore
from service.priors.store.orders import changed_order, worker_models
from service.priors.store.reports import alive, readable_reports, write_report
from service.priors.store.rows import IDENTITY, bare_entry_of, moment, row_of
from service.priors.store.schema import history, meta, workers
from service.priors.store.trouble import typed_trouble
from service.process.waker import Waker

MAX_COMPARED_CHARACTERS = 2**16
_FORGET_US = 3_600_000_000
_NO_BODY = [column for column in history.c if column.name not in ("body", "checksum")]


def open_store(url: str, *, reads: str = "") -> "SqlPriorStore":
    """The store of a URL, not yet connected; `reads`: a standby of it. Raises InvalidStoreUrl."""
    return SqlPriorStore(url, reads=reads)


class SqlPriorStore:
    """One store; `open` it first. Every call may block and may raise StoreUnavailable.

    `newest`, `since`, `wait` and `close` are for the one thread that follows the store.
    """

    def __init__(self, url: str, *, reads: str = "") -> None:
        """Does not connect. Raises InvalidStoreUrl."""
        self.database = Database(url, reads=reads)
        self._follower = Follower(self.database)
        self.kept = KeptStates(self.database)
        self.answers = AnswerStore(self.database)
        self.newest: Callable[[], Changes] = self._follower.newest
        self.since: Callable[[int], Changes] = self._follower.since
        self.wait: Callable[[float, Waker], None] = self._follower.wait

    def open(self, *, create: bool = True) -> None:
        """Create or migrate the tables; without `create` no SQLite file is created."""
        self.database.open(create=create)

    def close(self) -> None:
        """Close all connections."""
        self._follower.close()
        self.database.close()

    def report(self, report: WorkerReport) -> None:
        """Record what a worker serves, and forget workers that have been silent for an hour."""
        values = {
            "replica": report.replica,
            "pid": report.pid,
            "change": report.change,
            "damaged": json.dumps(report.damaged),
            "models": report.models,
            "scraped_at": report.scraped_at,
        }
        if self.database.reports_where_it_reads:
            self._follower.report(report.worker, values, forget_us=_FORGET_US)
            return
        # a report that waited for a slow disk would have every change refused meanwhile
        with typed_trouble(), self.database.transaction(durable=False) as connection:
            if self.database.file is not None:
                connection.exec_driver_sql("PRAGMA busy_timeout=100")
            write_report(connection, report.worker, values, forget_us=_FORGET_US)

    def leave(self, worker: str) -> None:
        """Forget a worker that ends."""
        with typed_trouble(), self.database.transaction(durable=False) as connection:
            connection.execute(sql_delete(workers).where(workers.c.worker == worker))

    def order(
        self, model: str, change: Callable[[Wish], Wish], *, by: str, after: int
    ) -> ModelOrder | None:
        """Change the desired state of a model, atomically, and return the order then in force.

        Nothing is written when the wish stays as it is. Raises what the change raises, and
        StoreUnavailable("behind") when the store lacks change number `after`.
        """
        with typed_trouble(), self.database.transaction() as connection:
            number = self._next_change(connection, after=after)
            order, new = changed_order(connection, model, change, by=by, number=number)
            if not new:
                connection.rollback()
            elif self.database.is_postgres:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        if order is not None:
            self._follower.note(order)
        return order

    def worker_models(self, model: str) -> list[WorkerModel]:
        """Return the versions of a model that each live worker serves."""
        with typed_trouble(), self.database.engine.connect() as connection:
            return worker_models(connection, model)

    def scrape_targets(self) -> list[str]:
        """HOST:PORT of the metrics port of each live replica that has one."""
        with typed_trouble(), self.database.engine.connect() as connection:
            query = select(workers.c.scraped_at).where(
                alive(connection) & (workers.c.scraped_at != "")
            )
            found = set(connection.execute(query).scalars())
        return sorted(each for each in found if isinstance(each, str))

    def write(self, model: str, name: str, change: Change, *, by: str, after: int) -> Written:
        """Apply a change to the newest entry, atomically, and return the newest entry afterwards.

        Raises what the change raises, and StoreUnavailable("behind") when the store lacks change
        number `after`.
        """
        with typed_trouble(), self.database.transaction() as connection:
            number = self._next_change(connection, after=after)
            of_prior = (history.c.model == model) & (history.c.name == name)
            newest = select(history).where(of_prior).order_by(history.c.revision.desc()).limit(1)
            current = next(iter(entries_of(connection, newest)), None)
            draft = change.apply(current)
            if draft is None:
                connection.rollback()
                assert current is not None, "a write that stores nothing finds something"
                return Written(current, created=False, changed=False)
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
                change=number,
            )
            connection.execute(insert(history).values(row_of(entry)))
            if self.database.is_postgres:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        self._follower.note(entry)
        return Written(entry, created=current is None or current.deleted)

    def read(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """One entry of the history."""
        wanted = (
            (history.c.model == model) & (history.c.name == name) & (history.c.revision == revision)
        )
        with typed_trouble(), self.database.engine.connect() as connection:
            return next(iter(entries_of(connection, select(history).where(wanted))), None)

    def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first, each with the oldest equal one on this page.

        Bodies of more than MAX_COMPARED_CHARACTERS are not compared.
        """
        of_prior = (history.c.model == model) & (history.c.name == name)
        if before is not None:
            of_prior &= history.c.revision < before
        page = (
            select(history).where(of_prior).order_by(history.c.revision.desc()).limit(limit)
        ).subquery()
        short = func.length(page.c.body) <= MAX_COMPARED_CHARACTERS
        own = cast(page.c.revision, Text)  # equal to no other
        content = case((short, page.c.body), else_=own)
        first_equal = func.min(page.c.revision).over(partition_by=(page.c.class_digest, content))
        columns = [page.c[column.name] for column in _NO_BODY]
        wanted = select(*columns, first_equal.label("first_equal"))
        with typed_trouble(), self.database.engine.connect() as connection:
            ordered: Select[Any] = wanted.order_by(page.c.revision.desc())
            rows = readable_rows(connection.execute(ordered), **IDENTITY)
            return [replace(bare_entry_of(row), equals=_equals(row)) for row in rows]

    def served(self, model: str, name: str) -> list[Served]:
        """Return the revision of a prior that each live worker serves."""
        with typed_trouble(), self.database.engine.connect() as connection:
            rows = connection.execute(
                select(workers).where(alive(connection)).order_by(workers.c.replica, workers.c.pid)
            ).all()
            with readable_reports():
                return [
                    Served(
                        text_of(row.replica, "a replica"),
                        whole_of(row.pid, "a pid"),
                        text_of(row.worker, "a worker"),
                        _served(connection, row, model, name),
                        moment(row.seen_us),
                    )
                    for row in rows
                ]

    def everything(self, model: str | None = None) -> list[StoredRevision]:
        """The whole history of one model, or of all models, in the order of the writes."""
        wanted = (
            select(history) if model is None else select(history).where(history.c.model == model)
        )
        with typed_trouble(), self.database.engine.connect() as connection:
            return entries_of(connection, wanted)

    def restore(self, entries: Iterable[StoredRevision]) -> int:
        """Write entries of unknown priors as they are, all or none; returns the number."""
        written = 0
        with typed_trouble(), self.database.transaction() as connection:
            for entry in entries:
                change = self._next_change(connection, after=-1)
                connection.execute(insert(history).values(row_of(replace(entry, change=change))))
                written += 1
            if self.database.is_postgres:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        return written

    def _next_change(self, connection: Connection, *, after: int) -> int:
        """The number of this transaction's change; other writers wait until it is committed."""
        raised = (
            update(meta).values(change=meta.c.change + 1).returning(meta.c.change, meta.c.store_id)
        )
        found, store_id = connection.execute(raised).one()
        change = whole_of(found, "its change number")
        if store_id != self.database.store_id or change <= after:
            raise StoreUnavailable(
                "behind",
                "another or an older store was put in its place; restart every worker to accept it",
            )
        self._follower.check_history(connection)
        return change


def _equals(row: Row[Any]) -> int | None:
    with readable("its history"):
        return None if row.first_equal == row.revision else int(row.first_equal)


def _served(connection: Connection, worker: Row[Any], model: str, name: str) -> int:
    damaged = [
        whole_of(revision, "a revision")
        for m, n, revision in json.loads(worker.damaged)
        if (m, n) == (model, name)
    ]
    of_prior = (
        (history.c.model == model) & (history.c.name == name) & (history.c.change <= worker.change)
    )
    newest = select(func.max(history.c.revision)).where(
        of_prior & history.c.revision.not_in(damaged)
    )
    return whole_of(connection.execute(newest).scalar() or 0, "a revision")
