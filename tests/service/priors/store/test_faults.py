"""Faults of a store, on the real engines: predictions go on, recovery needs no restart."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from service.contract.members.body import parse_prior
from service.priors.changes import Replace
from service.priors.feed import this_worker
from service.priors.priors import Priors
from service.priors.revisions import StoreUnavailable, UnknownPrior
from service.priors.store import open_store
from service.priors.store.engine import InvalidStoreUrl, SqliteFile
from service.priors.store.trouble import trouble_of
from tests.support.eventually import eventually_async
from tests.support.priors import following, make_bundle

PETS = make_bundle()


def body(i, note=""):
    return parse_prior({"target": {"cat": 1, "dog": 2, "lynx": i}, "note": note})


async def write_is_refused(priors, *kinds):
    with pytest.raises(StoreUnavailable) as caught:
        await priors.put(PETS, "default", body(99), by="me")
    assert caught.value.kind in kinds, caught.value
    return caught.value


async def write_until_refused(priors, *, at_most):
    """Large notes until the store is full; the newest revision stored, and the refusal."""
    revision = 0
    for i in range(at_most):
        try:
            revision = (
                await priors.put(PETS, "default", body(i, "x" * 2000), by="me")
            ).entry.revision
        except StoreUnavailable as error:
            return revision, error
    raise AssertionError("the store took everything")


async def write_when_possible(priors, prior):
    """A write that waits for a connection, or for another writer, to be out of the way."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            return await priors.put(PETS, "default", prior, by="me")
        except StoreUnavailable:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)


async def goes_on_and_recovers(priors, trouble, recover, *kinds, at_first=()):
    """Begin with revision 1 in force, meet trouble, serve on, refuse, recover, write again.

    `at_first`: kinds of trouble that may come before.
    """
    assert priors.select(PETS).revision == 1
    trouble()
    deadline = asyncio.get_running_loop().time() + 10
    while (await write_is_refused(priors, *kinds, *at_first)).kind in at_first:
        assert asyncio.get_running_loop().time() < deadline
    await eventually_async(lambda: priors.store_state.kind in kinds)
    assert priors.store_state.degraded
    assert priors.select(PETS).revision == 1
    assert priors.inline(PETS, {"target": "training"}).revision == 0
    assert priors.select(PETS, "uniform").revision == 0
    await write_is_refused(priors, *kinds)
    recover()
    written = await write_when_possible(priors, body(2))
    # one more where a refused write was already on its way
    assert written.entry.revision in ((2, 3, 4) if "slow" in kinds else (2,))
    assert priors.select(PETS).revision == written.entry.revision
    await eventually_async(lambda: not priors.store_state.degraded)


def scenario(url, trouble, recover, *kinds, at_first=()):
    async def main():
        async with following(url, answer_seconds=1.0) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            await goes_on_and_recovers(priors, trouble, recover, *kinds, at_first=at_first)

    asyncio.run(main())


