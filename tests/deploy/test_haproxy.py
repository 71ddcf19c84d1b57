"""Four replicas behind HAProxy with the product's configuration, on one PostgreSQL."""

import collections
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.postgres import servers
from tests.support.proxied import config, free_port, haproxy
from tests.support.server import READY, starting
from tests.support.small_models import inputs, publish_model

REPLICAS, CLIENTS = 4, 8

if shutil.which("haproxy") is None:
    pytest.skip("HAProxy is not installed (Debian: haproxy)", allow_module_level=True)


@pytest.fixture(scope="module")
def store():
    with servers() as make:
        yield make().new_database()


class Fleet:
    """Replicas, each on a port of its own, that can be ended and started again."""

    def __init__(self, models, store):
        self._models, self._store = models, store
        self.ports = [free_port() for _ in range(REPLICAS)]
        self._stacks = [contextlib.ExitStack() for _ in self.ports]
        self.servers = [None] * REPLICAS

    def start(self, number):
        self.servers[number] = self._stacks[number].enter_context(
            starting(
                self._models,
                store=self._store,
                port=self.ports[number],
                drain_seconds=1.5,
                default_model="linear",
            )
        )

    def ready(self, number):
        self.servers[number].wait_for(READY, seconds=120)

    def close(self):
        for stack in self._stacks:
            stack.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, store):
    models = tmp_path_factory.mktemp("fleet") / "models"
    publish_model(models)
    publish_model(models, "other")  # without any model, a replica is not ready and gets nothing
    found = Fleet(models, store)
    try:
        for number in range(REPLICAS):
            found.start(number)
        for number in range(REPLICAS):
            found.ready(number)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def proxy(fleet):
    with haproxy(fleet.ports) as url:
        yield url


class Crowd:
    """Clients that ask without a pause; how often each status was answered."""

    def __init__(self, url):
        self._url, self._stop, self._seeds = url, threading.Event(), itertools.count()
        self.statuses, self._lock = collections.Counter(), threading.Lock()

    def __enter__(self):
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._asking = [self._pool.submit(self._ask) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_error):
        self._stop.set()
        self._pool.shutdown()
        for each in self._asking:
            each.result()

    def _ask(self):
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                body = {"instances": inputs(1, seed=next(self._seeds)).tolist()}
                try:
                    status = client.post("/predict", json=body).status_code
                except httpx.TransportError as error:
                    status = type(error).__name__
                with self._lock:
                    self.statuses[status] += 1


def test_the_configuration_is_one_that_haproxy_takes(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(config(8000, [8001, 8002]))
    done = subprocess.run(
        ["haproxy", "-c", "-f", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_orders_and_priors_reach_every_replica_through_the_proxy(proxy, fleet):
    def statuses(path="/predict"):
        body = {"instances": inputs(1).tolist()}
        return {
            httpx.post(f"http://127.0.0.1:{port}{path}", json=body).status_code
            for port in fleet.ports
        }

    for verb, status in (("unload", 404), ("load", 200)):
        answer = httpx.post(f"{proxy}/v2/repository/models/linear/{verb}", timeout=30)
        assert answer.status_code == 200, answer.text
        assert statuses() == {status}
    prior = {"target": {"class-1": 3}, "others": 1}
    written = httpx.put(f"{proxy}/models/linear/priors/default", json=prior)
    assert written.status_code == 201
    eventually(lambda: httpx.get(f"{proxy}/models/linear/priors/default/replicas").json()["agree"])
    assert len(httpx.get(f"{proxy}/models/linear/replicas").json()["replicas"]) == REPLICAS


def test_a_rolling_restart_under_load_fails_no_request(proxy, fleet):
    with Crowd(proxy) as crowd:
        for number in range(REPLICAS):
            before = crowd.statuses[200]
            assert fleet.servers[number].terminate() == 0
            fleet.start(number)
            fleet.ready(number)
            assert crowd.statuses[200] > before
    assert set(crowd.statuses) == {200}


def test_a_killed_replica_costs_at_most_the_requests_in_its_hands(proxy, fleet):
    with Crowd(proxy) as crowd:
        eventually(lambda: crowd.statuses[200] > 50)
        os.kill(fleet.servers[1].process.pid, signal.SIGKILL)
        after = crowd.statuses[200] + 100
        eventually(lambda: crowd.statuses[200] > after)
    assert set(crowd.statuses) <= {200, 502, "RemoteProtocolError", "ReadError"}
    assert sum(crowd.statuses.values()) - crowd.statuses[200] <= CLIENTS
