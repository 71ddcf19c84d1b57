"""The tables, and their creation: once, however many workers start at the same time.

`priordial_meta` has one row. Every write begins by raising its `change`, which makes writers
wait for one another on both engines. Changes are therefore committed in the order of their
numbers, and a reader that sees one has seen all before it.
"""

import uuid

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
    update,
)

from service.priors.revisions import StoreUnavailable

SCHEMA = 1
_LOCK = 0x7072696F72  # any number, the same in every replica

metadata = MetaData()

meta = Table(
    "priordial_meta",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("schema", Integer, nullable=False),
    Column("store_id", String(32), nullable=False),
    Column("change", BigInteger, nullable=False),
)

history = Table(
    "priordial_prior_revisions",
    metadata,
    Column("change", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("class_digest", String(64), nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("body", Text),
    Column("deleted", SmallInteger, nullable=False),
    Column("checksum", String(64), nullable=False),
    UniqueConstraint("model", "name", "revision"),
    Index("priordial_heads", "model", "name", "class_digest", "change"),
)

workers = Table(
    "priordial_workers",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("replica", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("change", BigInteger, nullable=False),
    Column("damaged", Text, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
)


def schema_number(connection: Connection) -> int:
    """The schema that is there; 0 when there is none."""
    if not inspect(connection).has_table(meta.name):
        return 0
    return connection.execute(select(meta.c.schema)).scalar() or 0


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, inside a transaction that the caller commits.

    Raises StoreUnavailable when a newer program has written it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    found = schema_number(connection)
    if found > SCHEMA:
        raise StoreUnavailable(
            "incompatible", f"its schema is {found}, and this program knows {SCHEMA} at most"
        )
    for step in _STEPS[found:]:
        step(connection)
    if found < SCHEMA:
        connection.execute(update(meta).values(schema=SCHEMA))


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(insert(meta).values(id=1, schema=1, store_id=uuid.uuid4().hex, change=0))


_STEPS = (_create,)
assert len(_STEPS) == SCHEMA
