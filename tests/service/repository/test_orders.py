"""Orders for models reach every worker of every replica through the store, and outlive them all."""

import asyncio
import contextlib
import shutil
import sqlite3

import httpx
import numpy as np
import pytest

from service.priors.orders import wishes
from service.priors.orders.wishes import AS_SET
from service.priors.revisions import StoreUnavailable
from service.priors.store import open_store
from service.server import create_app
from service.settings import Settings
from tests.support.server import metric
from tests.support.small_models import inputs, linear_model, publish_model

pytestmark = pytest.mark.usefixtures("patient")

PREDICT = "/models/linear/predict"
BODY = {"instances": inputs(1).tolist()}
LOAD, UNLOAD = (f"/v2/repository/models/linear/{verb}" for verb in ("load", "unload"))


def publish_version(models, version):
    publish_model(models, model=linear_model(seed=version))


@pytest.fixture
def models(tmp_path):
    publish_version(tmp_path / "models", 1)
    return tmp_path / "models"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/p.db"
    return request.getfixturevalue("postgres").new_schema()


@contextlib.asynccontextmanager
async def replica(models, store, **settings):
    """A client of a whole service of its own."""
    app = create_app(
        Settings(models=models, store=store, provider="cpu", intra_op_threads=1, **settings)
    )
    await app.start()
    try:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        await app.stop()


@contextlib.asynccontextmanager
async def two(models, store, **settings):
    async with (
        replica(models, store, **settings) as one,
        replica(models, store, **settings) as other,
    ):
        serving = 0
        async with asyncio.timeout(20):  # an order waits for replicas that reported what they serve
            while serving < 2:
                reported = await done(one.get("/models/linear/replicas"))
                serving = sum(bool(each["versions"]) for each in reported["replicas"])
        yield one, other


async def done(answering):
    answer = await answering
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.content else None


async def versions(client, *, rows=1, path=PREDICT):
    """The versions that answered so many different requests, in order."""
    found = []
    for row in inputs(rows, seed=7).tolist():
        answer = await client.post(path, json={"instances": [row]})
        found.append(answer.json()["version"] if answer.status_code == 200 else answer.status_code)
    return found


def test_every_replica_has_carried_an_order_out_when_it_is_answered(models, store):
    async def go():
        async with two(models, store) as (one, other):
            await done(one.post(UNLOAD))
            assert await versions(other) == [404]
            publish_version(models, 2)
            await done(other.post(LOAD))
            assert await versions(one) == [2]
            reported = await done(one.get("/models/linear/replicas"))
            assert reported["agree"]
            assert [each["versions"] for each in reported["replicas"]] == [[2, 1], [2, 1]]
            assert {each["order"] for each in reported["replicas"]} == {reported["order"]}
            shutil.rmtree(models / "linear" / "2")
            await done(one.post(LOAD))
            assert await versions(other) == [1]

    asyncio.run(go())


def test_an_order_outlives_the_replica_that_gave_it_and_binds_those_that_come_later(
    models, tmp_path
):
    store = f"sqlite:///{tmp_path}/p.db"

    async def go():
        async with replica(models, store, allow_no_models=True) as one:
            await done(one.post(UNLOAD))
        async with replica(models, store, allow_no_models=True) as later:
            assert await versions(later) == [404]
            index = await done(later.post("/v2/repository/index"))
            assert index[0]["reason"] == "unloaded"
            await done(later.post(LOAD))
            assert await versions(later) == [1]

    asyncio.run(go())


def test_a_model_that_failed_to_load_can_be_unloaded_so_that_it_is_not_tried_again(models, store):
    async def go():
        async with two(models, store) as (one, other):
            broken = models / "broken" / "1"
            broken.mkdir(parents=True)
            (broken / "model.json").write_text("{}")
            refused = await one.post("/v2/repository/models/broken/load")
            assert refused.status_code == 422
            await done(other.post("/v2/repository/models/broken/unload"))
            again = await one.post("/v2/repository/models/broken/unload")
            assert again.status_code == 404
            assert "no model 'broken' is loaded" in again.json()["detail"]
        shutil.rmtree(broken)
        publish_model(models, "broken")  # mended, and yet not loaded without an order
        async with replica(models, store) as later:
            assert await versions(later, path="/models/broken/predict") == [404]
            index = await done(later.post("/v2/repository/index"))
            assert [i["reason"] for i in index if i["name"] == "broken"] == ["unloaded"]

    asyncio.run(go())


