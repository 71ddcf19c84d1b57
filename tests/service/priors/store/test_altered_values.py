"""Any value in any column of the store: what is read is of its type, or is reported as damaged.

SQLite keeps any type in any column; both engines keep what was altered by hand.
"""

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import MetaData, Table, text
from sqlalchemy.exc import SQLAlchemyError

from service.api.priors.views import prior_line, revision_line
from service.contract.members.body import parse_prior
from service.contract.shift.tracking import OtherState, PriorTracker
from service.evaluate.ring import ROW
from service.evaluate.shared import SharedAnswers
from service.priors.changes import Replace
from service.priors.feed import WorkerReport
from service.priors.orders.wishes import load
from service.priors.revisions import StoreUnavailable
from service.priors.shift.watch import Judged
from service.priors.snapshot import EMPTY, advance
from service.priors.store import kept as kept_module
from service.priors.store import open_store
from service.priors.store.kept import KeptState
from service.priors.store.store import SqlPriorStore
from tests.support.priors import make_bundle

PETS = make_bundle()
DEEP = "[" * 3000 + "]" * 3000
VALUES: list[Any] = [
    None, "", "text", "\x00", "ä\ud800"[:1], "x" * 200_000, b"", b"\xff\xfe", b"PK\x03\x04", -1, 0,
    1, 2**31, 2**53, 2**63 - 1, -(2**63), 1.5, 1e308, float("inf"), "{}", "[]", "null", "[1]",
    '{"pets": 1}', '{"pets": {"versions": 1}}', '{"pets": {"versions": ["a"], "order": "b"}}',
    '[["pets", "default", "x"]]', '[["pets", "default", [1]]]', '[["pets", "default", 1e400]]',
    '{"target": NaN}', '{"at": "2026-01-01", "verdict": 3}', DEEP, "1" * 5000,
]  # fmt: skip
TRIED = 4
"""How many of them are tried in each column; all of them take minutes."""
TABLES = {
    "priordial_meta": ("schema", "store_id", "change"),
    "priordial_prior_revisions": (
        "change", "model", "name", "revision", "class_digest", "updated_us", "author", "note",
        "body", "deleted", "checksum",
    ),
    "priordial_workers": (
        "worker", "replica", "pid", "change", "damaged", "seen_us", "models", "scraped_at",
    ),
    "priordial_model_orders": ("change", "model", "updated_us", "author", "body", "checksum"),
    "priordial_tracking": ("model", "keeper", "class_digest", "kept_us", "state", "judged"),
    "priordial_answers": ("model", "version", "keeper", "kept_us", "rows"),
    "priordial_labels": ("number", "model", "version", "kept_us", "labels"),
}  # fmt: skip


def tracker() -> PriorTracker:
    return PriorTracker(temperature=1.0, log_source=np.log([0.6, 0.3, 0.1]))


def filled(url: str) -> SqlPriorStore:
    """A store with a row in each table, and more in the history."""
    store = open_store(url)
    store.open()
    for weight in (1.0, 2.0):
        body = parse_prior({"target": {"cat": weight, "dog": 2, "lynx": 3}, "note": "why"})
        change = Replace("default", body, PETS.class_digest)
        store.write("pets", "default", change, by="me", after=-1)
    store.order("pets", load, by="me", after=-1)
    models = json.dumps({"pets": {"versions": [1], "order": 3}})
    report = WorkerReport("w", "host", 7, change=3, damaged=(("pets", "default", 1),))
    store.report(report.__class__(**{**report.__dict__, "models": models, "scraped_at": "h:1"}))
    learnt = tracker()
    learnt.update(np.zeros((3, 3)))
    judged = Judged(datetime.now(UTC), "usable", "fine", {}, 3, {"default": {"action": "wait"}})
    state = KeptState("pets", "host/0", PETS.class_digest, learnt.state(), judged.document())
    store.kept.keep(state)
    shared(store, "host").sync({("pets", 1): np.zeros(2, ROW)})
    shared(store, "host").add_labels(("pets", 1), np.zeros(1, [("id", "S32"), ("row", "<u4"),
        ("label", "<i4"), ("sampled", "<f4")]))  # fmt: skip
    return store


def shared(store: SqlPriorStore, replica: str) -> SharedAnswers:
    return SharedAnswers(
        store.answers, replica=replica, slot=0, workers=1, max_rows=10, seconds=1e9
    )