def fill(path):
    """Take all the room that is left on the path's disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        for size in (65536, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"\0" * size)
    os.close(file)


# ---- PostgreSQL


@pytest.fixture
def own_postgres(make_postgres):
    """A server of this test alone, which it may damage."""
    server = make_postgres()
    yield server
    server.signal(signal.SIGCONT)
    server.stop()


def test_a_frozen_postgres(own_postgres):
    scenario(
        own_postgres.new_database(),
        lambda: own_postgres.signal(signal.SIGSTOP),
        lambda: own_postgres.signal(signal.SIGCONT),
        "slow",
    )


def test_a_killed_postgres(own_postgres):
    def kill():
        own_postgres.signal(signal.SIGKILL)
        own_postgres.process.wait(10)

    scenario(own_postgres.new_database(), kill, own_postgres.start, "away")


def test_a_write_that_a_frozen_postgres_swallowed_is_not_acknowledged_and_nothing_hangs(
    own_postgres,
):
    url = own_postgres.new_database()

    async def main():
        async with following(url, answer_seconds=0.5) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            own_postgres.signal(signal.SIGSTOP)
            error = await write_is_refused(priors, "slow")
            assert "may still take effect" in error.detail
            await eventually_async(lambda: priors.store_state.kind == "slow")
            calls = []
            priors._calls._store.write = lambda *a, **k: calls.append(a)
            await write_is_refused(priors, "slow")
            assert calls == [], "refused at once, without asking the store"
            del priors._calls._store.write
            own_postgres.signal(signal.SIGCONT)
            await eventually_async(lambda: priors.store_state.kind == "ok", seconds=20)
            # it took effect or it did not: in both cases all agree on the history
            entries = await priors.history("pets", "default", before=None, limit=9)
            await eventually_async(lambda: priors.select(PETS).revision == entries[0].revision)

    asyncio.run(main())


def test_a_connection_is_given_up_at_the_servers_last_words(postgres):
    store = open_store(postgres.new_schema())
    try:
        for code, given_up in (("57P01", True), ("22012", False)):
            last_words = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$"
            with store.database.engine.connect() as connection, pytest.raises(DBAPIError) as caught:
                connection.exec_driver_sql(last_words)
            assert caught.value.connection_invalidated == given_up
    finally:
        store.close()


def test_a_read_only_postgres(postgres):
    url = postgres.new_database()
    name = url.split("/")[3].split("?")[0]

    def set_read_only(value):
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
            connection.execute(  # and wait for their end: no write may meet a dying backend
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [name],
            )

    scenario(
        url,
        lambda: set_read_only("on"),
        lambda: set_read_only("off"),
        "read-only",
        at_first=("away",),  # until every connection that was ended has been made anew
    )


def test_a_full_disk_under_postgres(own_postgres, small_disk):
    folder = small_disk("20m") / "tablespace"
    folder.mkdir()
    if own_postgres.user is not None:
        shutil.chown(folder, own_postgres.user)
    with psycopg.connect(own_postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        connection.execute("CREATE DATABASE tight TABLESPACE small STRATEGY file_copy")
    ballast = folder.parent / "ballast"

    async def main():
        async with following(own_postgres.url("tight"), answer_seconds=2.0) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            fill(ballast)
            revision, error = await write_until_refused(priors, at_most=2000)
            assert error.kind == "full"
            assert priors.store_state.kind == "full"
            assert priors.select(PETS).revision == revision
            ballast.unlink()
            written = await priors.put(PETS, "default", body(5), by="me")
            assert written.entry.revision == revision + 1
            await eventually_async(lambda: not priors.store_state.degraded)

    asyncio.run(main())


# ---- SQLite


@pytest.fixture
def small_disk():
    """Mounts a file system of a given size; skips where that is not allowed."""
    with contextlib.ExitStack() as stack:

        def make(size):
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="disk-", ignore_cleanup_errors=True)
            )
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", folder]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("file systems cannot be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", folder], check=False)
            Path(folder).chmod(0o755)
            return Path(folder)

        yield make


def test_a_full_disk_under_sqlite(small_disk):
    folder = small_disk("512k")
    url = f"sqlite:///{folder}/priors.db"
    ballast = folder / "ballast"

    scenario(url, lambda: fill(ballast), ballast.unlink, "full")


def test_a_full_quota_under_sqlite(sqlite_url, monkeypatch):
    connect = SqliteFile.connect
    limits = {"pages": 10**6}

    def limited(self):
        connection = connect(self)
        connection.execute(f"PRAGMA max_page_count={limits['pages']}")
        return connection

    monkeypatch.setattr(SqliteFile, "connect", limited)

    async def main():
        async with following(sqlite_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            limits["pages"] = 1
            revision, error = await write_until_refused(priors, at_most=100)
            assert error.kind == "full"
            assert priors.store_state.kind == "full"
            assert priors.select(PETS).revision == revision
            limits["pages"] = 10**6
            assert (
                await priors.put(PETS, "default", body(7), by="me")
            ).entry.revision == revision + 1
            assert not priors.store_state.degraded

    asyncio.run(main())


def set_immutable(path, immutable):
    """As root a file without write permission can still be written, so take the stronger means."""
    if os.geteuid() != 0:
        path.chmod(0o400 if immutable else 0o600)
        return
    done = subprocess.run(
        ["chattr", "+i" if immutable else "-i", path], capture_output=True, check=False
    )
    if done.returncode and immutable:
        pytest.skip("files cannot be made immutable here")


def test_a_file_that_may_only_be_read_serves_what_it_holds(sqlite_url, tmp_path):
    file = tmp_path / "priors.db"

    async def main():
        async with following(sqlite_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
        set_immutable(file, True)
        async with following(sqlite_url) as priors:
            await goes_on_and_recovers(
                priors, lambda: None, lambda: set_immutable(file, False), "read-only"
            )

    try:
        asyncio.run(main())
    finally:
        set_immutable(file, False)


def test_a_file_that_turns_read_only_under_sqlite_is_logged(sqlite_url, monkeypatch, caplog):
    connect = SqliteFile.connect
    trouble = {"on": 0}

    def limited(self):
        connection = connect(self)
        connection.execute(f"PRAGMA query_only={trouble['on']}")
        return connection

    monkeypatch.setattr(SqliteFile, "connect", limited)
    scenario(sqlite_url, lambda: trouble.update(on=1), lambda: trouble.update(on=0), "read-only")
    logged = [r.getMessage() for r in caplog.records if r.name == "service.priors.feed"]
    assert len([line for line in logged if "no prior can be changed until it" in line]) == 1
    assert len([line for line in logged if "accepts changes again" in line]) == 1


def test_a_locked_file_under_sqlite(sqlite_url, tmp_path):
    async def main():
        async with (
            following(sqlite_url, answer_seconds=0.3) as priors,
            following(sqlite_url) as other,
        ):
            await other.put(PETS, "default", body(1), by="me")  # it has more time
            await eventually_async(lambda: priors.select(PETS).revision == 1)
            with contextlib.closing(
                sqlite3.connect(tmp_path / "priors.db", isolation_level=None)
            ) as holder:
                holder.execute("BEGIN IMMEDIATE")
                await write_is_refused(priors, "slow")
                await eventually_async(lambda: other.select(PETS).revision == 1)
                assert (await other.history("pets", "default", before=None, limit=9))[
                    0
                ].revision == 1
                holder.execute("ROLLBACK")
            written = await write_when_possible(priors, body(2))
            assert written.entry.revision in (2, 3)

    asyncio.run(main())


def test_a_prior_is_on_the_disk_when_it_is_acknowledged_and_a_report_does_not_wait_for_it(
    sqlite_url,
):
    """Else a disk that pauses in a report would have every change refused."""
    store, synchronous = open_store(sqlite_url), []
    event.listen(
        store.database.engine,
        "commit",
        lambda connection: synchronous.append(
            connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        ),
    )
    full, normal = 2, 1
    me = this_worker()

    def done(call):
        synchronous.clear()
        call()
        return synchronous

    try:
        store.open()
        change = Replace("default", body(2), "")
        assert done(lambda: store.write("pets", "default", change, by="me", after=-1)) == [full]
        assert done(lambda: store.report(me)) == [normal]
        assert done(lambda: store.leave(me.worker)) == [normal]
    finally:
        store.close()


def overwrite(path, data):
    with path.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_file_that_is_no_database_any_more(sqlite_url, tmp_path):
    file, copy = tmp_path / "priors.db", tmp_path / "copy"

    def trouble():
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy.write_bytes(file.read_bytes())
        rubbish = tmp_path / "rubbish"
        rubbish.write_bytes(b"rubbish" * 10_000)
        for leftover in ("priors.db-wal", "priors.db-shm"):
            (tmp_path / leftover).unlink(missing_ok=True)
        rubbish.replace(file)

    scenario(sqlite_url, trouble, lambda: copy.replace(file), "corrupt")


def test_a_file_that_is_gone_comes_back(sqlite_url, tmp_path):
    away = tmp_path / "away"
    away.mkdir()

    def move(source, target):
        for name in ("priors.db-wal", "priors.db-shm", "priors.db"):
            with contextlib.suppress(FileNotFoundError):
                (source / name).rename(target / name)

    scenario(sqlite_url, lambda: move(tmp_path, away), lambda: move(away, tmp_path), "away")
    assert not (away / "priors.db").exists()


def test_a_file_that_is_no_store_is_not_kept_open(tmp_path):
    path = tmp_path / "priors.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        SqliteFile(path).connect()
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert str(path) not in opened
    del caught  # until here its traceback would have kept a forgotten connection alive


def test_another_store_in_its_place_is_not_mistaken_for_it(sqlite_url, tmp_path):
    async def main():
        async with following(sqlite_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            await priors.put(PETS, "default", body(2), by="me")
            async with following(f"sqlite:///{tmp_path}/other.db") as other:
                await other.put(PETS, "default", body(7), by="me")
            for leftover in ("priors.db-wal", "priors.db-shm"):
                (tmp_path / leftover).unlink(missing_ok=True)
            (tmp_path / "other.db").replace(tmp_path / "priors.db")
            await write_is_refused(priors, "behind")
            await eventually_async(lambda: priors.store_state.kind == "behind")
            assert priors.select(PETS).revision == 2, "no reader goes back"
        async with following(sqlite_url) as restarted:
            assert restarted.select(PETS).revision == 1

    asyncio.run(main())


def test_an_older_copy_in_its_place_does_not_take_revisions_back(sqlite_url, tmp_path):
    async def main():
        async with following(sqlite_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
        copy = (tmp_path / "priors.db").read_bytes()
        async with following(sqlite_url) as priors:
            await priors.put(PETS, "default", body(2), by="me")
            await eventually_async(lambda: priors._feed.change == 2)
            (tmp_path / "old").write_bytes(copy)
            for leftover in ("priors.db-wal", "priors.db-shm"):
                (tmp_path / leftover).unlink(missing_ok=True)
            (tmp_path / "old").replace(tmp_path / "priors.db")
            await eventually_async(lambda: priors.store_state.kind == "behind")
            assert priors.select(PETS).revision == 2
            await write_is_refused(priors, "behind")

    asyncio.run(main())


# ---- both


def execute(url, statement):
    """Written directly, without the service."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute(statement)
            connection.commit()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)


