"""The metrics port serves scrapes and nothing more, to a bounded number of connections."""

import contextlib
import socket

import httpx
import pytest

from service.observe.port import MAX_CONNECTIONS, MetricsPort
from service.process.machine import PortTaken
from tests.support.eventually import eventually


@pytest.fixture
def port():
    made = MetricsPort(
        "127.0.0.1", 0,
        render=lambda accept: ([b"a 1\n", b"b 2\n"], f"text/{accept}"),
        allowed=lambda headers: 401 if (b"x-refuse", b"1") in headers else 200,
    )  # fmt: skip
    yield made
    made.close()


def scrape(port, **more):
    return httpx.get(f"http://127.0.0.1:{port.port}/metrics", timeout=10, **more)


def test_a_scrape_gets_the_blocks_and_others_get_nothing(port):
    answer = scrape(port, headers={"accept": "plain"})
    assert (answer.status_code, answer.text) == (200, "a 1\nb 2\n")
    assert answer.headers["content-type"] == "text/plain"
    refused = scrape(port, headers={"x-refuse": "1"})
    assert (refused.status_code, refused.text) == (401, "")
    assert httpx.get(f"http://127.0.0.1:{port.port}/predict").status_code == 404


def test_connections_beyond_the_limit_are_closed_and_later_ones_are_served(port):
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port.port)
        idle = [
            stack.enter_context(socket.create_connection(address)) for _ in range(MAX_CONNECTIONS)
        ]
        for each in idle:  # each has its thread when it has its answer
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert each.recv(100)
        beyond = stack.enter_context(socket.create_connection(address))
        assert beyond.recv(1) == b""
    eventually(lambda: _served(port))


def _served(port):
    with contextlib.suppress(httpx.HTTPError):
        return scrape(port).status_code == 200
    return False


def test_a_port_that_is_taken_is_refused_with_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTaken, match="choose another --metrics-port"):
            MetricsPort("127.0.0.1", taken.getsockname()[1], render=None, allowed=None)
