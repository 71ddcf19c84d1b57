"""The service on Ray Serve: two replicas on loopback behind its HAProxy, on one PostgreSQL."""

import collections
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.on_ray.balancer import Balancer
from tests.support.eventually import eventually
from tests.support.faulty_models import publish_slow, publish_steady
from tests.support.postgres import servers
from tests.support.server import metric
from tests.support.small_models import CLASSES, inputs, publish_model

pytest.importorskip("ray", reason="Ray is not installed: pip install 'priordial[ray]'")
pytestmark = pytest.mark.filterwarnings(  # of Ray's own models, when it is first imported
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)

ROOT = Path(__file__).parents[2]
CLIENTS = 8
ROUNDS = 500.0  # of the model "slow": about 0.1 s a batch, so that rows wait
RETRIABLE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError)
"""What a client sees when its connection is closed without an answer, or is refused."""
UNANSWERED = "HAProxy's 500"
"""HAProxy's answer where a replica ended before its answer. Ray turns 502, 503 and 504 into 500."""
MANY = [f"many-{number}" for number in range(5)]
MAX_LOADED_MIB = 17  # five of these small models, which count somewhat more than 3 MiB each


class Cluster:
    """The address of the service, and the processes behind it."""

    def __init__(self, process, url, models, config, balancer):
        self.process, self.url, self.models = process, url, models
        self.config, self.balancer = config, balancer

    def replicas(self):
        """The processes of the replicas, by pid."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ServeReplica:priordial" in " ".join(child.cmdline()):
                    found[child.pid] = child
        return found

    def workers(self):
        """What each replica reports as served."""
        return httpx.get(f"{self.url}/models/linear/replicas", timeout=30).json()["replicas"]

    def name_of(self, pid):
        """HAProxy's name of a replica."""
        ports = {each.laddr.port for each in psutil.Process(pid).net_connections("tcp")}
        (name,) = (name for port, name in self.balancer.up().items() if port in ports)
        return name

    def deploy(self, **user_config):
        """Deploy the configuration with another `user_config`, as `serve deploy` does."""
        written = yaml.safe_load(self.config.read_text())
        written["applications"][0]["deployments"][0]["user_config"] = user_config
        self.config.write_text(yaml.safe_dump(written))
        self.process.send_signal(signal.SIGHUP)

    def metrics(self):
        """The metrics of each replica, from its own port."""
        targets = httpx.get(f"{self.url}/metrics/targets", timeout=30).json()
        return [
            httpx.get(f"http://{port}/metrics", timeout=30).text
            for group in targets
            for port in group["targets"]
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    models = folder / "models"
    for name in ("linear", *MANY):
        publish_model(models, name)
    with (
        servers() as make_postgres,
        tempfile.TemporaryDirectory(prefix="ray-") as temporary,
        tempfile.TemporaryDirectory(prefix="haproxy-") as balanced,
        contextlib.closing(Balancer(Path(balanced))) as balancer,
    ):
        written = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        (application,) = written["applications"]
        (deployment,) = application["deployments"]
        application["runtime_env"]["env_vars"] = {
            "PYTHONPATH": str(ROOT),
            "PRIORDIAL_MODELS": str(models),
            "PRIORDIAL_STORE": make_postgres().new_database(),
            "PRIORDIAL_INTRA_OP_THREADS": "1",
            "PRIORDIAL_PROVIDER": "cpu",
            "PRIORDIAL_DEFAULT_MODEL": "linear",
            "PRIORDIAL_MAX_LOADED_MIB": str(MAX_LOADED_MIB),
            "TARGET_QUEUED_ROWS": "8",
        }
        deployment["ray_actor_options"] = {"num_cpus": 1, "num_gpus": 0}
        deployment["autoscaling_config"] |= {
            "max_replicas": 3,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 2,
        }
        del written["proxy_location"], written["http_options"]
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump(written))
        log = folder / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.on_ray.cluster", str(config), temporary],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "RAY_AUTH_MODE": "disabled",
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "RAY_SERVE_ENABLE_HA_PROXY": "1",
                    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90",
                    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
                    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "90",
                    **balancer.environment,
                },
            )
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), log.read_text()[-4000:]
            found = Cluster(process, url, models, config, balancer)
            eventually(lambda: len(found.workers()) == 2, seconds=60)
            yield found
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            for each in family:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            process.stdout.close()


def body(rows=1, seed=0):
    return {"instances": inputs(rows, seed=seed).tolist()}


