"""A real Prometheus scrapes two workers while one is killed: what it holds is what the client
counted, exactly.
"""

import collections
import io
import itertools
import json
import os
import re
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

from tests.support.eventually import eventually
from tests.support.server import children, metric, running
from tests.support.small_models import FEATURES, linear_model, publish_model

THREADS, SCRAPES = 2, 6
MODELS = ("linear", "other")
_CONFIG = """
global: {{scrape_interval: 400ms, scrape_timeout: 400ms}}
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
    """Sends mixed requests to two models and counts what was answered, class by class."""

    def __init__(self, url):
        self.url = url
        self.counts = collections.Counter()
        self._lock = threading.Lock()
        self._seeds = itertools.count()

    def send_until(self, condition):
        """Send from all threads; every request has its answer when this returns."""
        over = threading.Event()
        with ThreadPoolExecutor(THREADS) as pool:
            sending = [pool.submit(self._send, over) for _ in range(THREADS)]
            try:
                eventually(condition, seconds=120)
            finally:
                over.set()
            for each in sending:
                each.result()

    def _send(self, over):
        rng = np.random.default_rng(next(self._seeds))
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while not over.is_set():
                model = str(rng.choice(MODELS))
                rows = rng.normal(size=(int(rng.integers(1, 9)), FEATURES)).astype(np.float32)
                given = {
                    "tau": float(rng.choice([0, 0.5, 1, 2])),
                    "prior": str(rng.choice(["uniform", "training"])),
                }
                if rng.random() < 0.5:
                    body = {"instances": rows.tolist(), "parameters": given}
                    answer = http.post(f"/models/{model}/predict", json=body)
                else:
                    file = io.BytesIO()
                    np.save(file, rows)
                    answer = http.post(
                        f"/models/{model}/predict",
                        params=given,
                        content=file.getvalue(),
                        headers={"Content-Type": "application/x-npy"},
                    )
                assert answer.status_code == 200
                self._count(model, answer.json()["predictions"])
                if rng.random() < 0.1:  # neither refused nor exploring requests are predictions
                    refused = http.post(f"/models/{model}/predict", json={"instances": [[1]]})
                    assert refused.status_code == 422
                    body = {"instances": rows.tolist(), "settings": [given]}
                    assert http.post(f"/models/{model}/adjust", json=body).status_code == 200

    def _count(self, model, predictions):
        with self._lock:
            for prediction in predictions:
                self.counts[model, "adjusted", prediction["label"]] += 1
                self.counts[model, "unadjusted", prediction["unadjusted"]["label"]] += 1


def asked(api, query):
    answer = httpx.get(f"{api}/api/v1/query", params={"query": query}).json()
    return [(r["metric"], r["value"][1]) for r in answer["data"]["result"]]


def scraped(api):
    found = asked(api, "sum by (model, decision, class) (priordial_predictions_total)")
    return {(m["model"], m["decision"], m["class"]): int(n) for m, n in found if n != "0"}


def counted(url):
    """The predictions that the service itself has counted."""
    return metric(httpx.get(f"{url}/metrics").text, "priordial_predictions_total")


def times_scraped(api):
    """How often Prometheus has scraped the service; 0 while it is not up, or not ready, itself."""
    try:
        found = asked(api, "sum(count_over_time(up[10m]))")
    except (httpx.TransportError, json.JSONDecodeError):
        return 0
    return int(found[0][1]) if found else 0


def test_prometheus_holds_what_the_client_counted_through_a_workers_restart(tmp_path, prometheus):
    """Before, during and after the restart, traffic goes on for several scrapes."""
    for seed, model in enumerate(MODELS):
        publish_model(tmp_path / "models", model, model=linear_model(seed=seed))
    with running(tmp_path / "models", workers=2, log_format="json") as server:
        api = prometheus(server.url.removeprefix("http://"))
        client = Client(server.url)
        client.send_until(lambda: times_scraped(api) >= SCRAPES)
        # A lone request is counted after its answer, which the kill must not precede.
        eventually(lambda: counted(server.url) == sum(client.counts.values()))
        victim = children(server.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"\(process {victim}\) has ended")
        client.send_until(lambda: times_scraped(api) >= 2 * SCRAPES)
        eventually(lambda: len(children(server.process.pid)) == 2)
        client.send_until(lambda: times_scraped(api) >= 3 * SCRAPES)
        found = _eventually_equal(api, client.counts)
        assert found == dict(client.counts)
        assert {model for model, _, _ in found} == set(MODELS)
        answered = sum(n for (_, decision, _), n in found.items() if decision == "adjusted")
        assert sum(found.values()) == 2 * answered
        groups = asked(api, 'sum(priordial_group_predictions_total{decision="adjusted"})')
        assert [int(n) for _, n in groups] == [answered]
        restarts = asked(api, 'sum(priordial_worker_restarts_total{reason="killed"})')
        assert restarts[0][1] == "1"
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
        logged = set(re.findall(r'"request_id":"(\w+)"', server.log))
        assert {found["request_id"] for found in labels} <= logged


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
