"""Connections to SQLite and PostgreSQL that are durable, bounded in time, and never silently another database."""

import importlib.util
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from service.priors.revisions import StoreUnavailable

BUSY_SECONDS = 1.5
CHANNEL = "priordial_priors"
_LAST_WORDS = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""SQLSTATEs with which PostgreSQL ends a connection: shutdown, crash, not yet there, idle too long."""


class InvalidStoreUrl(ValueError):
    """`--store` is neither sqlite:///FILE nor postgresql://…"""


def parse_store_url(text: str) -> URL:
    """Check a store's URL. Raises InvalidStoreUrl, without the password that the URL may hold."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise InvalidStoreUrl(
            "the store's URL cannot be read; expected sqlite:///FILE or postgresql://HOST/NAME"
        ) from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise InvalidStoreUrl(
                "the store must be a file that every worker can open: sqlite:///FILE"
            )
        return url
    raise InvalidStoreUrl(
        f"a store of kind '{url.drivername}' is not known; expected sqlite:///FILE or postgresql://…"
    )


class SqliteFile:
    """The file of a SQLite store, created on first use only and never silently another one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.may_create = True

    def connect(self) -> sqlite3.Connection:
        """A connection whose commits are on disk when they return."""
        if self.may_create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={'rwc' if self.may_create else 'rw'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def identity(self) -> tuple[int, int]:
        """Device and inode: a connection that was opened at another one writes where nobody looks."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise StoreUnavailable("away", f"{self.path}: {error.strerror}") from error
        return found.st_dev, found.st_ino


def sqlite_engine(file: SqliteFile) -> Engine:
    """An engine whose writing transactions begin IMMEDIATE: two that began to read could never both write."""
    engine = create_engine("sqlite://", creator=file.connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def postgres_engine(url: URL) -> Engine:
    """An engine that gives up on a server that does not answer, and whose commits are on disk."""
    if importlib.util.find_spec("psycopg") is None:
        raise InvalidStoreUrl("a PostgreSQL store needs psycopg: pip install 'priordial[postgres]'")
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=3,
        max_overflow=2,
        pool_timeout=2,
        connect_args={
            "connect_timeout": 2,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "priordial",
        },
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '1500ms'; SET lock_timeout = '1500ms'")
            # a replica that is frozen inside a transaction must not hold up the others
            cursor.execute("SET idle_in_transaction_session_timeout = '5s'")
            cursor.execute(
                "SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN "
                "set_config('synchronous_commit', 'on', false) END"
            )
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def _hear_last_words(context: ExceptionContext) -> None:
        """The driver knows that a connection has ended by its closing, which may come later than the reason."""
        if getattr(context.original_exception, "sqlstate", None) in _LAST_WORDS:
            context.is_disconnect = True

    return engine
