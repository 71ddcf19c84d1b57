"""Replicas behind HAProxy, with the product's own configuration of it.

As a pytest plugin (`make test-proxied`) it puts four replicas on one PostgreSQL, and the proxy, in
the place of every server that a test runs. Where one replica does not speak for all, the tests do
as users do: metrics are the sums of all replicas, as in Prometheus, and after a change of a prior
nothing is asked until every replica has it. Tests that cannot apply are skipped with their reason.
"""

import contextlib
import functools
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

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


COUNTS = "statistics are those of the replica that answers; a sum is in Prometheus"
ROOM = "the room for bodies is that of each replica, and the next request goes to another"
SAMPLE = "a preview covers the recent requests of the replica that answers"
LABELS = "feedback is for the replica that answered, which keeps its answers"
NOT_APPLICABLE = {
    "edge/test_framing.py": "HAProxy reads the bytes of a request and answers what is malformed",
    "rpc/": "gRPC is on a port of its own, which this HAProxy does not serve",
    "edge/test_room.py::test_a_body_that_does_not_fit": ROOM,
    "edge/test_room.py::test_a_client_that_leaves": ROOM,
    "edge/test_room.py::test_a_body_of_unknown_length": ROOM,
    "edge/test_room.py::test_a_compressed_body": ROOM,
    "edge/test_room.py::test_bodies_of_other_routes": ROOM,
    "oip/test_statistics.py::test_one_request_after_the_other": COUNTS,
    "oip/test_statistics.py::test_the_times_of_requests": COUNTS,
    "oip/test_statistics.py::test_a_request_with_a_row_that_comes_out_as_nan": COUNTS,
    "oip/test_statistics.py::test_requests_that_are_refused": COUNTS,
    "oip/test_statistics.py::test_every_way_to_score": COUNTS,
    "oip/test_statistics.py::test_counts_are_those_of_all_workers": COUNTS,
    "oip/test_statistics.py::test_the_asyncio_client": COUNTS,
    "test_adjust.py::test_an_exploration_counts": SAMPLE,
    "test_feedback.py::test_labels_reach_answers_of_every_worker": LABELS,
    "test_feedback.py::test_the_balanced_error_is_a_gauge": LABELS,
    "test_feedback.py::test_answers_in_the_store": "it names the port, and four replicas need four",
    "test_feedback.py::test_labels_of_unknown_sampling": LABELS,
    "test_feedback.py::test_csv_is_taken": LABELS,
    "test_feedback.py::test_parquet_is_taken": LABELS,
    "test_feedback.py::test_ids_that_are_not_kept": LABELS,
}
"""Why tests do not apply, by the beginning of their name below tests/service/api."""


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

    def exit(self) -> int:
        """End all but the first, which the test has ended; its exit status."""
        for each in self.replicas[1:]:
            each.terminate()
        return self.replicas[0].exit()

    def terminate(self) -> int:
        """End all; the worst exit status."""
        return max(each.terminate() for each in self.replicas)


_make: list[Callable[[], Postgres]] = []
_fleets: dict[str, list[str]] = {}
"""URLs of the replicas by the URL of their proxy."""
_PRIOR = re.compile(r"((?:/models/[^/]+)?/priors)(/[^/]+)?(?:/(?:rollback|estimate/adopt))?")


@functools.cache
def _postgres() -> Postgres:
    return _make[0]()


@contextlib.contextmanager
def _running(
    models: Path, *, replicas: int = 4, start_seconds: float = 120, **settings: Any
) -> Iterator[Proxied]:
    settings.setdefault("store", _postgres().new_schema())
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(servers.starting(models, **settings)) for _ in range(replicas)
        ]
        for each in started:
            each.url = each.wait_for(servers.READY, seconds=max(start_seconds, 120))[1]
        url = stack.enter_context(haproxy([int(each.url.rsplit(":", 1)[1]) for each in started]))
        _fleets[url] = [each.url for each in started]
        try:
            yield Proxied(url, started)
        finally:
            del _fleets[url]


_send = httpx.Client.send


def _sending(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
    """Send a request as a user of several replicas does."""
    url = f"{request.url.scheme}://{request.url.host}:{request.url.port}"
    fleet = _fleets.get(url)
    if fleet is None:
        return _send(client, request, **more)
    if request.method == "GET" and request.url.path == "/metrics":
        answers = [_ask(each, request, "/metrics") for each in fleet]
        if all(each.status_code == 200 for each in answers):
            return httpx.Response(200, text=_summed(each.text for each in answers), request=request)
    answer = _send(client, request, **more)
    changed = _PRIOR.fullmatch(request.url.path)
    if changed and request.method != "GET" and answer.is_success:
        path = changed[1] + (changed[2] or "/default")
        eventually(lambda: len({_ask(each, request, path).text for each in fleet}) == 1)
    return answer


def _ask(replica: str, request: httpx.Request, path: str) -> httpx.Response:
    """GET a path of one replica with the key of a request."""
    kept = {k: v for k, v in request.headers.items() if k == "authorization"}
    return httpx.get(f"{replica}{path}", headers=kept, timeout=30)


def _summed(texts: Iterable[str]) -> str:
    """The metrics of all: counters are summed, of gauges the largest is taken."""
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kinds[name] = line.split()
            elif line and not line.startswith("#"):
                sample, value = line.rsplit(" ", 1)
                before = values.get(sample, 0.0)
                is_gauge = kinds.get(sample.partition("{")[0]) == "gauge"
                values[sample] = max(before, float(value)) if is_gauge else before + float(value)
    return "".join(f"{sample} {value!r}\n" for sample, value in values.items())


def pytest_configure() -> None:
    """Put four replicas in the place of each server."""
    context = postgres_servers()
    _make.append(context.__enter__())
    servers.running = _running  # type: ignore[assignment]
    httpx.Client.send = _sending  # type: ignore[assignment, method-assign]
    sys.modules[__name__].__dict__["_context"] = context


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot apply."""
    for item in items:
        name = item.nodeid.removeprefix("tests/service/api/")
        for start, reason in NOT_APPLICABLE.items():
            if name.startswith(start):
                item.add_marker(pytest.mark.skip(reason=f"behind a proxy: {reason}"))


def pytest_unconfigure() -> None:
    """End PostgreSQL."""
    sys.modules[__name__].__dict__["_context"].__exit__(None, None, None)
