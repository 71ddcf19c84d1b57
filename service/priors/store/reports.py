"""The reports of the workers: which change each has read, and what it serves."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, delete, func, insert, literal_column, select, update

from service.priors.store.checked import readable
from service.priors.store.rows import microseconds
from service.priors.store.schema import workers

ALIVE_SECONDS = 20
"""A worker that has not reported for this long counts as ended."""


def clock_us(connection: Connection) -> Any:
    """Now, in microseconds since 1970, by the one clock that all replicas share: PostgreSQL's.

    A replica whose own clock is wrong would take the others for ended, or be taken for it.
    SQLite's workers are on one machine.
    """
    if connection.dialect.name != "postgresql":
        return microseconds(datetime.now(UTC))
    return literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint", BigInteger)


def time_us(connection: Connection) -> int:
    """The number of `clock_us`."""
    now = clock_us(connection)
    return now if isinstance(now, int) else int(connection.execute(select(now)).scalar_one())


def alive(connection: Connection) -> Any:
    """Select the workers that have reported lately."""
    return workers.c.seen_us > clock_us(connection) - ALIVE_SECONDS * 1_000_000


def readable_reports() -> AbstractContextManager[None]:
    """Turn the errors of reading a report that was altered by hand into StoreUnavailable."""
    return readable("the report of a worker", "it writes another soon: ask again")


def write_report(
    connection: Connection, worker: str, values: dict[str, Any], *, forget_us: int
) -> int:
    """Write a worker's row, and delete rows not written for `forget_us` microseconds.

    Returns how many workers have reported lately.
    """
    mine, now = workers.c.worker == worker, clock_us(connection)
    values = {**values, "seen_us": now}
    if connection.execute(update(workers).where(mine).values(values)).rowcount == 0:
        connection.execute(insert(workers).values(worker=worker, **values))
        connection.execute(delete(workers).where(workers.c.seen_us < now - forget_us))
    counted = select(func.count()).select_from(workers).where(alive(connection))
    return int(connection.execute(counted).scalar_one())
