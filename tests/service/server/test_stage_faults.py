"""Every stage of a request made to raise, to hang and to give NaN: only the request at
fault fails, and a process that dies is replaced.
"""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.process.exit_codes import HUNG
from tests.support import faulty_server as faulty
from tests.support.eventually import eventually
from tests.support.faulty_models import publish_lookup, publish_root, publish_slow
from tests.support.server import metric, running
from tests.support.small_models import FEATURES, IMAGE_FIELDS, image_model, inputs, publish_model

JSON = {"content-type": "application/json"}
NEIGHBOURS = 12
FOREVER = 1e9


def body(rows=None, **parameters):
    rows = inputs(1) if rows is None else rows
    return json.dumps({"instances": np.asarray(rows).tolist(), "parameters": parameters}).encode()


def fault(*, model="linear", content=None, headers=JSON, **parameters):
    """Arguments of httpx for a request on which a stage of the faulty server fails."""
    return {
        "url": f"/models/{model}/predict",
        "content": body(**parameters) if content is None else content,
        "headers": headers,
    }


GUILTY = {
    "decode body": fault(
        content=b'{"instances": [[1, 2, 3, 4, 5, 6]], "parameters": {"prior": "guilty body"}}'
    ),
    "decode image": fault(
        model="image", content=faulty.IMAGE, headers={"content-type": "image/png"}
    ),
    "prior lookup": fault(prior=faulty.PRIOR),
    "build batch": fault(tau=faulty.BUILD),
    "run session": fault(tau=faulty.RUN),
    "slice": fault(tau=faulty.SLICE),
    "encode": fault(tau=faulty.ENCODE),
    "record batch": fault(model=faulty.UNRECORDED),
    "record request": fault(headers={**JSON, "x-request-id": faulty.COUNTED}),
    "log": fault(headers={**JSON, "x-request-id": faulty.LOGGED}),
    "batching loop": fault(tau=faulty.LOOP),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish_model(folder)
    publish_model(folder, faulty.UNRECORDED)
    publish_model(folder, "image", model=image_model(), **IMAGE_FIELDS)
    return folder


@pytest.fixture(scope="module")
def bad_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    publish_model(folder)
    publish_root(folder, FEATURES)
    publish_lookup(folder)
    publish_slow(folder)
    return folder


def broken(models, how, **settings):
    return running(models, program=("tests.support.faulty_server", how), **settings)


def together(url, guilty, *, neighbour=None, neighbours=NEIGHBOURS):
    """(the guilty's answer, the neighbours'), all sent at once."""
    neighbour = fault() if neighbour is None else neighbour

    async def go():
        limits = httpx.Limits(max_connections=neighbours + 1)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
            sent = [client.post(**neighbour) for _ in range(neighbours)]
            sent.insert(neighbours // 2, client.post(**guilty))
            answers = await asyncio.gather(*sent)
        return answers.pop(neighbours // 2), answers

    return asyncio.run(go())


@pytest.fixture(scope="module")
def raising(models):
    with broken(models, "raise") as server:
        yield server


@pytest.mark.parametrize(
    ("stage", "status", "problem"),
    [
        ("decode body", 500, "internal"),
        ("decode image", 500, "internal"),
        ("prior lookup", 500, "internal"),
        ("build batch", 422, "invalid"),
        ("run session", 422, "invalid"),
        ("slice", 500, "internal"),
        ("encode", 500, "internal"),
        ("record batch", 200, None),
        ("record request", 200, None),
        ("log", 200, None),
    ],
)
def test_a_stage_that_raises_fails_the_request_that_is_guilty_and_no_other(
    raising, stage, status, problem
):
    alone = httpx.post(f"{raising.url}/models/linear/predict", content=body(), headers=JSON).json()
    for _ in range(3):
        guilty, neighbours = together(raising.url, GUILTY[stage])
        assert guilty.status_code == status, guilty.text
        if problem is not None:
            assert guilty.json()["type"] == f"/problems/{problem}"
        assert [each.json() for each in neighbours] == [alone] * NEIGHBOURS
    assert httpx.get(f"{raising.url}/health/live").status_code == 200


def test_what_fails_by_a_fault_of_the_service_is_in_the_log_under_its_request_id(raising):
    request = GUILTY["encode"]
    request = {**request, "headers": {**request["headers"], "x-request-id": "look-for-me"}}
    guilty, _ = together(raising.url, request)
    assert (
        "look-for-me"
        in raising.wait_for(r"request look-for-me got status 500(?s:.*)Injected: _answer")[0]
    )
    assert "Injected" not in guilty.text


def test_a_batching_loop_that_dies_fails_its_callers_and_is_restarted(raising):
    guilty, neighbours = together(raising.url, GUILTY["batching loop"])
    assert guilty.status_code == 503
    assert guilty.headers["retry-after"] == "1"
    assert {each.status_code for each in neighbours} <= {200, 503}
    raising.wait_for(
        "the batching loop of linear version 1 failed; its queued requests get an error"
    )
    assert httpx.get(f"{raising.url}/health/live").status_code == 200
    _, neighbours = together(raising.url, fault())
    assert {each.status_code for each in neighbours} == {200}


@pytest.fixture(scope="module")
def not_a_number(models):
    with broken(models, "nan") as server:
        prior = f"{server.url}/models/linear/priors/{faulty.PRIOR}"
        httpx.put(prior, json={"target": "uniform"}).raise_for_status()
        yield server.url


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("decode body", "instance 0 holds NaN or infinity"),
        ("prior lookup", "instance 0: the model's output is NaN"),
        ("build batch", "instance 0: the model's output is NaN"),
    ],
)
def test_a_stage_that_gives_nan_fails_the_request_that_is_guilty_and_no_other(
    not_a_number, stage, message
):
    alone = httpx.post(f"{not_a_number}/models/linear/predict", content=body(), headers=JSON).json()
    guilty, neighbours = together(not_a_number, GUILTY[stage])
    assert guilty.status_code == 422, guilty.text
    assert message in guilty.json()["detail"]
    assert [each.json() for each in neighbours] == [alone] * NEIGHBOURS


GOOD = [1.0] * FEATURES
FAILING = {
    "sqrt": (GOOD, [*GOOD[1:], -1.0], "the model's output is NaN"),
    "lookup": ([3], [10], "the model refuses it"),
}


@pytest.mark.parametrize("inline_us", [0, 100_000], ids=["thread", "loop"])
def test_a_network_that_fails_for_a_row_fails_the_requests_that_hold_it(bad_models, inline_us):
    with running(bad_models, inline_us=inline_us) as server:
        for model, (good, bad, message) in FAILING.items():
            neighbour = {"url": f"/models/{model}/predict", "content": body([good, good])}
            alone = httpx.post(server.url + neighbour["url"], content=neighbour["content"]).json()
            guilty = {"url": neighbour["url"], "content": body([good, bad, good, bad])}
            for _ in range(3):
                refused, neighbours = together(server.url, guilty, neighbour=neighbour)
                assert refused.status_code == 422
                assert f"instance 1, 3: {message}" in refused.json()["detail"]
                assert "ONNXRuntimeError" not in refused.text
                assert [each.json() for each in neighbours] == [alone] * NEIGHBOURS
            text = httpx.get(f"{server.url}/metrics").text
            counted = metric(text, "priordial_rejected_total", model=model, reason="invalid")
            assert counted == 3
        server.wait_for(r'"route":"/metrics"')
        assert "E:onnxruntime" not in server.log  # its lines would quote the row


HANGS_THE_LOOP = [
    "decode body",
    "prior lookup",
    "slice",
    "encode",
    "record batch",
    "record request",
    "log",
]
STACK = r"Current thread|Thread 0x"


def test_a_loop_that_hangs_is_seen_its_stacks_are_logged_and_the_process_ends(models):
    def hang(stage):
        with broken(models, "hang", hang_seconds=2) as server:
            answered(server.url, GUILTY[stage])
            return server.exit(), server.log

    with ThreadPoolExecutor(len(HANGS_THE_LOOP)) as pool:
        for stage, (status, log) in zip(
            HANGS_THE_LOOP, pool.map(hang, HANGS_THE_LOOP), strict=True
        ):
            assert status == 70, (stage, log)
            assert "the event loop has made no progress" in log, (stage, log)
            assert re.search(STACK, log)
            assert re.search(r'faulty_server.py", line \d+ in broken', log)  # the stack tells where


HANGS_BESIDE = {
    "pool": (GUILTY["decode image"], "work in the pool has run for"),
    "graph": (
        fault(model="slow", rows=[[1.0, FOREVER]]),
        "a graph call of slow version 1 has run for",
    ),
}


@pytest.mark.parametrize("what", HANGS_BESIDE)
def test_what_hangs_beside_the_loop_turns_liveness_red_while_others_are_answered(
    request, models, what
):
    guilty, message = HANGS_BESIDE[what]
    folder = models if what == "pool" else request.getfixturevalue("bad_models")
    with (
        broken(folder, "hang", hang_seconds=1, inline_us=0) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        hanging = pool.submit(answered, server.url, guilty)
        assert message in eventually(lambda: red_liveness(server.url))
        assert answered(server.url, fault()) == 200
        assert server.exit() == 70
        assert message in server.log
        assert re.search(STACK, server.log)
        assert hanging.result() is None


def answered(url, request):
    """The status of the answer, or None when the connection died."""
    with httpx.Client(base_url=url, timeout=30) as client:
        try:
            return client.post(**request).status_code
        except httpx.HTTPError:
            return None


def red_liveness(url):
    answer = httpx.get(f"{url}/health/live")
    return answer.text if answer.status_code == 503 else None


def test_a_request_with_a_deadline_is_answered_at_it_while_the_graph_hangs(bad_models):
    with running(bad_models, inline_us=0, hang_seconds=60) as server:
        guilty = fault(model="slow", rows=[[1.0, FOREVER]])
        guilty["headers"] = {**JSON, "x-request-timeout-ms": "300"}
        assert answered(server.url, guilty) == 504
        assert answered(server.url, fault()) == 200


def test_a_worker_that_hangs_is_replaced_and_the_other_goes_on(bad_models):
    with running(bad_models, workers=2, hang_seconds=1, inline_us=0) as server:
        guilty = fault(model="slow", rows=[[1.0, FOREVER]])
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(answered, server.url, guilty)
            server.wait_for("a graph call of slow version 1 has run for")
            server.wait_for(r"has ended: .*; the next one starts")
            assert hanging.result() is None
        assert answered(server.url, fault()) == 200

        def restarts():
            text = httpx.get(f"{server.url}/metrics").text
            return metric(text, "priordial_worker_restarts_total", reason="hung")

        assert eventually(restarts) == 1
        assert server.terminate() == 0


def test_a_lost_graph_is_no_fault_of_its_rows_and_ends_the_process(models):
    with broken(models, "lose") as server:
        lost = httpx.post(
            server.url + GUILTY["run session"]["url"], content=body(tau=faulty.RUN), headers=JSON
        )
        after = httpx.post(server.url + "/models/linear/predict", content=body(), headers=JSON)
        assert [lost.status_code, after.status_code] == [503, 503]
        live = httpx.get(server.url + "/health/live")
        assert live.status_code == 503
        assert "linear version 1 cannot score any request" in live.json()["reason"]
        assert server.process.wait(60) == HUNG
