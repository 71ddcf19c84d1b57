"""Orders for models in the store, and what the workers report of their models."""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, func, insert, select

from service.priors.orders.wishes import AS_SET, ModelOrder, Wish, WorkerModel
from service.priors.store.checked import readable_rows, text_of, whole_of
from service.priors.store.reports import alive, readable_reports
from service.priors.store.rows import microseconds, moment
from service.priors.store.schema import model_orders, workers

log = logging.getLogger(__name__)


def newest_orders(connection: Connection) -> tuple[ModelOrder, ...]:
    """The newest order for each model."""
    newest = select(func.max(model_orders.c.change)).group_by(model_orders.c.model)
    return _orders(connection, model_orders.c.change.in_(newest))


def orders_since(connection: Connection, change: int, last: int) -> tuple[ModelOrder, ...]:
    """The orders after a change number, up to the last one."""
    return _orders(connection, (model_orders.c.change > change) & (model_orders.c.change <= last))


def changed_order(
    connection: Connection,
    model: str,
    change: Callable[[Wish], Wish],
    *,
    by: str,
    number: int,
) -> tuple[ModelOrder | None, bool]:
    """Store a changed wish unless nothing changed. Returns (the order in force, whether it is new).

    number: the number of this change. Call it in a transaction that excludes other writers.
    """
    mine = model_orders.c.model == model
    newest = select(func.max(model_orders.c.change)).where(mine).scalar_subquery()
    now = next(iter(_orders(connection, model_orders.c.change == newest)), None)
    before = AS_SET if now is None else now.wish
    wish = change(before)
    if wish == before:
        return now, False
    order = ModelOrder(model, wish, number, by, datetime.now(UTC))
    connection.execute(insert(model_orders).values(order_row(order)))
    return order, True


def order_row(order: ModelOrder) -> dict[str, Any]:
    """The values of an order's row."""
    values = {
        "change": order.change,
        "model": order.model,
        "updated_us": microseconds(order.updated_at),
        "author": order.by,
        "body": order.wish.model_dump_json(),
    }
    return {**values, "checksum": _checksum(values)}


def worker_models(connection: Connection, model: str) -> list[WorkerModel]:
    """Return the versions of a model that each live worker serves."""
    query = select(workers).where(alive(connection))
    rows = connection.execute(query.order_by(workers.c.replica, workers.c.pid)).all()
    with readable_reports():
        return [_worker_model(row, model) for row in rows]


def _worker_model(row: Row[Any], model: str) -> WorkerModel:
    models = json.loads(row.models)
    found = models.get(model, {})
    error = found.get("error")
    return WorkerModel(
        replica=text_of(row.replica, "a replica"),
        pid=whole_of(row.pid, "a pid"),
        worker=text_of(row.worker, "a worker"),
        seen_at=moment(row.seen_us),
        seen=_number(row.change),
        serving=bool(models),
        versions=tuple(whole_of(each, "a version") for each in found.get("versions", ())),
        order=whole_of(found.get("order", 0), "an order"),
        error=None if error is None else text_of(error, "an error"),
    )


def _number(change: object) -> int:
    """The change that a worker has read; −1 before the first, as it reports it."""
    return -1 if change == -1 else whole_of(change, "a change")


def _orders(connection: Connection, where: Any) -> tuple[ModelOrder, ...]:
    read = connection.execute(select(model_orders).where(where))
    rows = readable_rows(read, numbers=("change",), texts=("model", "author"))
    found = [order for row in rows if (order := _order(row)) is not None]
    return tuple(sorted(found, key=lambda order: order.change))


def _order(row: Row[Any]) -> ModelOrder | None:
    """The order in a row; None, and a line in the log, when its checksum does not match."""
    values = {name: value for name, value in row._mapping.items() if name != "checksum"}  # noqa: SLF001 - public API
    wish = None
    if _checksum(values) == row.checksum:
        try:
            wish = Wish.model_validate_json(row.body)
        except (ValidationError, ValueError, TypeError):  # another program's form of a wish
            wish = None
    if wish is None:
        log.error(
            "the order of change %d for model %r is damaged in the store and not carried out; give "
            "it again",
            row.change,
            row.model,
        )
        return None
    return ModelOrder(row.model, wish, row.change, row.author, moment(row.updated_us))


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
