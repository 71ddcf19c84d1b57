"""Triton's statistics extension as tritonclient asks for it: counts by version, the same from
every worker.
"""

import asyncio
import hashlib
import time

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.http.aio import InferenceServerClient as AsyncClient
from tritonclient.utils import InferenceServerException

from service.api.oip import statistics as oip_statistics
from tests.support.faulty_models import publish_root
from tests.support.server import running
from tests.support.small_models import FEATURES, inputs, publish_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    publish_model(models)  # version 2
    publish_model(models, "idle")
    publish_model(models, "stats")  # named as the route
    publish_root(models, FEATURES)
    return models


@pytest.fixture(scope="module")
def server(models):
    with running(models, max_batch_rows=64, max_queued_rows=500) as found:
        yield found


@pytest.fixture
def client(server):
    with InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def infer(client, rows, *, model="linear", version=""):
    x = InferInput("x", list(rows.shape), "FP32")
    return client.infer(model, [x.set_data_from_numpy(rows)], model_version=version)


def statistics(client, model="", version=""):
    """By (model, version)."""
    found = client.get_inference_statistics(model, version)
    assert Draft202012Validator(oip_statistics._SCHEMA).is_valid(found)
    return {(each["name"], each["version"]): each for each in found["model_stats"]}


def counts(found):
    """(rows, graph calls, requests that succeeded, that failed)."""
    message = found["inference_stats"]
    return (
        found["inference_count"],
        found["execution_count"],
        message["success"]["count"],
        message["fail"]["count"],
    )


def gained(client, model, version, work):
    before = statistics(client, model, version)[model, version]
    work()
    after = statistics(client, model, version)[model, version]
    return np.subtract(counts(after), counts(before)).tolist(), before, after


def test_the_server_says_that_it_has_statistics(client):
    assert "statistics" in client.get_server_metadata()["extensions"]


def test_one_request_after_the_other_is_counted_by_rows_calls_and_requests(client):
    begun = int(1000 * time.time())

    def work():
        for rows in (1, 3, 3, 150):  # the last in three batches, the third of 22 rows
            infer(client, inputs(rows), version="1")

    found, before, after = gained(client, "linear", "1", work)
    assert found == [157, 1 + 1 + 1 + 3, 4, 0]
    assert begun <= after["last_inference"] <= int(1000 * time.time())
    sizes, earlier = (
        {each["batch_size"]: each["compute_infer"]["count"] for each in message["batch_stats"]}
        for message in (after, before)
    )
    assert {k: n - earlier.get(k, 0) for k, n in sizes.items()} == {1: 1, 3: 2, 64: 2, 22: 1}


def test_the_times_of_requests_are_those_of_their_waiting_and_their_graph_calls(client):
    infer(client, inputs(2))
    (found,) = statistics(client, "linear", "2").values()
    message, batches = found["inference_stats"], found["batch_stats"]
    assert message["success"]["ns"] == pytest.approx(
        message["queue"]["ns"] + message["compute_infer"]["ns"], abs=1
    )
    assert (
        message["queue"]["count"]
        == message["compute_infer"]["count"]
        == message["success"]["count"]
    )
    alone = sum(each["compute_infer"]["ns"] for each in batches)
    assert (
        0 < alone <= message["compute_infer"]["ns"] + len(batches)
    )  # a call is charged to each request in it
    for part in ("compute_input", "compute_output", "cache_hit", "cache_miss"):
        assert message[part] == {"count": 0, "ns": 0}


def test_a_request_with_a_row_that_comes_out_as_nan_has_failed_and_its_rows_do_not_count(client):
    def work():
        for first in (1.0, -1.0, 1.0):
            rows = np.ones((3, FEATURES), np.float32)
            rows[1, 0] = first
            if first > 0:
                infer(client, rows, model="sqrt")
                continue
            with pytest.raises(InferenceServerException, match="NaN"):
                infer(client, rows, model="sqrt")

    found, _, _ = gained(client, "sqrt", "1", work)
    assert found == [6, 3, 2, 1]


def test_requests_that_are_refused_have_failed(client):
    def work():
        with pytest.raises(InferenceServerException, match="at most"):
            infer(client, inputs(501))

    found, _, _ = gained(client, "linear", "2", work)
    assert found == [0, 0, 0, 1]


