"""The reports of the workers: which change each has read, and what it serves."""

from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from service.priors.store.checked import readable
from service.priors.store.rows import microseconds
from service.priors.store.schema import workers

ALIVE_SECONDS = 20
"""A worker that has not reported for this long counts as ended."""


def alive(now: datetime) -> Any:
    """Select the workers that have reported lately."""
    return workers.c.seen_us > microseconds(now - timedelta(seconds=ALIVE_SECONDS))


def readable_reports() -> AbstractContextManager[None]:
    """Turn the errors of reading a report that was altered by hand into StoreUnavailable."""
    return readable("the report of a worker", "it writes another soon: ask again")


def write_report(
    connection: Connection, worker: str, values: dict[str, Any], *, forget_before: int
) -> int:
    """Write a worker's row, and delete rows not written since `forget_before` (microseconds).

    Returns how many workers have reported lately.
    """
    mine = workers.c.worker == worker
    if connection.execute(update(workers).where(mine).values(values)).rowcount == 0:
        connection.execute(insert(workers).values(worker=worker, **values))
        connection.execute(delete(workers).where(workers.c.seen_us < forget_before))
    lately = values["seen_us"] - ALIVE_SECONDS * 1_000_000
    counted = select(func.count()).select_from(workers).where(workers.c.seen_us > lately)
    return int(connection.execute(counted).scalar_one())
