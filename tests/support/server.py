"""A real serving process for end-to-end tests."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.forked import Forked

READY = re.compile(r"(?:ready|listening) on (http://[^\s\"]+)")
PROVIDER = os.environ.get("PRIORDIAL_TEST_PROVIDER", "cpu")
"""Where graphs run in tests; `make test-gpu` sets it to cuda."""
ROOT = Path(__file__).parents[2]


Process = Forked | subprocess.Popen[str]


def command(arguments: list[str], environment: dict[str, str]) -> Process:
    """`python -m ARGUMENTS` in an interpreter of its own, in the folder of the project."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        cwd=ROOT,
    )


def fork(arguments: list[str], environment: dict[str, str]) -> Process:
    """`python -m ARGUMENTS`, two seconds sooner."""
    return Forked(arguments, environment, ROOT)


start_service = command
"""How `starting` starts the service. The suite forks it; benchmarks measure a command."""


class Server:
    """`python -m service serve` on a free port: its base URL, its process and what it has logged so
    far.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url = ""
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Everything on stderr so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str | re.Pattern[str], *, seconds: float = 30) -> re.Match[str]:
        """Wait until a line of the log matches; AssertionError with the log when none does."""
        found: re.Match[str] | None = None

        def seen() -> bool:
            nonlocal found
            found = re.search(pattern, "".join(self._lines))
            return found is not None or self._closed

        with self._changed:
            self._changed.wait_for(seen, seconds)
        assert found is not None, f"the log has no {pattern!r}:\n{self.log}"
        return found

    def exit(self, *, seconds: float = 60) -> int:
        """Wait for the process to end by itself, and for the last line of its log; its exit
        status.
        """
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def terminate(self, *, seconds: float = 60) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        return self.exit(seconds=seconds)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@contextlib.contextmanager
def starting(
    models: Path,
    *,
    environment: dict[str, str] | None = None,
    program: tuple[str, ...] = ("service",),
    **settings: object,
) -> Iterator[Server]:
    """The process as soon as it is started; killed at the end if it still runs.

    settings are flags: drain_seconds=1 is --drain-seconds 1, store_optional=True is
    --store-optional. Without a port it takes a free one, without a store a new one. program is what
    stands after `python -m`; other programs than the service change what they import, so they are
    not forked.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
    with tempfile.TemporaryDirectory(prefix="priordial-test-") as folder:
        given = {
            "models": models,
            "port": 0,
            "store": f"sqlite:///{folder}/priors.db",
            "provider": PROVIDER,
            "intra_op_threads": 1,
            **settings,
        }
        arguments = [*program, "serve", *_flags(given)]
        variables = {**inherited, "TMPDIR": folder, **(environment or {})}
        start = start_service if program == ("service",) else command
        server = Server(start(arguments, variables))
        try:
            yield server
        except BaseException as error:
            error.add_note(f"the server's log:\n{server.log[-20_000:]}")
            raise
        finally:
            server.process.kill()
            server.exit()
            server.process.stderr.close()


@contextlib.contextmanager
def running(
    models: Path,
    *,
    environment: dict[str, str] | None = None,
    program: tuple[str, ...] = ("service",),
    start_seconds: float = 90,
    **settings: object,
) -> Iterator[Server]:
    """The process once it is ready, within `start_seconds`, with its `url`. See `starting`."""
    with starting(models, environment=environment, program=program, **settings) as server:
        server.url = server.wait_for(READY, seconds=start_seconds)[1]
        yield server


def _flags(settings: dict[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield str(value)


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def metric(text, name, **labels):
    """The sum of the samples of a family that have these labels."""
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{name}[{{ ]", line) and all(w in line for w in wanted)
    )
