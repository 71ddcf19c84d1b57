"""The history of priors, in SQLite or PostgreSQL: blocking calls, safe from several threads."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, text, update

from service.priors.changes import Decide
from service.priors.revisions import Served, StoredRevision, StoreUnavailable, Written
from service.priors.store.engine import CHANNEL
from service.priors.store.follow import FollowedStore, entries_of
from service.priors.store.rows import bare_entry_of, microseconds, moment, row_of
from service.priors.store.schema import history, meta, workers
from service.priors.store.trouble import typed_trouble

ALIVE_SECONDS = 20
_NO_BODY = [column for column in history.c if column.name not in ("body", "checksum")]


def open_store(url: str) -> "SqlPriorStore":
    """The store of a URL, not yet connected. Raises InvalidStoreUrl."""
    return SqlPriorStore(url)


class SqlPriorStore(FollowedStore):
    """One store; `open` it before the rest. Every call may block and may raise StoreUnavailable."""

    def write(self, model: str, name: str, decide: Decide, *, by: str, after: int) -> Written:
        """Store what decide makes of the newest entry, atomically, and return the entry that is newest then.

        Raises what decide raises, and StoreUnavailable("behind") when the store has not got change number `after`.
        """
        with typed_trouble(), self.transaction() as connection:
            change = self._next_change(connection, after=after)
            of_prior = (history.c.model == model) & (history.c.name == name)
            newest = select(history).where(of_prior).order_by(history.c.revision.desc()).limit(1)
            current = next(iter(entries_of(connection, newest)), None)
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
            if self.is_postgres:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        return Written(entry, created=current is None or current.deleted)

    def read(self, model: str, name: str, revision: int) -> StoredRevision | None:
        """One entry of the history."""
        wanted = (
            (history.c.model == model) & (history.c.name == name) & (history.c.revision == revision)
        )
        with typed_trouble(), self.engine.connect() as connection:
            return next(iter(entries_of(connection, select(history).where(wanted))), None)

    def history(
        self, model: str, name: str, *, before: int | None, limit: int
    ) -> list[StoredRevision]:
        """Entries without their bodies, newest first."""
        wanted = select(*_NO_BODY).where((history.c.model == model) & (history.c.name == name))
        if before is not None:
            wanted = wanted.where(history.c.revision < before)
        with typed_trouble(), self.engine.connect() as connection:
            rows = connection.execute(wanted.order_by(history.c.revision.desc()).limit(limit)).all()
            return [bare_entry_of(row) for row in rows]

    def served(self, model: str, name: str) -> list[Served]:
        """What each live worker serves of a prior."""
        alive = workers.c.seen_us > microseconds(
            datetime.now(UTC) - timedelta(seconds=ALIVE_SECONDS)
        )
        with typed_trouble(), self.engine.connect() as connection:
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

    def everything(self, model: str | None = None) -> list[StoredRevision]:
        """The whole history, of one model or of all, in the order in which it was written."""
        wanted = (
            select(history) if model is None else select(history).where(history.c.model == model)
        )
        with typed_trouble(), self.engine.connect() as connection:
            return entries_of(connection, wanted)

    def restore(self, entries: Iterable[StoredRevision]) -> int:
        """Write entries as they are, all or none, into a store that has no entry of these priors; how many."""
        written = 0
        with typed_trouble(), self.transaction() as connection:
            for entry in entries:
                change = self._next_change(connection, after=-1)
                connection.execute(insert(history).values(row_of(replace(entry, change=change))))
                written += 1
            if self.is_postgres:
                connection.execute(text(f"NOTIFY {CHANNEL}"))
        return written

    def _next_change(self, connection: Connection, *, after: int) -> int:
        """Number of the change that this transaction makes; other writers wait until it ends."""
        raised = (
            update(meta).values(change=meta.c.change + 1).returning(meta.c.change, meta.c.store_id)
        )
        change, store_id = connection.execute(raised).one()
        if store_id != self.store_id or change <= after:
            raise StoreUnavailable(
                "behind", "another or an older store was put in its place; restart every worker"
            )
        return int(change)


def _served(connection: Connection, worker: Row[Any], model: str, name: str) -> int:
    damaged = [revision for m, n, revision in json.loads(worker.damaged) if (m, n) == (model, name)]
    of_prior = (
        (history.c.model == model) & (history.c.name == name) & (history.c.change <= worker.change)
    )
    newest = select(func.max(history.c.revision)).where(
        of_prior & history.c.revision.not_in(damaged)
    )
    return connection.execute(newest).scalar() or 0
