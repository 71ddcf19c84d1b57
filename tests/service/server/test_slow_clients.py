"""Clients that stop sending are disconnected and delay nobody; a draining service tells its clients
to reconnect elsewhere.
"""

import contextlib
import json
import re
import socket

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs, linear_model, publish_model

BODY = json.dumps({"instances": inputs(1).tolist()}).encode()
PATHS = {
    "scoring": "POST /models/linear/predict",
    "protocol": "POST /v2/models/linear/infer",
    "cold": "PUT /models/linear/priors/shop",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish_model(folder)
    return folder


@pytest.fixture(scope="module")
def url(models):
    with running(models, read_seconds=0.6) as server:
        yield server.url


def head(request, *more, length=None):
    length = len(BODY) if length is None else length
    lines = [f"{request} HTTP/1.1", "host: x", "content-type: application/json", *more]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


@contextlib.contextmanager
def connected(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as found:
        yield found


def until_closed(connection):
    """Everything that comes until the service closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


MANY = 1000
ROWS = 1000
"""So many rows of so many classes have an answer of more than 18 MiB."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model with large answers, whose request is small."""
    folder = tmp_path_factory.mktemp("large")
    names = {"class_names": [f"c{at}" for at in range(MANY)], "class_counts": [1] * MANY}
    publish_model(folder, "linear", model=linear_model(classes=MANY), **names)
    return folder


def ask_for_much(connection):
    """Ask for a large answer, which nobody reads so far."""
    body = json.dumps({"instances": inputs(ROWS).tolist()}).encode()
    path = "POST /models/linear/predict?top_k=400"
    connection.sendall(head(path, length=len(body)) + body)


def is_cut(connection):
    """Whether the service ends the connection before all of its answer has come."""
    found, wanted = 0, None
    try:
        while part := connection.recv(2**20):
            if wanted is None:
                before, _, rest = part.partition(b"\r\n\r\n")
                wanted = int(re.search(rb"content-length: (\d+)", before)[1])
                part = rest
            found += len(part)
            if found == wanted:
                return False
    except ConnectionResetError:
        return True
    return True


def test_a_client_that_does_not_read_its_answer_is_disconnected(large):
    with running(large, read_seconds=1) as server, connected(server.url) as slow:
        ask_for_much(slow)
        server.wait_for("of its answer unread: its client took under")
        assert is_cut(slow)


@pytest.mark.parametrize("cold", [False, True])
def test_a_client_that_reads_gets_all_of_a_large_answer(large, cold):
    with running(large, read_seconds=30) as server, connected(server.url) as connection:
        if cold:  # a request that is answered through ASGI
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        else:
            ask_for_much(connection)
        assert not is_cut(connection)


def test_answers_that_nobody_reads_hold_a_bounded_amount_of_memory(large):
    settings = {"read_seconds": 60, "max_body_mib": 1, "max_bodies_mib": 64}
    with running(large, **settings) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(connected(server.url))
            ask_for_much(connection)
            assert connection.recv(1) == b"H"  # the answer is there, and more than fits is closed
        server.wait_for(r"(?s)(unread: its client read slowest.*67108864.*){2}")
        assert httpx.post(f"{server.url}/models/linear/predict", content=BODY).status_code == 200


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_body_that_does_not_come_is_408_and_the_connection_is_closed(url, path):
    with connected(url) as slow:
        slow.sendall(head(path) + BODY[:20])
        answer = until_closed(slow)
    status, _, body = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in status.lower()
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("/problems/too-slow", 408)
    assert "the body did not arrive within 0.6 s" in problem["detail"]


def test_a_body_that_trickles_has_no_more_time_than_one_that_stops(url):
    with connected(url) as slow:
        slow.settimeout(0.05)
        slow.sendall(head(PATHS["scoring"], length=10_000))
        answer = b""
        for _ in range(10_000):
            try:
                slow.sendall(b" ")
                answer = slow.recv(65536)
            except TimeoutError:
                continue
            break
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"POST /models/lin", head(PATHS["scoring"])[:-30]])
def test_headers_that_do_not_come_close_the_connection(url, sent):
    with connected(url) as slow:
        slow.sendall(sent)
        assert until_closed(slow) == b""


def test_the_second_request_of_a_connection_has_no_more_time_than_the_first(url):
    with connected(url) as slow:
        slow.sendall(head(PATHS["scoring"]) + BODY + head(PATHS["scoring"])[:-30])
        answer = until_closed(slow)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_slow_clients_hold_up_nobody(url):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(url)) for _ in range(200)]
        for number, each in enumerate(slow):
            each.sendall(
                head(PATHS["scoring"])[:-30] if number % 2 else head(PATHS["scoring"]) + BODY[:20]
            )
        for _ in range(20):
            assert httpx.post(f"{url}/models/linear/predict", content=BODY).status_code == 200
        for each in slow:
            until_closed(each)


def test_a_slow_request_is_counted_as_408(url):
    text = httpx.get(f"{url}/metrics").text
    found = re.search(
        r'priordial_requests_total\{route="/models/\{model\}/predict",status="408"\} (\S+)', text
    )
    assert found
    assert float(found[1]) >= 1


def test_answers_of_a_service_that_drains_close_their_connections(models):
    with running(models, drain_seconds=600) as server, contextlib.ExitStack() as stack:
        kept = {
            name: stack.enter_context(connected(server.url)) for name in ["whole", "split", "cold"]
        }
        for each in kept.values():
            each.sendall(head(PATHS["scoring"]) + BODY)
            assert b"connection: close" not in each.recv(65536).lower()
        server.process.terminate()
        server.wait_for("draining for 600 s")
        kept["whole"].sendall(head(PATHS["scoring"]) + BODY)
        kept["split"].sendall(head(PATHS["scoring"], "expect: 100-continue"))
        kept["split"].sendall(BODY)
        kept["cold"].sendall(b"GET /models HTTP/1.1\r\nhost: x\r\n\r\n")
        for each in kept.values():
            answer = until_closed(each)
            assert b"HTTP/1.1 200 " in answer
            assert b"connection: close" in answer.lower()
        assert server.terminate() == 0