def test_versions_to_keep_and_the_default_model_are_the_same_everywhere(models, tmp_path):
    store = f"sqlite:///{tmp_path}/p.db"

    async def go():
        for version in (2, 3):
            publish_version(models, version)
        publish_model(models, "other")
        async with two(models, store, default_model="linear") as (one, other):
            reported = await done(one.patch("/models/linear", json={"keep_versions": 1}))
            assert [each["versions"] for each in reported["replicas"]] == [[3], [3]]
            assert reported["keep_versions"] == 1
            await done(other.patch("/models/linear", json={"keep_versions": None}))
            assert (await done(one.get("/models/linear")))["versions"] == [3, 2]
            await done(one.patch("/models/other", json={"default": True}))
            assert (await done(other.post("/predict", json=BODY)))["model"] == "other"
            await done(other.patch("/models/other", json={"default": False}))
            assert (await done(one.post("/predict", json=BODY)))["model"] == "linear"

    asyncio.run(go())


def test_a_new_version_gets_its_share_of_the_requests_the_same_ones_everywhere(models, store):
    async def go():
        async with two(models, store, rollout=0.25) as (one, other):
            assert await versions(one) == [1]
            publish_version(models, 2)
            await done(one.post(LOAD))
            seen = await versions(one, rows=200)
            assert await versions(other, rows=200) == seen
            assert 0.15 < np.mean(np.array(seen) == 2) < 0.35
            text = (await other.get("/metrics")).text
            assert metric(text, "priordial_rollout_share", model="linear", version="2") == 0.25
            for version in (1, 2):
                counted = metric(
                    text, "priordial_version_requests_total", version=version, outcome="scored"
                )
                assert counted == seen.count(version)
            reported = await done(other.get("/models/linear/rollout"))
            assert (reported["version"], reported["share"], reported["stable"]) == (2, 0.25, 1)
            assert [each["requests"] for each in reported["compared"]] == [
                seen.count(1),
                seen.count(2),
            ]
            pinned = await versions(one, rows=20, path=f"{PREDICT}?version=1")
            assert set(pinned) == {1}
            await done(other.put("/models/linear/rollout", json={"version": 2, "share": 1.0}))
            assert set(await versions(one, rows=20)) == {2}

    asyncio.run(go())


def test_a_version_on_trial_is_promoted_or_taken_back_everywhere_and_for_good(models, postgres):
    store = postgres.new_schema()

    async def go():
        async with two(models, store, rollout=0.5) as (one, other):
            publish_version(models, 2)
            await done(one.post(LOAD))
            await done(other.post("/models/linear/rollout/promote"))
            assert set(await versions(one, rows=20)) == {2}
            publish_version(models, 3)
            await done(other.post(LOAD))
            assert set(await versions(one, rows=20)) == {2, 3}
            await done(one.post("/models/linear/rollout/take-back"))
            await done(other.post(LOAD))
            assert set(await versions(other, rows=20)) == {2}
            none = await one.post("/models/linear/rollout/promote")
            assert (none.status_code, none.json()["type"]) == (409, "/problems/conflict")
        async with replica(models, store, rollout=0.5) as later:
            assert set(await versions(later, rows=20)) == {2}

    asyncio.run(go())