def readings(store: SqlPriorStore) -> Iterator[Callable[[], object]]:
    """Everything that the service reads from a store, as far as it is used."""
    yield lambda: used(store.newest())
    yield lambda: used(store.since(0))
    yield lambda: [prior_line(entry, fits=True) for entry in store.everything()]
    yield lambda: store.read("pets", "default", 1)
    yield lambda: [
        revision_line(entry) for entry in store.history("pets", "default", before=None, limit=9)
    ]
    yield lambda: [
        (one.replica + one.worker, one.pid + one.revision, one.seen_at.timestamp())
        for one in store.served("pets", "default")
    ]
    yield lambda: [
        (one.replica + one.worker, sum(one.versions) + one.order, f"{one.error}", one.seen > 0)
        for one in store.worker_models("pets")
    ]
    yield lambda: "".join(store.scrape_targets())
    yield lambda: [learnt(one) for one in store.kept.of("pets")]
    yield lambda: shared(store, "other").sync({})
    yield lambda: shared(store, "host").restored([("pets", 1)])
    yield lambda: store.order("pets", load, by="me", after=-1)
    body = parse_prior({"target": "uniform"})
    change = Replace("default", body, PETS.class_digest)
    yield lambda: store.write("pets", "default", change, by="me", after=-1)


def used(changes: Any) -> None:
    entries = [entry for entry in changes.entries if not entry.damaged]
    for held in advance(EMPTY, entries).values():
        assert held.newest.revision > 0
    assert all(entry.updated_at.year > 1900 for entry in changes.entries)
    assert sum(order.change for order in changes.orders) >= 0


def learnt(kept: KeptState) -> None:
    own = tracker()
    try:
        own.restore(kept.state)
    except OtherState:
        own.update(np.zeros((1, 3)))
    assert np.isfinite(own.estimate().prior).all()
    judged = Judged.of_document(kept.judged)
    assert judged is None or judged.at <= datetime.now(UTC)
    assert kept.kept_at is not None


@pytest.fixture
def store(store_url: str) -> Iterator[SqlPriorStore]:
    made = filled(store_url)
    yield made
    made.close()


@pytest.mark.parametrize("part_bytes", [2**20, 100])
@pytest.mark.parametrize("table", TABLES)
def test_a_value_of_another_kind_is_told_or_left_out(
    store: SqlPriorStore, store_url: str, table: str, part_bytes: int, monkeypatch
) -> None:
    if part_bytes == 100 and table != "priordial_tracking":
        return  # states alone are read in parts
    monkeypatch.setattr(kept_module, "_PART_BYTES", part_bytes)
    metadata = MetaData()
    metadata.reflect(store.database.engine)
    tables = {name: metadata.tables[name] for name in TABLES}
    before = dumped(store, tables)
    odd: list[str] = []
    tried = 0
    for column in TABLES[table]:
        for value in random.Random(f"{table}.{column}").sample(VALUES, TRIED):
            if not altered(store, table, column, value):
                continue
            tried += 1
            other = open_store(store_url)
            try:
                other.open(create=False)
                for number, read in enumerate(readings(other)):
                    try:
                        read()
                    except StoreUnavailable:
                        pass
                    except Exception as error:  # noqa: BLE001 - each kind is a fault
                        odd.append(f"{column}={value!r:.40}, reading {number}: {error!r:.150}")
            except StoreUnavailable:
                pass
            except Exception as error:  # noqa: BLE001
                odd.append(f"{column}={value!r:.40}, opening: {error!r:.150}")
            finally:
                other.close()
            filled_again(store, tables, before)
    assert odd == []
    assert tried > len(TABLES[table])


def dumped(store: SqlPriorStore, tables: dict[str, Table]) -> dict[str, list[dict[str, Any]]]:
    with store.database.engine.connect() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(table.select())]
            for name, table in tables.items()
        }


def altered(store: SqlPriorStore, table: str, column: str, value: Any) -> bool:
    """Give every row of a table another value; False where the engine takes none such."""
    try:
        with store.database.transaction() as connection:
            connection.execute(text(f"UPDATE {table} SET {column} = :value"), {"value": value})
    except (SQLAlchemyError, OverflowError, ValueError):
        return False
    return True


def filled_again(
    store: SqlPriorStore, tables: dict[str, Table], rows: dict[str, list[dict[str, Any]]]
) -> None:
    with store.database.transaction() as connection:
        for name, table in tables.items():
            connection.execute(table.delete())
            connection.execute(table.insert(), rows[name])


def test_a_text_that_is_no_utf8_hides_no_other_row(sqlite_url: str) -> None:
    store = filled(sqlite_url)
    with store.database.transaction() as connection:
        connection.execute(text(
            "UPDATE priordial_prior_revisions SET note = CAST(x'ff41' AS TEXT) WHERE revision = 2"
        ))  # fmt: skip
    found = store.newest().entries
    assert [(entry.revision, entry.damaged) for entry in found] == [(2, True), (1, False)]
    store.close()


def test_a_change_number_that_is_no_number_is_corrupt(sqlite_url: str) -> None:
    store = filled(sqlite_url)
    for value in ("abc", None, 1.5, -3):
        if altered(store, "priordial_meta", "change", value):
            with pytest.raises(StoreUnavailable) as caught:
                store.since(0)
            assert caught.value.kind == "corrupt"
    store.close()