def test_an_answer_has_one_request_id_which_the_client_may_choose(cluster):
    for given in ({}, {"X-Request-Id": "mine"}):
        answer = httpx.post(f"{cluster.url}/predict", json=body(), headers=given)
        assert answer.status_code == 200
        ids = answer.headers.get_list("x-request-id")
        assert len(ids) == 1
        assert not given or ids == ["mine"]


def test_an_update_of_a_prior_is_served_by_both_replicas_within_a_second(cluster):
    taken = []
    with httpx.Client(base_url=cluster.url, timeout=30) as client:
        for number in range(3):
            prior = {"target": {"class-1": 3 + number}, "others": 1}
            written = client.put("/models/linear/priors/default", json=prior)
            begun = time.monotonic()
            revision = int(written.headers["etag"].strip('"'))
            old = begun
            while time.monotonic() < begun + 1.5:
                answer = httpx.post(f"{cluster.url}/predict", json=body())  # a new connection
                if answer.json()["prior"]["revision"] < revision:
                    old = time.monotonic()
            taken.append(old - begun)
    assert max(taken) < 1.0, taken


def test_an_unload_reaches_both_replicas_and_so_does_the_load_after_it(cluster):
    for verb, status in (("unload", 404), ("load", 200)):
        answer = httpx.post(f"{cluster.url}/v2/repository/models/linear/{verb}", timeout=30)
        assert answer.status_code == 200, answer.text
        seen = {httpx.post(f"{cluster.url}/predict", json=body()).status_code for _ in range(12)}
        assert seen == {status}


def test_settings_of_the_deployment_reach_a_replica_and_wrong_ones_are_named(cluster):
    from deploy.ray.app import Behind

    app = Behind(None)
    app.reconfigure({"max_queue_ms": 7})
    assert app.settings.max_queue_ms == 7
    with pytest.raises(ValueError, match="'store' cannot be changed"):
        app.reconfigure({"store": "sqlite:///x"})


def test_without_keys_no_replica_starts_where_ray_listens_on_more_than_loopback(monkeypatch):
    from deploy.ray import app
    from service.api.edge.access import ExposedWithoutKeys

    monkeypatch.setattr(app, "_ray_host", lambda: "0.0.0.0")
    with pytest.raises(ExposedWithoutKeys, match=r"0\.0\.0\.0"):
        app.build()


class Crowd:
    """Clients that ask without a pause and count their answers by class, and their failures."""

    def __init__(self, url):
        self._url, self._stop, self._seeds = url, threading.Event(), itertools.count()
        self.classes, self.statuses = collections.Counter(), collections.Counter()
        self._lock = threading.Lock()

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
                try:
                    answer = client.post("/predict", json=body(3, seed=next(self._seeds)))
                except RETRIABLE as error:
                    with self._lock:
                        self.statuses[type(error).__name__] += 1
                    continue
                with self._lock:
                    if answer.status_code == 200:
                        self.classes.update(each["label"] for each in answer.json()["predictions"])
                    self.statuses[reported(answer)] += 1


def reported(answer):
    """The status of an answer, or who gave it in the place of a replica."""
    if answer.status_code == 500 and answer.headers["content-type"] == "text/plain":
        return UNANSWERED
    return answer.status_code


def test_a_killed_replica_costs_no_more_than_the_requests_in_its_hands(cluster):
    eventually(lambda: len(cluster.balancer.up()) == 2, seconds=60)
    before = set(cluster.replicas())
    assert len(before) == 2
    victim = min(before)
    name = cluster.name_of(victim)
    cluster.balancer.answers.clear()
    with Crowd(cluster.url) as crowd:
        eventually(lambda: crowd.statuses[200] > 100, seconds=60)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(set(cluster.replicas()) - {victim}) == 2, seconds=60)
    lost = {each: count for each, count in crowd.statuses.items() if each != 200}
    assert set(lost) <= {UNANSWERED, *(each.__name__ for each in RETRIABLE)}
    # Until the kernel has closed the socket of the dead process, it takes one more from a client.
    assert sum(lost.values()) <= 2 * CLIENTS, lost
    eventually(lambda: len(refused(cluster)) >= lost.get(UNANSWERED, 0))
    assert set(refused(cluster)) <= {name}
    eventually(lambda: len([w for w in cluster.workers() if w["serving"]]) >= 2, seconds=60)


def refused(cluster):
    """The replica of each request that HAProxy answered by itself, from its log."""
    return [name for name, status in cluster.balancer.answers if status in (502, 503, 504)]


_CONFIG = """
global: {{scrape_interval: 2s, scrape_timeout: 2s}}  # in a second, a loaded replica is missed
scrape_configs:
  - job_name: replicas
    http_sd_configs: [{{url: '{url}/metrics/targets', refresh_interval: 1s}}]
"""


