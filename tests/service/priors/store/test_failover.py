"""A promoted standby replaces its primary if it has every revision that was served."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from service.contract.members.body import parse_prior
from service.priors.changes import Replace
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl, open_store
from tests.support.eventually import eventually, eventually_async
from tests.support.priors import following, make_bundle

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


def test_only_a_postgresql_store_has_a_standby(tmp_path: Path):
    with pytest.raises(InvalidStoreUrl, match="--store-reads"):
        open_store(f"sqlite:///{tmp_path}/p.db", reads="postgresql://host/name")