def test_a_version_that_was_replaced_on_trial_answers_nothing(models, tmp_path):
    """It was never promoted, so the version before both answers the rest."""
    rollout = "/models/linear/rollout"
    store = f"sqlite:///{tmp_path}/p.db"

    async def go():
        async with replica(models, store, rollout=0.5) as one:
            for version in (2, 3):
                publish_version(models, version)
                await done(one.post(LOAD))
                assert set(await versions(one, rows=20)) == {1, version}
            index = (await one.post("/v2/repository/index")).json()
            assert "in its place" in next(v["reason"] for v in index if v["version"] == "2")
            await done(one.put(rollout, json={"version": 3, "share": 0.4}))
            assert set(await versions(one, rows=20)) == {1, 3}
            publish_version(models, 4)
            await done(one.put(rollout, json={"version": 4, "share": 0.5}))
            assert set(await versions(one, rows=20)) == {1, 4}
        async with replica(models, store, rollout=0.5) as later:
            assert set(await versions(later, rows=20)) == {1, 4}
            await done(later.post(f"{rollout}/take-back"))
            assert set(await versions(later, rows=20)) == {1}

    asyncio.run(go())


def test_where_the_accepted_version_is_gone_another_one_answers(models, tmp_path):
    async def go():
        async with replica(models, f"sqlite:///{tmp_path}/p.db", rollout=0.5) as one:
            for version in (2, 3):
                publish_version(models, version)
                await done(one.post(LOAD))
            shutil.rmtree(models / "linear" / "1")
            await done(one.post(LOAD))
            assert set(await versions(one, rows=20)) == {2, 3}

    asyncio.run(go())


