"""A promoted standby replaces its primary if it has every revision that was served."""

import asyncio
import shutil
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import delete, update

from service.contract.members.body import parse_prior
from service.priors.changes import Replace
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl, open_store
from service.priors.store.schema import history, meta
from tests.support.eventually import eventually, eventually_async
from tests.support.priors import following, make_bundle
from tests.support.server import running
from tests.support.small_models import inputs, publish_model

PETS = make_bundle()


def body(lynx):
    return parse_prior({"target": {"cat": 1, "dog": 2, "lynx": lynx}})


class Pair:
    """A primary and a standby that streams from it, in folders side by side."""

    def __init__(self, make):
        self.primary, self.standby = make(), make()
        self.standby.stop()
        data = self.standby.folder / "data"
        shutil.rmtree(data)
        subprocess.run(
            [
                *(str(self.primary.binaries / "pg_basebackup"), "-h", str(self.primary.folder)),
                *("-U", "postgres", "-D", str(data), "-R", "--checkpoint=fast", "--no-sync"),
            ],
            user=self.primary.user,
            check=True,
            capture_output=True,
        )
        self.standby.start()

    @property
    def url(self):
        """Both servers; the one that takes writes is the store."""
        hosts = f"host={self.primary.folder}&host={self.standby.folder}"
        return f"postgresql://postgres@/postgres?{hosts}&target_session_attrs=read-write"

    def caught_up(self):
        def position(server, function):
            with psycopg.connect(server.url("postgres")) as connection:
                return connection.execute(f"SELECT {function}()").fetchone()[0]

        written = position(self.primary, "pg_current_wal_lsn")
        return position(self.standby, "pg_last_wal_replay_lsn") >= written

    def replicate_synchronously(self):
        """Let the primary acknowledge a change only once the standby has it."""
        with psycopg.connect(self.primary.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            state = "SELECT sync_state FROM pg_stat_replication"
            eventually(lambda: connection.execute(state).fetchone() == ("sync",))

    def part(self):
        """Cut the standby off from its primary."""
        with psycopg.connect(self.standby.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            eventually(
                lambda: (
                    connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone()
                    == (0,)
                )
            )

    def fail_over(self):
        """End the primary at once, and promote the standby."""
        self.primary.stop()
        with psycopg.connect(self.standby.url("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")


@pytest.fixture
def pair(make_postgres):
    return Pair(make_postgres)


class Clients:
    """Two threads that predict and two that change priors, until `end`."""

    def __init__(self, url):
        self.statuses, self.acknowledged, self.refused = Counter(), [], []
        """Answers to predictions; (prior, revision) of each change; problems of the others."""
        self._url, self._ended = url, threading.Event()
        self._threads = ThreadPoolExecutor(4)
        self._running = [
            self._threads.submit(self._repeat, work, number)
            for work in (self._predict, self._change)
            for number in range(2)
        ]

    def end(self):
        self._ended.set()
        for each in self._running:
            each.result()

    def _repeat(self, work, number):
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._ended.is_set():
                work(client, number)

    def _predict(self, client, _):
        answer = client.post("/predict", json={"instances": inputs(2).tolist()})
        self.statuses[answer.status_code] += 1

    def _change(self, client, number):
        name, weight = f"site-{number}", 1 + len(self.acknowledged)
        answer = client.put(f"/priors/{name}", json={"target": {"class-0": weight}, "others": 1})
        if answer.is_success:
            self.acknowledged.append((name, answer.json()["revision"]))
        else:
            assert answer.status_code == 503, answer.text
            self.refused.append(answer.json())


async def write(priors, lynx):
    """A write that waits until the promoted server takes it."""
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        try:
            return await priors.put(PETS, "default", body(lynx), by="me")
        except StoreUnavailable:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)


def test_a_promoted_standby_with_the_whole_history_is_accepted_without_a_restart(pair):
    async def main():
        async with following(pair.url, answer_seconds=3.0) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            await asyncio.to_thread(eventually, pair.caught_up)
            await asyncio.to_thread(pair.fail_over)
            assert priors.select(PETS).revision == 1
            written = await write(priors, 2)
            assert written.entry.revision == 2
            await eventually_async(lambda: not priors.store_state.degraded)

    asyncio.run(main())


def test_a_promoted_standby_that_lacks_what_was_served_is_refused_though_it_has_as_many_changes(
    pair,
):
    async def main():
        async with following(pair.url, answer_seconds=3.0) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            await asyncio.to_thread(eventually, pair.caught_up)
            await asyncio.to_thread(pair.part)
            await priors.put(PETS, "default", body(2), by="me")
            assert priors.select(PETS).revision == 2
            await asyncio.to_thread(pair.fail_over)
            other = open_store(pair.standby.url("postgres"))
            other.open()
            change = Replace("default", body(9), PETS.class_digest)
            await asyncio.to_thread(
                lambda: other.write("pets", "default", change, by="another", after=-1)
            )
            other.close()
            await eventually_async(lambda: priors.store_state.kind == "behind", seconds=30)
            assert "does not contain change 2" in priors.store_state.detail
            assert priors.select(PETS).revision == 2

    asyncio.run(main())


def test_an_older_copy_restored_in_place_is_found_though_it_has_more_changes_by_now(store_url):
    """As after a restore while a replica was stopped; connections stay open."""
    frozen, other = open_store(store_url), open_store(store_url)
    frozen.open()
    other.open()

    def write(store, name, lynx):
        change = Replace(name, body(lynx), PETS.class_digest)
        return store.write("pets", name, change, by="me", after=-1).entry.change

    write(other, "default", 1)
    assert write(other, "lost", 2) == 2
    assert [each.change for each in frozen.newest().entries] == [1, 2]
    with other.database.transaction() as connection:
        connection.execute(delete(history).where(history.c.change > 1))
        connection.execute(update(meta).values(change=1))
    other.close()
    other = open_store(store_url)  # a replica that started after the restore
    other.open()
    write(other, "default", 3)
    assert write(other, "default", 4) == 3
    with pytest.raises(StoreUnavailable, match="does not contain change 2"):
        write(frozen, "lost", 5)
    for _again in range(2):
        with pytest.raises(StoreUnavailable, match="does not contain change 2"):
            frozen.since(2)
    assert other.since(2).number == 3  # it has served nothing else
    frozen.close()
    other.close()


def test_a_standby_is_followed_and_writes_go_to_its_primary(pair):
    async def main():
        reads = pair.standby.url("postgres")
        async with (
            following(pair.primary.url("postgres")) as writer,
            following(pair.primary.url("postgres"), reads=reads) as reader,
        ):
            await writer.put(PETS, "default", body(1), by="me")
            await eventually_async(lambda: reader.select(PETS).revision == 1)
            await reader.put(PETS, "default", body(2), by="me")
            await eventually_async(lambda: writer.select(PETS).revision == 2)

    asyncio.run(main())


def test_promoted_under_load_it_loses_no_acknowledged_change_and_no_prediction(pair, tmp_path):
    pair.replicate_synchronously()
    publish_model(tmp_path)
    with running(tmp_path, store=pair.url, workers=2) as server:
        clients = Clients(server.url)
        try:
            eventually(lambda: len(clients.acknowledged) > 20)
            pair.fail_over()
            before = len(clients.acknowledged)
            eventually(lambda: len(clients.acknowledged) > before + 20, seconds=60)
        finally:
            clients.end()
        assert set(clients.statuses) == {200}
        for name in ("site-0", "site-1"):
            newest = max(number for prior, number in clients.acknowledged if prior == name)
            found = httpx.get(f"{server.url}/priors/{name}/revisions", timeout=60).json()
            assert found["revisions"][0]["revision"] >= newest
        assert httpx.get(f"{server.url}/health/ready", timeout=60).json()["status"] == "ready"


def test_only_a_postgresql_store_has_a_standby(tmp_path: Path):
    with pytest.raises(InvalidStoreUrl, match="--store-reads"):
        open_store(f"sqlite:///{tmp_path}/p.db", reads="postgresql://host/name")