@pytest.fixture
def prometheus(cluster, tmp_path):
    """The base URL of a Prometheus that finds the replicas by itself."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "prometheus.yml"
    config.write_text(_CONFIG.format(url=cluster.url))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def by_class(prometheus):
    query = 'sum by (class) (priordial_predictions_total{model="linear",decision="adjusted"})'
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query})
        found = answer.raise_for_status().json()["data"]["result"]
        counted = {each["metric"]["class"]: int(each["value"][1]) for each in found}
        return {label: count for label, count in counted.items() if count}
    return {}


def test_prometheus_has_the_exact_sum_of_each_class_over_all_replicas(cluster, prometheus):
    def targets():
        with contextlib.suppress(httpx.HTTPError):  # it answers 503 while it starts
            found = httpx.get(f"{prometheus}/api/v1/targets").raise_for_status().json()
            return [each["health"] for each in found["data"]["activeTargets"]]
        return []

    eventually(lambda: targets() == ["up", "up"], seconds=60)
    before = collections.Counter()
    for text in cluster.metrics():
        for label in (f"class-{number}" for number in range(CLASSES)):
            counted = {"model": "linear", "class": label, "decision": "adjusted"}
            before[label] += int(metric(text, "priordial_predictions_total", **counted))
    with Crowd(cluster.url) as crowd:
        eventually(lambda: crowd.statuses[200] > 200, seconds=60)
    assert set(crowd.statuses) == {200}
    wanted = dict(before + crowd.classes)
    eventually(lambda: by_class(prometheus) == wanted, seconds=60)


def test_replicas_come_when_rows_wait_and_go_when_none_do(cluster):
    publish_slow(cluster.models)
    httpx.post(f"{cluster.url}/v2/repository/models/slow/load", timeout=60).raise_for_status()
    stop = threading.Event()

    def ask():
        with httpx.Client(base_url=cluster.url, timeout=30) as client:
            while not stop.is_set():
                with contextlib.suppress(*RETRIABLE):
                    client.post("/models/slow/predict", json={"instances": [[1.0, ROUNDS]] * 8})

    with ThreadPoolExecutor(24) as pool:
        asking = [pool.submit(ask) for _ in range(24)]
        try:
            eventually(lambda: len(cluster.replicas()) == 3, seconds=60)
            eventually(lambda: len(cluster.workers()) == 3, seconds=60)
        finally:
            stop.set()
        for each in asking:
            each.result()
    eventually(lambda: len(cluster.replicas()) == 2, seconds=60)
    eventually(lambda: len(cluster.workers()) == 2, seconds=30)


def test_user_config_changes_a_setting_of_running_replicas(cluster):
    publish_steady(cluster.models, rounds=50)  # some 10 ms a batch: 300 ms hold hundreds of rows
    httpx.post(f"{cluster.url}/v2/repository/models/steady/load", timeout=60).raise_for_status()
    eventually(lambda: len(cluster.balancer.up()) == 2, seconds=60)
    processes = set(cluster.replicas())
    rows = {"instances": [[1.0, 1.0]] * 40}

    def statuses():
        """Of 320 rows that arrive together."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            path = f"{cluster.url}/models/steady/predict"
            answers = [pool.submit(httpx.post, path, json=rows, timeout=60) for _ in range(CLIENTS)]
            return {each.result().status_code for each in answers}

    def refusing():
        statuses()
        counted = 'priordial_rejected_total{model="steady",reason="overloaded"}'
        return [counted in each for each in cluster.metrics()]

    assert statuses() == {200}
    cluster.deploy(max_queue_ms=1)
    eventually(lambda: refusing() == [True, True], seconds=60)
    cluster.deploy(max_queue_ms=0)
    eventually(lambda: [statuses() for _ in range(5)] == [{200}] * 5, seconds=60)
    assert set(cluster.replicas()) == processes


def test_more_models_than_memory_answer_while_each_replica_holds_as_many_as_its_bound(cluster):
    def ask():
        with httpx.Client(base_url=cluster.url, timeout=60) as client:
            for name in MANY * 4:
                answer = client.post(f"/models/{name}/predict", json=body())
                assert answer.status_code == 200
                assert answer.json()["model"] == name

    def loaded():
        return [
            set(re.findall('priordial_model_info{model="([^"]+)"', m)) for m in cluster.metrics()
        ]

    def every_replica_was_asked():
        ask()
        return all(each & set(MANY) for each in loaded())

    eventually(every_replica_was_asked, seconds=120)  # HAProxy chooses the replica
    eventually(lambda: all(len(each) <= 5 for each in loaded()))
    assert all("linear" in each for each in loaded())
