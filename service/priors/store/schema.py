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
from service.priors.store.checked import whole_of

SCHEMA = 2
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
    Column("models", Text, nullable=False, server_default="{}"),
    Column("scraped_at", Text, nullable=False, server_default=""),
)

model_orders = Table(
    "priordial_model_orders",
    metadata,
    Column("change", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String(64), nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("checksum", String(64), nullable=False),
    Index("priordial_orders_of_model", "model", "change"),
)


def schema_number(connection: Connection) -> int:
    """The number of the schema in the database; 0 when there is none."""
    if not inspect(connection).has_table(meta.name):
        return 0
    return whole_of(connection.execute(select(meta.c.schema)).scalar() or 0, "its schema")


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, inside a transaction that the caller commits.

    Raises StoreUnavailable when a newer program has written it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    found = schema_number(connection)
    if found > SCHEMA:
        raise StoreUnavailable(
            "incompatible",
            f"its schema is {found}, but this release knows at most {SCHEMA}: a newer release "
            "wrote it; upgrade this one, or name another store with --store",
        )
    for step in _STEPS[found:]:
        step(connection)
    if found < SCHEMA:
        connection.execute(update(meta).values(schema=SCHEMA))


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    values = {"id": 1, "schema": SCHEMA, "store_id": uuid.uuid4().hex, "change": 0}
    connection.execute(insert(meta).values(values))


def _add_model_orders(connection: Connection) -> None:
    """Add the tables for orders for models. Workers of a release with schema 1 can still run."""
    model_orders.create(connection, checkfirst=True)
    there = {column["name"] for column in inspect(connection).get_columns(workers.name)}
    for name, default in (("models", "{}"), ("scraped_at", "")):
        if name not in there:
            added = f"ADD COLUMN {name} TEXT NOT NULL DEFAULT '{default}'"
            connection.execute(text(f"ALTER TABLE {workers.name} {added}"))


_STEPS = (_create, _add_model_orders)
assert len(_STEPS) == SCHEMA
