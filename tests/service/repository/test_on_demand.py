"""More models than fit into memory: each answers, and the loaded ones stay within the bound."""

import contextlib
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.repository.on_demand import OnDemand, size_of
from tests.support.eventually import eventually
from tests.support.server import running
from tests.support.small_models import (
    CLASSES,
    FEATURES,
    inputs,
    linear_model,
    publish_model,
    weights,
)

NAMES = [f"m{number}" for number in range(5)]
ROW = inputs(1).tolist()
MIB = 2**20


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        publish_model(folder, name, model=linear_model(seed=seed))
    return folder


@contextlib.contextmanager
def client_of(models, **settings):
    """A service with room for three of these models, which take somewhat more than 3 MiB each."""
    with (
        running(models, max_loaded_mib=10, default_model="m0", **settings) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        client.server = server
        yield client


@pytest.fixture(scope="module")
def client(models):
    with client_of(models) as found:
        yield found


def predicted(client, name, **more):
    return client.post(f"/models/{name}/predict", json={"instances": ROW}, **more)


def loads(client, name):
    """How often the log says that a model was loaded."""
    return len(re.findall(f"model {name} version 1 is ready", client.server.log))


def loaded(client):
    return [each["name"] for each in client.get("/models").json()["models"]]


def test_only_the_default_model_is_loaded_at_the_start(models):
    with client_of(models) as client:
        found = client.get("/models").json()
        assert [each["name"] for each in found["models"]] == ["m0"]
        assert found["on_demand"] == NAMES[1:]
        assert client.get("/v1/models").json() == {"models": NAMES}
        states = {
            each["name"]: each["reason"] for each in client.post("/v2/repository/index").json()
        }
        assert states["m0"] == ""
        assert states["m1"] == "loaded when a request names it"


def test_every_model_gives_its_own_answer_and_the_bound_holds(client):
    for seed, name in enumerate(NAMES):
        w, b = weights(seed=seed)
        wanted = softmax(np.asarray(ROW) @ w + b).max()
        found = predicted(client, name, params={"tau": 0}).json()["predictions"][0]
        assert found["probability"] == pytest.approx(wanted, abs=1e-6)
        now = loaded(client)
        assert len(now) <= 3
        assert {"m0", name} <= set(now)


def test_the_least_recently_used_model_is_let_go(client):
    for name in ("m1", "m2", "m1", "m3"):
        predicted(client, name)
    assert loaded(client) == ["m0", "m1", "m3"]
    eventually(lambda: "model m2 is unloaded" in client.server.log)


def test_callers_who_arrive_together_wait_for_one_load(client):
    predicted(client, "m1"), predicted(client, "m2")
    before = loads(client, "m3")
    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(lambda _: predicted(client, "m3").status_code, range(32)))
    assert answers == [200] * 32
    predicted(client, "m1"), predicted(client, "m2")
    predicted(client, "m3")
    eventually(lambda: loads(client, "m3") >= before + 2)  # the second shows that the log is read
    assert loads(client, "m3") == before + 2


def test_a_crowd_that_asks_for_every_model_at_once_gets_every_answer(client):
    with ThreadPoolExecutor(16) as crowd:
        found = list(crowd.map(lambda name: predicted(client, name).json()["model"], NAMES * 4))
    assert found == NAMES * 4
    eventually(lambda: len(loaded(client)) <= 3)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/models/{}", None),
        ("PUT", "/models/{}/priors/shop", {"target": "uniform"}),
        (
            "POST",
            "/v2/models/{}/infer",
            {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": ROW[0]}]},
        ),
        ("POST", "/v1/models/{}:predict", {"instances": ROW}),
        ("POST", "/models/{}/predict", {"instances": ROW * 2000}),  # read in the pool
    ],
)
def test_every_route_that_names_a_resting_model_loads_it(client, method, path, body):
    predicted(client, "m1"), predicted(client, "m2")
    answer = client.request(method, path.format("m4"), json=body)
    assert answer.status_code in {200, 201}, answer.text