def test_every_way_to_score_counts_once(client, server):
    rows = inputs(2).tolist()

    def work():
        httpx.post(
            f"{server.url}/models/linear/predict", json={"instances": rows}
        ).raise_for_status()
        both = {"instances": rows, "settings": [{}, {"tau": 0}]}
        httpx.post(f"{server.url}/models/linear/adjust", json=both).raise_for_status()

    found, _, _ = gained(client, "linear", "2", work)
    assert found == [4, 2, 2, 0]


def test_statistics_are_told_of_one_version_of_all_of_a_model_or_of_everything(client):
    assert set(statistics(client, "linear", "1")) == {("linear", "1")}
    assert set(statistics(client, "linear")) == {("linear", "1"), ("linear", "2")}
    every = statistics(client)
    assert set(every) == {
        ("linear", "1"),
        ("linear", "2"),
        *((n, "1") for n in ("idle", "sqrt", "stats")),
    }
    idle = every["idle", "1"]
    assert (counts(idle), idle["batch_stats"], idle["last_inference"]) == ((0, 0, 0, 0), [], 0)
    assert set(statistics(client, "stats")) == {("stats", "1")}
    assert client.get_model_metadata("stats", "1")["name"] == "stats"


@pytest.mark.parametrize(("model", "version"), [("none", ""), ("linear", "9"), ("linear", "x")])
def test_statistics_of_what_is_not_served_are_not_found(client, model, version):
    with pytest.raises(InferenceServerException) as refused:
        client.get_inference_statistics(model, version)
    assert refused.value.status() == "404"


def test_counts_are_those_of_all_workers_whichever_is_asked(models):
    requests = 24
    with running(models, workers=2) as server:
        address = server.url.removeprefix("http://")
        for _ in range(requests):
            with InferenceServerClient(
                address
            ) as client:  # a connection each: some go to either worker
                infer(client, inputs(2))
        for _ in range(6):
            with InferenceServerClient(address) as client:
                found = statistics(client, "linear", "2")["linear", "2"]
                assert counts(found) == (2 * requests, requests, requests, 0)
                assert abs(found["last_inference"] / 1000 - time.time()) < 3600  # no sum of times
        text = httpx.get(f"{server.url}/metrics").text
        assert f'priordial_batch_rows_count{{model="linear"}} {requests}\n' in text
        assert "statistics" not in text


def test_the_asyncio_client_gets_on_alike(server):
    async def go():
        async with AsyncClient(server.url.removeprefix("http://")) as client:
            assert await client.is_model_ready("linear", "1")
            assert (await client.get_model_config("linear"))["max_batch_size"] == 500
            before = await client.get_inference_statistics("linear", "1")
            x = InferInput("x", [3, FEATURES], "FP32").set_data_from_numpy(inputs(3))
            await client.infer("linear", [x], model_version="1")
            after = await client.get_inference_statistics("linear", "1")
            message = [each["model_stats"][0]["inference_count"] for each in (before, after)]
            assert message[1] - message[0] == 3
            with pytest.raises(InferenceServerException, match="no model 'none'"):
                await client.infer("none", [x])

    asyncio.run(go())


def test_statistics_ask_for_the_key_that_metrics_ask_for(models, tmp_path):
    lines = [
        f"{name} {name} sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        for name in ("observe", "predict")
    ]
    (tmp_path / "keys").write_text("\n".join(lines))
    with running(models, keys=tmp_path / "keys") as server:
        for key, status in (("observe", 200), ("predict", 403), (None, 401)):
            headers = {} if key is None else {"x-api-key": key}
            for path in ("/v2/models/stats", "/v2/models/linear/stats", "/metrics"):
                assert httpx.get(server.url + path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.get_system_shared_memory_status(), "shared memory is not supported"),
        (
            lambda client: client.register_system_shared_memory("a", "/a", 1),
            ("shared memory is not supported"),
        ),
        (lambda client: client.unregister_system_shared_memory(), "shared memory is not supported"),
        (
            lambda client: client.get_cuda_shared_memory_status("a"),
            "shared memory is not supported",
        ),
        (lambda client: client.get_trace_settings(), "--traces"),
        (
            lambda client: client.update_trace_settings("linear", {"trace_level": ["OFF"]}),
            "--traces",
        ),
        (lambda client: client.get_log_settings(), "--log-format"),
        (lambda client: client.update_log_settings({"log_info": True}), "--log-format"),
    ],
)
def test_an_extension_that_is_not_served_says_so(client, call, message):
    with pytest.raises(InferenceServerException, match=message) as refused:
        call(client)
    assert refused.value.status() == "404"