def test_a_version_can_be_put_on_trial_where_new_ones_are_taken_up_at_once(models, tmp_path):
    async def go():
        publish_version(models, 2)
        async with replica(models, f"sqlite:///{tmp_path}/p.db") as one:
            assert set(await versions(one, rows=20)) == {2}
            await done(one.put("/models/linear/rollout", json={"version": 2, "share": 0.5}))
            assert set(await versions(one, rows=20)) == {1, 2}
            await done(one.post("/models/linear/rollout/promote"))
            publish_version(models, 3)
            await done(one.post(LOAD))
            assert set(await versions(one, rows=20)) == {3}
            first = await one.put("/models/linear/rollout", json={"version": 1, "share": 0.5})
            assert first.status_code == 422
            assert "together with an older version" in first.json()["detail"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (("PATCH", "/models/linear", {"keep_versions": 0}), "greater than or equal to 1"),
        (("PATCH", "/models/linear", {"keep": 1}), "keep"),
        (("PUT", "/models/linear/rollout", {"version": 1, "share": 2}), "share"),
        (("PUT", "/models/linear/rollout", {"version": 9, "share": 0.5}), "version 9"),
        (("PUT", "/models/linear/rollout", []), "object"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_the_reason(models, tmp_path, order, words):
    async def go():
        async with replica(models, f"sqlite:///{tmp_path}/p.db") as one:
            method, path, body = order
            refused = await one.request(method, path, json=body)
            assert refused.status_code == 422
            assert words in refused.text

    asyncio.run(go())


def test_a_replica_that_cannot_carry_an_order_out_is_named(models, tmp_path):
    """Two folders, as where one replica's volume lags behind."""

    async def go():
        store, behind = f"sqlite:///{tmp_path}/p.db", tmp_path / "behind"
        shutil.copytree(models, behind)
        publish_version(models, 2)
        publish_version(behind, 2)
        (behind / "linear" / "2" / "model.onnx").write_bytes(b"not a graph")
        async with replica(behind, store) as other, replica(models, store) as one:
            assert await versions(other) == [1]
            answer = await one.post(LOAD)
            assert answer.status_code == 503
            assert "another could not" in answer.text
            assert "model.onnx" in answer.text
            reported = await done(other.get("/models/linear/replicas"))
            assert not reported["agree"]
            assert sum(each["error"] is not None for each in reported["replicas"]) == 1

    asyncio.run(go())


def test_orders_wait_for_a_store_that_is_away_and_models_go_on(models, tmp_path):
    async def go():
        path = tmp_path / "p.db"
        async with replica(models, f"sqlite:///{path}") as one:
            kept = path.read_bytes()
            path.write_bytes(b"not a database, of more than 100 bytes" * 20)
            refused = await one.post(UNLOAD)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert await versions(one) == [1]
            path.write_bytes(kept)

    asyncio.run(go())


# ---- the store


@pytest.fixture
def opened(store):
    found = open_store(store)
    found.open()
    yield found
    found.close()


def test_of_many_that_see_a_new_version_one_puts_it_on_trial(opened):
    def take_up(wish):
        return wishes.take_up(wish, newest=2, serving=1, share=0.1)

    orders = [opened.order("linear", take_up, by="rollout", after=-1) for _ in range(3)]
    assert len({each.change for each in orders}) == 1
    assert orders[0].wish.rollout.version == 2
    assert opened.order("other", lambda wish: wish, by="me", after=-1) is None


def test_an_order_is_read_by_those_that_follow_and_a_damaged_one_is_left_out(opened, caplog):
    first = opened.order("linear", wishes.unload, by="me", after=-1)
    assert opened.newest().orders == (first,)
    second = opened.order("linear", wishes.load, by="you", after=first.change)
    assert opened.since(first.change).orders == (second,)
    with opened.database.transaction() as connection:
        connection.exec_driver_sql(
            f"UPDATE priordial_model_orders SET author = 'x' WHERE change = {second.change}"
        )
    assert opened.newest().orders == ()
    assert "damaged" in caplog.text
    with pytest.raises(StoreUnavailable, match="older store"):
        opened.order("linear", wishes.load, by="me", after=second.change + 1)


def test_a_store_of_the_first_schema_gets_orders_and_keeps_its_priors(tmp_path):
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.executescript(
            """
            CREATE TABLE priordial_meta (id INTEGER PRIMARY KEY, schema INTEGER NOT NULL,
                store_id VARCHAR(32) NOT NULL, change BIGINT NOT NULL);
            INSERT INTO priordial_meta VALUES (1, 1, 'abc', 7);
            CREATE TABLE priordial_prior_revisions (change BIGINT PRIMARY KEY,
                model VARCHAR(64) NOT NULL, name VARCHAR(64) NOT NULL, revision BIGINT NOT NULL,
                class_digest VARCHAR(64) NOT NULL, updated_us BIGINT NOT NULL, author TEXT NOT NULL,
                note TEXT NOT NULL, body TEXT, deleted SMALLINT NOT NULL,
                checksum VARCHAR(64) NOT NULL, UNIQUE (model, name, revision));
            CREATE TABLE priordial_workers (worker VARCHAR(64) PRIMARY KEY, replica TEXT NOT NULL,
                pid BIGINT NOT NULL, change BIGINT NOT NULL, damaged TEXT NOT NULL,
                seen_us BIGINT NOT NULL);
            INSERT INTO priordial_workers VALUES ('old', 'host', 1, 7, '[]', 1);
            """
        )
    store = open_store(f"sqlite:///{path}")
    store.open()
    try:
        assert store.database.store_id == "abc"
        assert store.order("linear", wishes.unload, by="me", after=7).change == 8
        assert store.newest().number == 8
    finally:
        store.close()
    with sqlite3.connect(path) as new:  # a program of the first schema goes on reporting
        new.execute(
            "INSERT INTO priordial_workers (worker, replica, pid, change, damaged, seen_us) "
            "VALUES ('b', 'h', 1, 7, '[]', 1)"
        )


# ---- wishes


def test_a_version_is_put_on_trial_once_and_a_newer_one_replaces_it():
    first = wishes.take_up(AS_SET, newest=1, serving=None, share=0.1)
    assert (first.accepted, first.rollout) == (1, None)
    second = wishes.take_up(first, newest=2, serving=1, share=0.1)
    assert wishes.take_up(second, newest=2, serving=1, share=0.1) == second
    third = wishes.take_up(second, newest=3, serving=1, share=0.1)
    assert (third.accepted, third.rollout.version) == (1, 3)
    back = wishes.take_back(third)
    assert wishes.take_up(back, newest=3, serving=1, share=0.1) == back
    assert wishes.take_up(back, newest=4, serving=1, share=0.1).rollout.version == 4
    again = wishes.begin_rollout(back, version=3, share=0.2, stable=1)
    assert again.withdrawn == ()
