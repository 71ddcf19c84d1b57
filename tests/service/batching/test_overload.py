"""Overload: refusals come at once, clients that left cost nothing, admitted ones are answered."""

import contextlib
import io
import json
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest

from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.front import SERVICE
from tests.support.eventually import eventually
from tests.support.faulty_models import publish_slow
from tests.support.server import metric, running
from tests.support.small_models import inputs, publish_model

LONG = 20_000.0
"""Rounds of the slow model's loop: seconds, in which a test can do its part."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish_model(folder)
    publish_slow(folder)
    return folder


def slow(url, rounds=1.0, **headers):
    body = {"instances": [[1.0, rounds]]}
    return httpx.post(f"{url}/models/slow/predict", json=body, headers=headers, timeout=60)


def found(url, name, **labels):
    return metric(httpx.get(f"{url}/metrics", timeout=30).text, name, **labels)


def until_queued(url, rows):
    eventually(lambda: found(url, "priordial_queued_rows", model="slow") == rows)


@contextlib.contextmanager
def busy(models, *, queued=1, rounds=LONG, **settings):
    """(server, answers to come): two long requests, one running, and short ones behind them.

    A batch has one row, since requests that arrive together would else run together. The service's
    own deadline is far away, so that a busy machine fails none of them.
    """
    settings.setdefault("timeout_ms", 600_000)
    with (
        running(models, inline_us=0, max_batch_rows=1, **settings) as server,
        ThreadPoolExecutor(queued + 1) as pool,
    ):
        admitted = [pool.submit(slow, server.url, rounds) for _ in range(2)]
        until_queued(server.url, 1)
        for number in range(1, queued):
            admitted.append(pool.submit(slow, server.url))
            until_queued(server.url, number + 1)
        yield server, admitted


def statuses(answers):
    return sorted(each.result().status_code for each in answers)


def test_a_full_queue_refuses_at_once_and_another_model_does_not_notice(models):
    with busy(models, queued=4, rounds=3 * LONG, max_queued_rows=4) as (server, admitted):
        for _ in range(5):
            refused = slow(server.url)
            assert refused.status_code == 429
            assert refused.json()["type"] == "/problems/overloaded"
            assert int(refused.headers["retry-after"]) >= 1
        body = {"instances": inputs(2).tolist()}
        other = httpx.post(f"{server.url}/models/linear/predict", json=body)
        assert other.status_code == 200
        assert not all(each.done() for each in admitted)
        assert statuses(admitted) == [200] * 5
        assert slow(server.url).status_code == 200
        assert found(server.url, "priordial_rejected_total", model="slow", reason="overloaded") == 5


def test_while_the_queue_is_full_a_long_body_is_refused_before_it_is_read(models):
    broken = b'{"instances": [[1.0, ' + b" " * 5000
    asked = (("/models/slow/predict", 400), ("/v2/models/slow/infer", 400))
    with busy(models, queued=4, max_queued_rows=4) as (server, admitted):
        for path, _ in asked:
            refused = httpx.post(server.url + path, content=broken)
            assert refused.status_code == 429
            assert "retry-after" in refused.headers
        refused = found(server.url, "priordial_rejected_total", model="slow", reason="overloaded")
        assert refused == len(asked)
        assert not all(each.done() for each in admitted)
        assert statuses(admitted) == [200] * 5
        for path, status in asked:
            assert httpx.post(server.url + path, content=broken).status_code == status


def test_work_of_clients_that_left_is_not_done_and_is_counted(models):
    body = json.dumps({"instances": [[1.0, LONG]]}).encode()
    request = (
        f"POST /models/slow/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with busy(models) as (server, admitted):
        host, port = server.url.removeprefix("http://").split(":")
        leaving = [socket.create_connection((host, int(port))) for _ in range(6)]
        for each in leaving:
            each.sendall(request.encode() + body)
        until_queued(server.url, 1 + len(leaving))
        for each in leaving:
            each.close()
        assert statuses(admitted) == [200, 200]
        slow_ones = {"model": "slow"}
        eventually(
            lambda: (
                found(server.url, "priordial_rejected_total", reason="abandoned", **slow_ones) == 6
            )
        )
        assert found(server.url, "priordial_batch_rows_sum", **slow_ones) == 2
        route = {"route": "/models/{model}/predict"}
        assert found(server.url, "priordial_requests_total", status="499", **route) == 6
        assert found(server.url, "priordial_requests_total", status="504", **route) == 0


def whole(path, body, *headers):
    """The bytes of a POST."""
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def leavers():
    """The bytes that a client sends before it leaves, and the requests in them, by name."""
    rows = json.dumps({"instances": [[1.0, LONG]]}).encode()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, LONG]}
    settings = {"instances": [[1.0, LONG]], "settings": [{"tau": 1}]}
    predict = "/models/slow/predict"
    return {
        "long": (whole(predict, rows + b" " * 100_000), 1),
        "very long": (whole(predict, rows + b" " * 600_000), 1),
        "pipelined": (whole(predict, rows) * 3, 3),
        "deflated": (whole(predict, zlib.compress(rows), "content-encoding: deflate"), 1),
        "tensors": (whole("/v2/models/slow/infer", json.dumps({"inputs": [tensor]}).encode()), 1),
        "settings": (whole("/models/slow/adjust", json.dumps(settings).encode()), 1),
        "array": (whole(predict, npy(LONG), "content-type: application/x-npy"), 1),
    }


def npy(rounds):
    file = io.BytesIO()
    np.save(file, np.array([[1.0, rounds]], np.float32))
    return file.getvalue()


def messages():
    """A short and a long ModelInferRequest of one row."""
    made = pb.ModelInferRequest(model_name="slow")
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(np.array([1.0, LONG], np.float32).tobytes())
    short = made.SerializeToString()
    made.id = "a" * 100_000
    return short, made.SerializeToString()


def test_a_client_that_leaves_is_noticed_whatever_it_has_sent(models):
    sent, (short, long) = leavers(), messages()
    calls = 4
    queued = 1 + len(sent) + calls  # of pipelined requests only the first is begun
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        busy(models, grpc_port=port) as (server, admitted),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        host, web = server.url.removeprefix("http://").split(":")
        leaving = []
        for request, _ in sent.values():
            leaving.append(socket.create_connection((host, int(web)), timeout=60))
            leaving[-1].sendall(request)
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        calling = [call.future(short), call.future(long), stream(iter([short, short]))]
        until_queued(server.url, queued)
        for each in leaving:
            each.close()
        for each in calling:
            each.cancel()
        assert statuses(admitted) == [200, 200]
        slow_ones = {"model": "slow"}
        eventually(
            lambda: (
                found(server.url, "priordial_rejected_total", reason="abandoned", **slow_ones)
                == len(sent) + calls
            )
        )
        assert found(server.url, "priordial_batch_rows_sum", **slow_ones) == 2


def test_a_request_that_sets_no_deadline_has_the_services_own(models):
    with busy(models, timeout_ms=300) as (server, admitted):
        assert statuses(admitted) == [200, 504]  # the first was begun in time
        (late,) = [each.result() for each in admitted if each.result().status_code == 504]
        assert late.json()["type"] == "/problems/deadline"
        assert found(server.url, "priordial_rejected_total", model="slow", reason="deadline") == 1


def test_what_was_admitted_before_a_sigterm_is_answered(models):
    with busy(models, queued=3) as (server, admitted):
        server.process.terminate()
        server.wait_for("draining for 0 s")
        assert not all(each.done() for each in admitted)
        assert statuses(admitted) == [200] * 4
        assert server.exit() == 0
        with pytest.raises(httpx.ConnectError):
            slow(server.url)


def test_requests_that_gather_while_a_graph_call_runs_share_the_next_one(models):
    body = json.dumps({"instances": [[1.0, LONG]]}).encode()
    head = f"POST /models/slow/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with (
        running(models, inline_us=0, max_batch_rows=64) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        slow_ones = {"model": "slow"}
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as first:
            first.sendall(head.encode() + body)
            assert found(server.url, "priordial_queued_rows", **slow_ones) == 0  # it has begun
            gathering = [pool.submit(slow, server.url, 2.0) for _ in range(8)]
            until_queued(server.url, 8)
            assert first.recv(12) == b"HTTP/1.1 200"
            assert statuses(gathering) == [200] * 8
        assert found(server.url, "priordial_batch_rows_count", **slow_ones) == 2
