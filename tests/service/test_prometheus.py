"""A real Prometheus scrapes two workers while one is killed: what it holds is what the client counted, exactly."""

import collections
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.service.server import running
from tests.service.small_models import FEATURES, publish_model
from tests.service.test_workers import children

THREADS, REQUESTS = 4, 60
_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: priordial
    static_configs: [{{targets: ['{target}']}}]
"""


@pytest.fixture
def prometheus(tmp_path):
    """Start a Prometheus that scrapes a target; the base URL of its API."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    processes = []

    def start(target):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = tmp_path / "prometheus.yml"
        config.write_text(_CONFIG.format(target=target))
        with (tmp_path / "log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [
                        program,
                        f"--config.file={config}",
                        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                        f"--web.listen-address=127.0.0.1:{port}",
                        "--enable-feature=exemplar-storage",
                    ],
                    stderr=log,
                )
            )
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


class Client:
    """Sends mixed requests and counts what was answered, class by class."""

    def __init__(self, url):
        self.url = url
        self.counts = collections.Counter()
        self._lock = threading.Lock()

    def send(self, seed):
        rng = np.random.default_rng(seed)
        with httpx.Client(transport=httpx.HTTPTransport(retries=3)) as http:
            for _ in range(REQUESTS):
                rows = rng.normal(size=(int(rng.integers(1, 9)), FEATURES)).tolist()
                given = {"tau": float(rng.choice([0, 0.5, 1, 2])), "prior": str(rng.choice(["uniform", "training"]))}  # fmt: skip
                body = {"instances": rows, "parameters": given}
                answer = http.post(f"{self.url}/predict", json=body).json()
                with self._lock:
                    for prediction in answer["predictions"]:
                        self.counts["adjusted", prediction["label"]] += 1
                        self.counts["unadjusted", prediction["unadjusted"]["label"]] += 1

    def send_from_all_threads(self, round_number):
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.send, range(round_number * THREADS, (round_number + 1) * THREADS)))


def scraped(api):
    query = "sum by (decision, class) (priordial_predictions_total)"
    found = httpx.get(f"{api}/api/v1/query", params={"query": query}).json()["data"]["result"]
    return {
        (r["metric"]["decision"], r["metric"]["class"]): int(r["value"][1])
        for r in found
        if r["value"][1] != "0"
    }


def test_prometheus_holds_what_the_client_counted_through_a_workers_restart(tmp_path, prometheus):
    publish_model(tmp_path / "models")
    with running(tmp_path / "models", workers=2) as server:
        api = prometheus(server.url.removeprefix("http://"))
        client = Client(server.url)
        client.send_from_all_threads(0)
        victim = children(server.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"\(process {victim}\) has ended")
        client.send_from_all_threads(1)
        found = _eventually_equal(api, client.counts)
        assert found == dict(client.counts)
        assert sum(found.values()) == 2 * sum(
            n for (decision, _), n in client.counts.items() if decision == "adjusted"
        )
        ids = httpx.get(
            f"{api}/api/v1/query_exemplars",
            params={
                "query": "priordial_request_seconds_bucket",
                "start": time.time() - 600,
                "end": time.time() + 600,
            },
        ).json()["data"]
        labels = [e["labels"] for series in ids for e in series["exemplars"]]
        assert labels
        assert all(set(found) == {"request_id"} for found in labels)


def _eventually_equal(api, counts, seconds=90):
    """What Prometheus holds, once it is what was counted or the time is over."""
    deadline = time.monotonic() + seconds
    found = {}
    while time.monotonic() < deadline:
        try:
            found = scraped(api)
        except httpx.TransportError:
            found = {}
        if found == dict(counts):
            break
        threading.Event().wait(0.2)
    return found