def test_a_stored_prior_is_still_in_force_when_its_model_comes_back(client):
    target = [100] + [1] * (CLASSES - 1)
    assert client.put("/models/m4/priors/default", json={"target": target}).status_code in {
        200,
        201,
    }
    first = predicted(client, "m4", params={"tau": 1}).json()
    predicted(client, "m1"), predicted(client, "m2")
    assert "m4" not in loaded(client)
    assert predicted(client, "m4", params={"tau": 1}).json() == first


def test_an_unloaded_model_does_not_come_back_by_a_request_but_by_an_order(client):
    assert client.post("/v2/repository/models/m3/unload").status_code == 200
    assert predicted(client, "m3").status_code == 404
    assert client.post("/v2/repository/models/m3/load").status_code == 200
    assert predicted(client, "m3").status_code == 200
    assert len(loaded(client)) <= 3


def test_a_model_that_cannot_be_loaded_says_why_and_the_others_serve(tmp_path):
    for name in NAMES[:2]:
        publish_model(tmp_path, name)
    (tmp_path / "m1" / "1" / "model.onnx").write_bytes(b"no model")
    with client_of(tmp_path) as client:
        refused = predicted(client, "m1")
        assert refused.status_code == 404
        assert "model 'm1' was not loaded: " in refused.json()["detail"]
        assert [each["model"] for each in client.get("/models").json()["faults"]] == ["m1"]
        assert predicted(client, "m1").status_code == 404  # and is not tried again and again
        eventually(lambda: "load of m1/1 failed" in client.server.log)
        assert client.server.log.count("load of m1/1 failed") == 1
        assert predicted(client, "m0").status_code == 200


def test_a_model_whose_folder_is_gone_makes_room(tmp_path):
    for name in NAMES[:4]:
        publish_model(tmp_path, name)
    with client_of(tmp_path) as client:
        predicted(client, "m1"), predicted(client, "m2")
        shutil.rmtree(tmp_path / "m1")
        client.server.process.send_signal(signal.SIGHUP)
        eventually(lambda: loaded(client) == ["m0", "m2"])
        predicted(client, "m3")
        assert loaded(client) == ["m0", "m2", "m3"]
        assert client.get("/models").json()["on_demand"] == []


def test_without_a_key_no_model_is_loaded(models):
    with client_of(models, api_keys="reader observe sha256:" + "a" * 64) as client:
        assert predicted(client, "m1").status_code == 401
        assert client.get("/models/m1").status_code == 401
        assert "model m1 version 1 is ready" not in client.server.log


def test_what_stays_is_never_let_go_and_a_large_model_is_loaded_nevertheless():
    memory = OnDemand(10 * MIB)
    for name, size in (("default", 4), ("held", 4), ("large", 20)):
        memory.reserve(name, size * MIB)
    assert memory.let_go(keep=["default", "held", "large"]) == []
    memory.reserve("next", MIB)
    assert memory.let_go(keep=["default", "next"]) == ["held", "large"]
    assert memory.resting == {"held", "large"}


def test_a_file_that_cannot_be_looked_at_keeps_no_model_from_its_requests(tmp_path):
    for name in NAMES[:2]:
        publish_model(tmp_path, name, model=linear_model(seed=1))
    (tmp_path / "m1" / "1" / "odd").symlink_to("x" * 300)  # too long a name for any file
    with client_of(tmp_path) as client:
        assert predicted(client, "m1").status_code == 200
        states = {e["name"]: e["state"] for e in client.post("/v2/repository/index").json()}
        assert states == {"m0": "READY", "m1": "READY"}


def test_the_size_of_a_model_counts_its_files(tmp_path):
    (tmp_path / "model.onnx").write_bytes(bytes(np.zeros(MIB, np.int8)))
    assert size_of([tmp_path]) == 5 * MIB
