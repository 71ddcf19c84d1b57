"""Connections to SQLite and PostgreSQL, with durable commits, time limits and a check that the
database was not replaced.
"""

import importlib.util
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from service.contract.nearest import nearest_path
from service.priors.revisions import StoreUnavailable
from service.priors.store.checked import text_of
from service.priors.store.place import AUTO, make_folder, store_url
from service.priors.store.schema import SCHEMA, meta, migrate, schema_number
from service.priors.store.trouble import typed_trouble

BUSY_SECONDS = 1.5
CHANNEL = "priordial_priors"
_LAST_WORDS = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""SQLSTATEs with which PostgreSQL ends a connection: shutdown, crash, starting up, idle."""


class InvalidStoreUrl(ValueError):
    """`--store` is neither auto nor sqlite:///FILE nor postgresql://…"""


def parse_store_url(text: str) -> URL:
    """Check a store's URL. Raises InvalidStoreUrl, without the password that the URL may hold."""
    expected = "expected sqlite:///FILE or postgresql://HOST/NAME"
    if text != text.strip():  # SQLite would start an empty file of that name
        raise InvalidStoreUrl(
            "the store's URL begins or ends with a blank, or with the line end of a file that "
            "Windows wrote; write it without that"
        )
    shown = (
        f"'{text[:200]}'" if "@" not in text else "not a URL of a store"
    )  # before an @ is a password
    if "://" not in text and text != AUTO:
        file = f"; for this file, sqlite:///{Path(text).absolute()}" if text.count("/") else ""
        raise InvalidStoreUrl(f"the store is {shown}; {expected}{'' if '@' in text else file}")
    try:
        url = make_url(store_url(text))
    except (ArgumentError, ValueError):  # the latter for a port that is not a number
        raise InvalidStoreUrl(
            "the store's URL cannot be read; expected sqlite:///FILE or "
            "postgresql://HOST:PORT/NAME with a number as PORT"
        ) from None
    if "@" in (url.host or ""):  # the end of the password, which would stand in the log
        raise InvalidStoreUrl("the store's URL has two '@'; write the one of the password as %40")
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise InvalidStoreUrl(
                f"the store is {shown}, which is not a file that every worker can open; "
                "expected sqlite:///FILE, with three slashes"
            )
        return url
    raise InvalidStoreUrl(f"unknown kind of store '{url.drivername}'; {expected}")


