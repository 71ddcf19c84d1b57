"""Models change while they are asked: no request fails, no answer mixes versions, and a bad version
changes nothing.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.contract.adjustment import adjust_logits, log_source_prior, softmax
from tests.support.eventually import eventually
from tests.support.faulty_models import publish_slow
from tests.support.server import children, metric, running, starting
from tests.support.small_models import CLASSES, COUNTS, inputs, linear_model, publish_model, weights

ROWS = inputs(70, seed=4)  # more than a batch takes
LOAD, UNLOAD = (f"/v2/repository/models/linear/{verb}" for verb in ("load", "unload"))
NEXT_VERSIONS = 5


def publish_version(models, version):
    """A version whose weights are its own: seed = version."""
    return publish_model(models, model=linear_model(seed=version))


@pytest.fixture
def models(tmp_path):
    publish_version(tmp_path / "models", 1)
    return tmp_path / "models"


def wanted(version, rows=ROWS):
    """The probabilities [n, C] of a version, at tau 1 and a uniform target."""
    w, b = weights(seed=version)
    logits = rows.astype(np.float64) @ w + b
    source = log_source_prior(COUNTS, loss_tau=0)
    return softmax(adjust_logits(logits, log_source_prior=source, log_target_prior=0.0, tau=1.0))


def chances(predictions):
    found = np.zeros((len(predictions), CLASSES))
    for row, each in enumerate(predictions):
        for entry in each["top"]:
            found[row, entry["index"]] = entry["probability"]
    return found


def of_predict(client, count):
    body = {"instances": ROWS[:count].tolist()}
    answer = client.post("/models/linear/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], chances(answer.json()["predictions"])


def of_adjust(client, count):
    body = {"instances": ROWS[:count].tolist(), "settings": [{"tau": 1}]}
    answer = client.post("/models/linear/adjust", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], chances(answer.json()["results"][0]["predictions"])


def of_infer(client, count):
    tensor = {"name": "x", "datatype": "FP32", "shape": [count, ROWS.shape[1]]}
    body = {"inputs": [{**tensor, "data": ROWS[:count].ravel().tolist()}]}
    answer = client.post("/v2/models/linear/infer", json=body)
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    return int(answer.json()["model_version"]), np.reshape(output["data"], output["shape"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_is_swapped_under_load_without_a_failure_or_a_mixture(models, workers):
    stop = threading.Event()

    def ask(url, kind):
        """Versions that were seen, in order."""
        seen = []
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                for count in (1, len(ROWS), 3):
                    version, found = kind(client, count)
                    np.testing.assert_allclose(found, wanted(version)[:count], atol=1e-5)
                    seen.append(version)
        return seen

    with running(models, keep_versions=1, workers=workers) as server, ThreadPoolExecutor(4) as pool:
        asking = [
            pool.submit(ask, server.url, kind)
            for kind in (of_predict, of_adjust, of_infer, of_predict)
        ]
        try:
            for version in range(2, 2 + NEXT_VERSIONS):
                publish_version(models, version)
                if version % 2:
                    server.process.send_signal(signal.SIGHUP)
                    ready = rf"(?s:(model linear version {version} is ready.*){{{workers}}})"
                    server.wait_for(ready)
                else:
                    httpx.post(server.url + LOAD, timeout=30).raise_for_status()
            server.wait_for(rf"model linear version {NEXT_VERSIONS} is unloaded")
        finally:
            stop.set()
        seen = [each.result() for each in asking]
    assert len(set(itertools.chain(*seen))) >= NEXT_VERSIONS // 2
    for versions in seen if workers == 1 else []:
        assert versions == sorted(versions)


def corrupt_graph(folder):
    (folder / "model.onnx").write_bytes(b"not a graph")
    digests = json.loads((folder / "model.json").read_text())
    digests["files"]["model.onnx"] = hashlib.sha256(b"not a graph").hexdigest()
    (folder / "model.json").write_text(json.dumps(digests))


def wrong_digest(folder):
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")


def no_json(folder):
    (folder / "model.json").unlink()


def wrong_member(folder):
    found = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**found, "class_mames": []}))


def no_graph(folder):
    (folder / "model.onnx").unlink()


def too_few_names(folder):
    found = json.loads((folder / "model.json").read_text())
    found["class_names"], found["class_counts"] = found["class_names"][:-1], COUNTS[:-1]
    (folder / "model.json").write_text(json.dumps(found))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_version_leaves_the_old_one_serving_and_says_why(models, workers):
    bad = {
        corrupt_graph: "model.onnx",
        wrong_digest: "model.onnx",
        no_json: "model.json",
        wrong_member: "class_mames",
        no_graph: "model.onnx",
        too_few_names: "the graph has 5 classes, and class_names 4",
    }
    with running(models, workers=workers) as server, httpx.Client(base_url=server.url) as client:
        for version, (spoil, words) in enumerate(bad.items(), 2):
            spoil(publish_version(models, version))
            refused = client.post(LOAD, timeout=30)
            assert refused.status_code == 422
            assert words in refused.json()["error"], refused.text
            index = {each["version"]: each for each in client.post("/v2/repository/index").json()}
            assert index[str(version)]["state"] == "UNAVAILABLE"
            assert words in index[str(version)]["reason"]
            assert index["1"]["state"] == "READY"
            assert client.get("/health/ready").status_code == 200
            answered, found = of_predict(client, 3)
            assert answered == 1
            np.testing.assert_allclose(found, wanted(1)[:3], atol=1e-5)
        newest = 2 + len(bad)
        publish_version(models, newest)
        assert client.post(LOAD, timeout=30).status_code == 200
        assert of_predict(client, 1)[0] == newest
        assert server.terminate() == 0


def everywhere(url, path="/models/linear/predict", *, asked=24):
    """The answers on `asked` new connections, which are spread over the workers."""
    body = {"instances": ROWS[:1].tolist()}
    return [httpx.post(url + path, json=body, timeout=30) for _ in range(asked)]


def test_load_and_unload_reach_every_worker_and_those_that_come_later(models):
    with running(models, workers=2) as server:
        assert httpx.post(server.url + UNLOAD, timeout=30).status_code == 200
        assert {each.status_code for each in everywhere(server.url)} == {404}
        publish_version(models, 2)
        server.process.send_signal(signal.SIGHUP)  # what was unloaded by name stays out
        victim = children(server.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: restarts(server.url))
        assert {each.status_code for each in everywhere(server.url)} == {404}
        assert httpx.post(server.url + LOAD, timeout=30).status_code == 200
        assert {each.json()["version"] for each in everywhere(server.url)} == {2}
        shutil.rmtree(models / "linear" / "2")
        assert httpx.post(server.url + LOAD, timeout=30).status_code == 200
        assert {each.json()["version"] for each in everywhere(server.url)} == {1}
        unknown = httpx.post(server.url + "/v2/repository/models/nobody/load", timeout=30)
        assert unknown.status_code == 404
        assert server.terminate() == 0


@pytest.mark.parametrize("loss", ["gone", "empty"])
def test_a_lost_folder_of_models_costs_no_model(models, loss):
    """As after a lost mount; a reload looks at the folder."""
    away = models.with_name("away")
    with running(models, workers=1) as server:
        models.rename(away)
        if loss == "empty":
            models.mkdir()
        server.process.send_signal(signal.SIGHUP)

        def health():
            return httpx.get(f"{server.url}/health/ready", timeout=30)

        eventually(lambda: health().json()["status"] == "degraded")
        assert health().status_code == 200
        assert f"the models folder '{models}' " in health().json()["reason"]
        assert {each.status_code for each in everywhere(server.url)} == {200}
        if loss == "empty":
            models.rmdir()
        away.rename(models)
        publish_version(models, 2)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: {e.json()["version"] for e in everywhere(server.url)} == {2})
        assert health().json()["status"] == "ready"
        assert (
            sum("go on serving" in line and '"error"' in line for line in server.log.splitlines())
            == 1
        )


def restarts(url):
    return metric(httpx.get(f"{url}/metrics", timeout=30).text, "priordial_worker_restarts_total")


def test_requests_that_were_admitted_are_answered_by_the_model_that_is_unloaded(models):
    publish_slow(models)
    with running(models, inline_us=0) as server, ThreadPoolExecutor(2) as pool:

        def ask(rounds):
            body = {"instances": [[1.0, rounds]]}
            return httpx.post(f"{server.url}/models/slow/predict", json=body, timeout=60)

        def is_queued():
            text = httpx.get(f"{server.url}/metrics").text
            return metric(text, "priordial_queued_rows", model="slow") == 1

        def running_and_queued():
            """A request that runs and one that waits for it; None when it was too late to see
            that.
            """
            runs = pool.submit(ask, 8000.0)
            waits = pool.submit(ask, 8000.0)
            while not waits.done():
                if is_queued():
                    return runs, waits
            return None

        both = eventually(running_and_queued)
        unloaded = httpx.post(f"{server.url}/v2/repository/models/slow/unload", timeout=30)
        assert unloaded.status_code == 200
        assert ask(1.0).status_code == 404
        assert {each.result().status_code for each in both} == {200}
        server.wait_for("model slow version 1 is unloaded")


def test_an_unloaded_model_gives_its_memory_back(models):
    """Of a real process, in which what the start made is frozen and no cycle of it would be
    collected.
    """
    width = 3000

    def resident():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    publish_model(models, "large", model=large_model(width))
    with running(models, inline_us=0) as server:
        body = {"instances": ROWS[:2].tolist()}
        large = f"{server.url}/models/large/predict"
        assert httpx.post(large, json=body).status_code == 200
        before = resident()
        mib = 4 * width * width / 2**20
        for _ in range(3):
            httpx.post(f"{server.url}/v2/repository/models/large/unload").raise_for_status()
            eventually(lambda: before - resident() > 0.8 * mib)
            httpx.post(
                f"{server.url}/v2/repository/models/large/load", timeout=60
            ).raise_for_status()
            assert httpx.post(large, json=body).status_code == 200
        assert resident() - before < 0.5 * mib


def large_model(width):
    """linear_model with a square of weights before it that counts for nothing."""
    from onnx import helper, numpy_helper

    model = linear_model()
    graph = model.graph
    graph.node[0].input[2] = "bias"
    square = np.full((width, width), 1e-3, np.float32)
    first = np.zeros((ROWS.shape[1], width), np.float32)
    last = np.zeros((width, CLASSES), np.float32)
    for name, values in (("first", first), ("square", square), ("last", last)):
        graph.initializer.append(numpy_helper.from_array(values, name))
    more = [("x", "first", "h1"), ("h1", "square", "h2"), ("h2", "last", "nothing")]
    nodes = [helper.make_node("MatMul", [a, b], [c]) for a, b, c in more]
    nodes += [helper.make_node("Add", ["nothing", "b"], ["bias"])]
    nodes += list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def test_a_sighup_during_the_start_is_not_the_end(models):
    with starting(models) as server:
        server.wait_for("model linear version 1 is ready")
        publish_version(models, 2)
        server.process.send_signal(signal.SIGHUP)
        url = server.wait_for(r"ready on (http://[^\s\"]+)")[1]
        server.wait_for("model linear version 2 is ready")
        eventually(lambda: {each.json()["version"] for each in everywhere(url, asked=1)} == {2})
        assert server.terminate() == 0