DAMAGE = [
    "UPDATE priordial_prior_revisions SET body = replace(body, '2.0', '9.0') WHERE revision = 2",
    "UPDATE priordial_prior_revisions SET body = substr(body, 1, 20) WHERE revision = 2",
    "UPDATE priordial_prior_revisions SET body = NULL WHERE revision = 2",
    "UPDATE priordial_prior_revisions SET class_digest = 'x' WHERE revision = 2",
    "UPDATE priordial_prior_revisions SET deleted = 1 WHERE revision = 2",
    "UPDATE priordial_prior_revisions SET updated_us = 9223372036854775807 WHERE revision = 2",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_told_and_never_served(store_url, damage):
    async def main():
        async with following(store_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            good = priors.select(PETS).offset
            await priors.put(PETS, "default", body(2), by="me")
        execute(store_url, damage)
        async with following(store_url) as priors:
            chosen = priors.select(PETS)
            assert (chosen.revision, chosen.offset.tolist()) == (1, good.tolist())
            (fault,) = priors.store_state.faults
            assert "revision 2 of prior 'default'" in fault
            assert priors.store_state.degraded
            with pytest.raises(StoreUnavailable, match="damaged"):
                await priors.fetch(PETS, "default", 2)
            with pytest.raises(StoreUnavailable):
                await priors.add(PETS, "default", {"target": {"lynx": 1}}, by="me")
            assert (await priors.put(PETS, "default", body(2), by="me")).entry.revision == 3
            await eventually_async(lambda: not priors.store_state.degraded)
            assert priors.select(PETS).revision == 3

    asyncio.run(main())


def test_a_row_that_is_repaired_in_place_is_served_without_a_restart(store_url):
    async def main():
        async with following(store_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            await priors.put(PETS, "default", body(2), by="me")
        execute(store_url, "UPDATE priordial_prior_revisions SET note = 'x' WHERE revision = 2")
        async with following(store_url) as priors:
            assert priors.select(PETS).revision == 1
            execute(store_url, "UPDATE priordial_prior_revisions SET note = '' WHERE revision = 2")
            await eventually_async(lambda: priors.select(PETS).revision == 2)
            await eventually_async(lambda: not priors.store_state.degraded)

    asyncio.run(main())


def test_tables_that_vanish_are_told_and_the_last_priors_stay(store_url):
    async def main():
        async with following(store_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            execute(store_url, "ALTER TABLE priordial_meta RENAME TO elsewhere")
            await eventually_async(lambda: priors.store_state.kind == "corrupt")
            await write_is_refused(priors, "corrupt")
            assert priors.select(PETS).revision == 1
            execute(store_url, "ALTER TABLE elsewhere RENAME TO priordial_meta")
            await eventually_async(lambda: priors.store_state.kind == "ok")
            assert (await priors.put(PETS, "default", body(2), by="me")).entry.revision == 2

    asyncio.run(main())


def test_a_store_of_a_newer_program_is_refused_at_start(store_url):
    async def main():
        async with following(store_url):
            pass
        execute(store_url, "UPDATE priordial_meta SET schema = 99")
        with pytest.raises(StoreUnavailable, match="schema is 99"):
            async with following(store_url):
                pass

    asyncio.run(main())


def test_a_start_without_a_store_fails_clearly_unless_the_store_is_optional(tmp_path, own_postgres):
    own_postgres.stop()
    blocked = tmp_path / "file"
    blocked.write_text("")
    urls = [own_postgres.url("postgres"), f"sqlite:///{blocked}/priors.db"]

    async def main():
        for url in urls:
            priors = Priors(open_store(url), poll_seconds=0.02)
            with pytest.raises(StoreUnavailable, match="unavailable"):
                await priors.start(seconds=0.5)
            priors = Priors(open_store(url), poll_seconds=0.02)
            await priors.start(optional=True, seconds=0.2)
            assert priors.store_state.kind == "away"
            assert priors.select(PETS).revision == 0
            with pytest.raises(UnknownPrior):
                priors.select(PETS, "winter")
            await write_is_refused(priors, "away")
            await priors.stop()

    asyncio.run(main())


def test_a_store_that_comes_after_the_start_is_taken_up(own_postgres):
    url = own_postgres.new_database()
    own_postgres.stop()

    async def main():
        priors = Priors(open_store(url), poll_seconds=0.02)
        await priors.start(optional=True, seconds=0.2)
        await write_is_refused(priors, "away")
        own_postgres.start()
        await eventually_async(lambda: priors.store_state.kind == "ok")
        assert (await priors.put(PETS, "default", body(1), by="me")).entry.revision == 1
        await priors.stop()

    asyncio.run(main())


def test_many_that_start_at_once_make_one_schema(store_url):
    barrier = threading.Barrier(8)
    ids, errors = [], []

    def start():
        store = open_store(store_url)
        barrier.wait()
        for _ in range(100):
            try:
                store.open()
                break
            except StoreUnavailable as error:
                if error.kind != "slow":
                    errors.append(error)
                    break
        ids.append(store.database.store_id)
        store.close()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(ids)) == 1
    assert ids[0]


PORT = "postgresql://u:secret@h:port/d"


def test_a_url_that_is_no_store_is_refused_without_its_password():
    for url in ("mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "nonsense", "", PORT):
        with pytest.raises(InvalidStoreUrl) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)


def test_a_worker_that_was_killed_in_a_write_leaves_nothing_half(store_url):
    async def main():
        async with following(store_url) as priors:
            await priors.put(PETS, "default", body(1), by="me")
            script = (
                "import os, signal\n"
                "from service.priors.store import open_store\n"
                "class Kill:\n"
                "    def apply(self, current):\n"
                "        os.kill(os.getpid(), signal.SIGKILL)\n"
                f"store = open_store({store_url!r}); store.open()\n"
                "store.write('pets', 'default', Kill(), by='x', after=-1)\n"
            )
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, cwd=Path(__file__).parents[4]
            )
            assert await done.wait() == -signal.SIGKILL
            assert (await priors.put(PETS, "default", body(2), by="me")).entry.revision == 2
            entries = await priors.history("pets", "default", before=None, limit=9)
            assert [entry.revision for entry in entries] == [2, 1]

    asyncio.run(main())


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(StoreUnavailable, match=rf"'{tmp_path}' is a folder; expected the store's"):
        SqliteFile(tmp_path).connect()
    with pytest.raises(
        StoreUnavailable, match=r"'/proc/none\.db' cannot be opened: unable to open"
    ):
        SqliteFile(Path("/proc/none.db")).connect()


def test_a_database_without_an_encoding_keeps_every_text(postgres):
    """SQL_ASCII is what `initdb` chooses where the locale is C, as in many containers."""
    url = postgres.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE no_encoding TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
        )
    url = postgres.url("no_encoding")

    async def kept():
        async with following(url) as priors:
            await priors.put(PETS, "default", body(3, note="für τ"), by="Zoë")
        async with following(url) as priors:
            (found, *_) = await priors.history(PETS.name, "default", before=None, limit=1)
            return found.note, found.by

    assert asyncio.run(kept()) == ("für τ", "Zoë")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ('FATAL: password authentication failed for user "svc"', "check the user and the password"),
        ('FATAL: role "svc" is not permitted to log in', "check the user and the password"),
        ('FATAL: too many connections for role "svc"', "raise the server's limit of connections"),
        ("FATAL: sorry, too many clients already", "raise the server's limit of connections"),
        ("cannot execute UPDATE in a read-only transaction", "give the primary, not a standby"),
        ("could not connect: Connection refused", "check --store"),
    ],
)
def test_what_a_server_refuses_is_told_with_what_to_do(words, advice):
    assert f"{words}; {advice}" in str(trouble_of(OSError(words)))
