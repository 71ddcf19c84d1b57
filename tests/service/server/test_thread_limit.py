"""A running service under a limit of processes and threads goes on, and says what it lacks."""

import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.server import READY, ROOT
from tests.support.small_models import FEATURES, linear_model, publish_model

USER = 64_123
"""A user id of nobody else: the limit counts all processes of a user, and spares root."""
CLASSES = 5_000
ALLOWED = "-all,+dac_override"


@pytest.fixture
def served(tmp_path_factory):
    """The URL, the process and the log file of a service whose threads can be limited."""
    as_root = os.geteuid() == 0
    if as_root and shutil.which("setpriv") is None:
        pytest.skip("root has no such limit, and setpriv (util-linux) is not installed")
    folder = tmp_path_factory.mktemp("limited")
    publish_model(folder / "models")
    publish_model(
        folder / "models",
        "many",
        model=linear_model(classes=CLASSES),
        class_names=[f"class-{at:05d}" for at in range(CLASSES)],
        class_counts=[10] * CLASSES,
    )
    command = [sys.executable, "-m", "service", "serve", "--models", str(folder / "models")]
    command += ["--port", "0", "--store", f"sqlite:///{folder}/priors.db", "--provider", "cpu"]
    command += ["--inline-us", "0"]  # each graph call is for a thread, which none has started yet
    if as_root:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, USER, USER)
        caps = [f"--{each}={ALLOWED}" for each in ("inh-caps", "ambient-caps", "bounding-set")]
        ids = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
        command = ["setpriv", *ids, *caps, *command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--default-model", "linear"],
            stderr=stderr,
            cwd=ROOT,
            env={**environment, "TMPDIR": str(folder), "HOME": str(folder)},
        )
    try:
        ready = eventually(lambda: re.search(READY, log.read_text()), seconds=90)
        yield ready[1], process, log
    finally:
        process.kill()
        process.wait()


def allow_no_more_threads(pid):
    """Set the limit below what runs, for a process and those that it started."""
    for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
        if os.geteuid() == 0:
            as_user = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
            limit = ["prlimit", "--pid", str(each), "--nproc=1:"]
            subprocess.run([*as_user, *limit], check=True)
        else:
            hard = resource.prlimit(each, resource.RLIMIT_NPROC)[1]
            resource.prlimit(each, resource.RLIMIT_NPROC, (1, hard))


def test_a_limit_of_threads_costs_neither_pages_nor_priors_nor_the_log(served):
    url, process, log = served
    allow_no_more_threads(process.pid)
    rows = {"instances": np.zeros((2000, FEATURES)).tolist()}
    packed = gzip.compress(json.dumps(rows).encode())
    as_gzip = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    long = {"target": [1.0] * (CLASSES - 1) + [2.0]}
    with httpx.Client(base_url=url, timeout=60) as client:

        def sent(method, path, **more):
            return client.request(method, path, **more).status_code

        assert sent("POST", "/predict", json={"instances": rows["instances"][:1]}) == 200
        assert sent("POST", "/predict", json=rows) == 200
        assert sent("POST", "/predict", content=packed, headers=as_gzip) == 200
        assert sent("PUT", "/models/linear/priors/a", json={"target": "uniform"}) == 201
        assert sent("PUT", "/models/many/priors/a", json=long) == 201
        for page in (
            "/metrics",
            "/models/many",
            "/openapi.json",
            "/models/many/priors/a",
            "/v2/models/linear/stats",
            "/health/live",
            "/health/ready",
        ):
            assert sent("GET", page) == 200, page
        text = client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
        assert text.headers["content-encoding"] == "gzip"
        publish_model(log.parent / "models", "late")
        loaded = client.post("/v2/repository/models/late/load")
        assert loaded.status_code == 422
        assert "no process can be started" in loaded.text
        assert "ulimit -u" in loaded.text
        refused = client.post("/models/many/predict?top_k=5000", json=rows)
        if refused.status_code != 200:  # its graph has no thread yet
            assert refused.status_code in (413, 429, 503)
            assert sent("GET", "/health/live") == 200
    said = eventually(lambda: [x for x in log.read_text().splitlines() if '"/predict"' in x])
    assert len(said) >= 3
    process.terminate()
    assert process.wait(60) == 0
    assert '"status":500' not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_this_limit_is_real(served):
    """Without it the test above would prove nothing."""
    _, process, _ = served
    allow_no_more_threads(process.pid)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max processes\s+1\s", limits)
