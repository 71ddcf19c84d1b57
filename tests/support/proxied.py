"""Replicas behind HAProxy, with the product's own configuration of it.

As a pytest plugin (`pytest -p tests.support.proxied tests/service/api`) it puts four replicas on
one PostgreSQL, and the proxy, in the place of every server that a test runs.
"""

import contextlib
import functools
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support import server as servers
from tests.support.eventually import eventually
from tests.support.postgres import Postgres
from tests.support.postgres import servers as postgres_servers

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def config(port: int, replicas: list[int]) -> str:
    """The configuration for the proxy's port and the replicas' ports."""
    lines = [
        line.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        for line in CONFIG.read_text().splitlines()
        if not line.strip().startswith("server ")
    ]
    for number, each in enumerate(replicas, 1):
        lines.append(f"    server replica-{number} 127.0.0.1:{each}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def haproxy(replicas: list[int]) -> Iterator[str]:
    """The URL of a proxy in front of these ports, once it answers."""
    program = shutil.which("haproxy")
    assert program is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="haproxy-") as folder:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(config(port, replicas))
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen([program, "-db", "-f", str(file)], stderr=log, stdout=log)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/health/ready").status_code == 200
            return False

        try:
            eventually(answers, seconds=30)
            yield url
        finally:
            process.kill()
            process.wait()


class Proxied:
    """What tests see of a server, of four behind a proxy."""

    def __init__(self, url: str, replicas: list[servers.Server]) -> None:
        self.url, self.replicas, self.process = url, replicas, replicas[0].process

    @property
    def log(self) -> str:
        """What all have logged."""
        return "".join(each.log for each in self.replicas)

    def wait_for(self, pattern: str | re.Pattern[str], *, seconds: float = 120) -> re.Match[str]:
        """Wait until the log of one matches."""
        return eventually(lambda: re.search(pattern, self.log), seconds=seconds)  # type: ignore[return-value]

    def terminate(self) -> int:
        """End all; the worst exit status."""
        return max(each.terminate() for each in self.replicas)


_make: list[Callable[[], Postgres]] = []


@functools.cache
def _postgres() -> Postgres:
    return _make[0]()


@contextlib.contextmanager
def _running(models: Path, *, replicas: int = 4, **settings: Any) -> Iterator[Proxied]:
    settings.setdefault("store", _postgres().new_schema())
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(servers.starting(models, **settings)) for _ in range(replicas)
        ]
        ports = []
        for each in started:
            each.url = each.wait_for(servers.READY)[1]
            ports.append(int(each.url.rsplit(":", 1)[1]))
        yield Proxied(stack.enter_context(haproxy(ports)), started)


def pytest_configure() -> None:
    """Put four replicas in the place of each server."""
    context = postgres_servers()
    _make.append(context.__enter__())
    servers.running = _running  # type: ignore[assignment]
    sys.modules[__name__].__dict__["_context"] = context


def pytest_unconfigure() -> None:
    """End PostgreSQL."""
    sys.modules[__name__].__dict__["_context"].__exit__(None, None, None)