class Database:
    """A store's engine, transactions and identity, which all parts of the store share."""

    def __init__(self, url: str, *, reads: str = "") -> None:
        """Does not connect. reads: URL of a standby to follow instead. Raises InvalidStoreUrl."""
        parsed = parse_store_url(url)
        self._url = url
        self.file: SqliteFile | None = None
        if parsed.get_backend_name() == "sqlite":
            self.file = SqliteFile(Path(parsed.database or ""))
        self.engine = postgres_engine(parsed) if self.file is None else sqlite_engine(self.file)
        self.reader = self.engine
        """The engine that follows the store: the standby's where there is one."""
        if reads:
            standby = parse_store_url(reads)
            if self.file is not None or standby.get_backend_name() != "postgresql":
                raise InvalidStoreUrl(
                    "--store-reads is only for a PostgreSQL store and its standby; leave it out, "
                    "or give postgresql://… for both"
                )
            self.reader = postgres_engine(standby)
        self.store_id = ""
        """Identifies the open store, so that a replacement is noticed."""

    @property
    def is_postgres(self) -> bool:
        """Whether the engine is PostgreSQL, which can notify."""
        return self.file is None

    @property
    def reports_where_it_reads(self) -> bool:
        """Whether the connection that follows the store may write to it as well."""
        return self.is_postgres and self.reader is self.engine

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.engine.dispose()
        self.reader.dispose()

    def open(self, *, create: bool = True) -> None:
        """Create or migrate the tables where they are missing or old.

        Without `create`, a SQLite file that does not exist is not created.
        """
        if self.file is not None and not create:
            self.file.may_create = False
        elif create:
            self._make_folder()
        with typed_trouble():
            with self.engine.connect() as connection:
                ready = schema_number(connection) == SCHEMA
                if self.file is not None and not ready:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if not ready:
                with self.transaction() as connection:
                    migrate(connection)
            with self.engine.connect() as connection:
                found = connection.execute(select(meta.c.store_id)).scalar_one()
            self.store_id = text_of(found, "its store_id")
            if self.file is not None:
                self.file.may_create = False

    def _make_folder(self) -> None:
        try:
            make_folder(self._url)
        except OSError as error:
            raise StoreUnavailable(
                "away",
                f"the folder '{error.filename}' for the store cannot be made: {error.strerror}; "
                "name another file with --store sqlite:///FILE",
            ) from error

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that may write; committed unless it was rolled back or raised an error.

        durable: whether SQLite waits for the disk at the commit. PostgreSQL always does.
        """
        with self.engine.connect() as bare:
            connection = bare.execution_options(writes=True, durable=durable)
            with connection.begin() as transaction:
                yield connection
                if not transaction.is_active:
                    return
                transaction.commit()


class SqliteFile:
    """The file of a SQLite store: created on first use only, and watched for replacement."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.may_create = True

    def connect(self) -> sqlite3.Connection:
        """A connection whose commits are on disk when they return."""
        if self.may_create and not self.path.parent.is_dir():
            folder = self.path.parent
            raise StoreUnavailable(
                "away",
                f"there is no folder '{folder}' for the store's file{nearest_path(folder)}; make "
                "it, or name another with --store",
            )
        if not self.may_create and not self.path.exists():
            raise StoreUnavailable(
                "away",
                f"there is no file '{self.path}'; nothing is stored yet: check --store, or PUT a "
                "prior first",
            )
        if self.path.is_dir():
            raise StoreUnavailable("away", f"'{self.path}' is a folder; expected the store's file")
        try:
            connection = sqlite3.connect(
                f"file:{quote(os.fsencode(self.path))}?mode={'rwc' if self.may_create else 'rw'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(
                "away",
                f"'{self.path}' cannot be opened: {error}; check its owner, folder and disk",
            ) from error
        try:
            connection.text_factory = _text
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def identity(self) -> tuple[int, int]:
        """Device and inode; they change when the file is replaced while a connection is open."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise StoreUnavailable(
                "away", f"{self.path}: {error.strerror}; expected a file that this user can write"
            ) from error
        return found.st_dev, found.st_ino


def _text(raw: bytes) -> str:
    """Decode a text of the file. One that is not UTF-8 must not make the whole query fail."""
    return raw.decode("utf-8", "surrogateescape")


def sqlite_engine(file: SqliteFile) -> Engine:
    """An engine whose writing transactions begin IMMEDIATE, so that two writers cannot deadlock."""
    engine = create_engine("sqlite://", creator=file.connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("durable", True):
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")  # refused in a transaction
        if options.get("writes", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def postgres_engine(url: URL) -> Engine:
    """An engine that gives up on a server that does not answer, and whose commits are on disk."""
    if importlib.util.find_spec("psycopg") is None:
        raise InvalidStoreUrl("a PostgreSQL store needs psycopg: pip install 'priordial[postgres]'")
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=1,  # others close after use: a thousand replicas hold a thousand
        max_overflow=4,
        pool_timeout=2,
        connect_args={
            "connect_timeout": 2,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "priordial",
            "client_encoding": "utf8",  # else texts of a SQL_ASCII database arrive as bytes
        },
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '1500ms'; SET lock_timeout = '1500ms'")
            # a replica that is frozen inside a transaction must not block the others
            cursor.execute("SET idle_in_transaction_session_timeout = '5s'")
            cursor.execute(
                "SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN "
                "set_config('synchronous_commit', 'on', false) END"
            )
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def _hear_last_words(context: ExceptionContext) -> None:
        """Drop a connection when the server announces its shutdown, which the driver notices only
        later.
        """
        if getattr(context.original_exception, "sqlstate", None) in _LAST_WORDS:
            context.is_disconnect = True

    return engine
