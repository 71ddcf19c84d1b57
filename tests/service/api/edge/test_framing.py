"""What goes over a connection is read as RFC 9110 and RFC 9112 say, within bounds, and each request
is answered once.
"""

import json
import socket
import struct
from unittest.mock import Mock

import httpx
import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.api.edge.framing import FramedProtocol
from tests.support.eventually import eventually
from tests.support.faulty_models import publish_slow
from tests.support.server import metric, running
from tests.support.small_models import inputs, publish_model

BODY = json.dumps({"instances": inputs(1).tolist()}).encode()
LINE = b"POST /predict HTTP/1.1\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
COMMON = b"host: x\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
WHOLE = LINE + COMMON + LENGTH + b"\r\n" + BODY
CHUNKED = b"transfer-encoding: chunked\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models, max_url_kib=8, max_header_kib=16) as found:
        yield found


def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answered(server, *parts, leave_open=False):
    """Send the parts; (status, headers, body) of each answer until the service closes, which a
    half-close brings about.
    """
    with connected(server) as connection:
        for part in parts:
            connection.sendall(part)
        if not leave_open:
            connection.shutdown(socket.SHUT_WR)
        file, found = connection.makefile("rb"), []
        while line := file.readline():
            status, headers = int(line.split()[1]), {}
            while (line := file.readline().strip()) != b"":
                name, _, value = line.decode().partition(": ")
                headers[name] = value
            body = file.read(int(headers.get("content-length", 0)))
            if status >= 200:  # a slow machine may send interim answers first
                found.append((status, headers, body))
        return found


def statuses(server, *parts):
    return [status for status, _, _ in answered(server, *parts)]


def chunked(body, trailers=b""):
    half = len(body) // 2
    parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:half], body[half:]))
    return parts + b"0\r\n" + trailers + b"\r\n"


def test_a_known_block_that_is_cut_one_byte_short_is_not_a_request(server):
    cut = LINE + (COMMON + LENGTH)[:-2]
    smuggled = b"content-length: 0\r\n\r\n" + LIVE
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(WHOLE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(cut)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert statuses(server, WHOLE, cut, smuggled) == [200, 400]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_a_request_that_asks_for_another_protocol_is_answered_over_http_1_1_with_its_body(
    server, protocol
):
    wish = (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %b\r\nhttp2-settings: AAMAAABk\r\n"
        % protocol
    )
    head, expected = LINE + COMMON + wish + LENGTH + b"\r\n", answered(server, WHOLE)[0][2]
    for parts in (
        [head + BODY + WHOLE],
        [head, BODY + WHOLE],
        [head[:-30], head[-30:], BODY, WHOLE],
    ):
        found = answered(server, *parts)
        assert [status for status, _, _ in found] == [200, 200]
        assert found[0][2] == expected
    hidden = LIVE + b" " * (len(BODY) - len(LIVE))
    assert statuses(server, head, hidden) == [400]  # it is a body, and not a request


def test_trailers_are_dropped(server):
    trailers = (
        b"x-request-timeout-ms: never\r\nx-request-id: trailing\r\ncontent-type: text/plain\r\n"
    )
    head = LINE + COMMON + CHUNKED + b"\r\n"
    for parts in ([head + chunked(BODY, trailers)], [head, chunked(BODY, trailers)]):
        ((status, headers, _),) = answered(server, *parts)
        assert status == 200
        assert headers["x-request-id"] != "trailing"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LINE + COMMON + b"transfer-encoding: gzip, chunked\r\n", "expected chunked alone"),
        (
            LINE + COMMON + b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n",
            "Transfer-Encoding",
        ),
        (LINE + COMMON + b"transfer-encoding: identity\r\n", "Transfer-Encoding"),
        (LINE + COMMON + CHUNKED + LENGTH, "Content-Length"),
        (LINE + COMMON + LENGTH + LENGTH, "Content-Length"),
        (LINE + COMMON + b"content-length: 2, 2\r\n", "Content-Length"),
        (LINE + COMMON + b"content-length: +2\r\n", "Content-Length"),
        (LINE + COMMON + b"content-length: 99999999999999999999\r\n", "Content-Length"),
        (LINE + COMMON + b"x-a: b\r\n folded\r\n" + LENGTH, "header value"),
        (LINE + COMMON + b"x-a: b\rx-c: d\r\n" + LENGTH, "header value"),
        (LINE + COMMON + b"x-a: b\nx-c: d\r\n" + LENGTH, "header value"),
        (LINE + COMMON + b"x-a : b\r\n" + LENGTH, "header token"),
        (LINE + COMMON + b"x-a: \0\r\n" + LENGTH, "header value"),
        (LINE + b"content-type: application/json\r\n" + LENGTH, "0 Host headers"),
        (LINE + COMMON + b"host: y\r\n" + LENGTH, "2 Host headers"),
        (LINE + b"host: a b\r\n" + LENGTH, "Host is"),
        (b"POST /predict HTTP/2.0\r\nhost: x\r\n" + LENGTH, "HTTP/2.0"),
        (
            b"POST /predict HTTP/1.0\r\nhost: x\r\n" + CHUNKED,
            "HTTP/1.0 request has Transfer-Encoding",
        ),
        (b"POST /predict#a HTTP/1.1\r\nhost: x\r\n" + LENGTH, "fragment"),
        (b"POST predict HTTP/1.1\r\nhost: x\r\n" + LENGTH, "HTTP/1.1 request"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n" + LENGTH, "CONNECT"),
        (b"GET /\r\n", "HTTP/0.9"),
    ],
)
@pytest.mark.parametrize("more", [b"", b"upgrade: h2c\r\nconnection: Upgrade\r\n"])
@pytest.mark.parametrize("before", [b"", LIVE], ids=["alone", "pipelined"])
def test_a_head_that_is_wrong_is_refused_and_nothing_after_it_is_read(
    server, head, message, more, before
):
    head += more
    for parts in ([before + head + b"\r\n" + BODY + WHOLE], [before + head, b"\r\n" + BODY, WHOLE]):
        *earlier, (status, headers, body) = answered(server, *parts)
        assert [each[0] for each in earlier] == ([200] if before else [])
        assert (status, headers["connection"]) == (400, "close")
        assert headers["content-type"] == "application/problem+json"
        assert message in json.loads(body)["detail"]
    assert "Fatal error" not in server.log


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(190),
            "begin TLS, and this port has",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "begin HTTP/2; expected HTTP/1.1"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 5 6\r\n", "begin with the PROXY protocol; let the proxy"),
        (b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c", "begin with the PROXY protocol; let the proxy"),
    ],
)
def test_another_protocol_is_named(server, begin, message):
    ((status, _, body),) = answered(server, begin)
    assert status == 400
    assert message in json.loads(body)["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}x\r\n0\r\n\r\n",
    ],
)
def test_a_chunk_that_is_wrong_is_refused_and_nothing_after_it_is_read(server, body):
    head = LINE + COMMON + CHUNKED + b"\r\n"
    assert statuses(server, head + body + WHOLE) == [400]
    assert statuses(server, head, body, WHOLE) == [400]


def test_a_refusal_follows_the_answers_that_are_due(server):
    assert statuses(server, WHOLE + LIVE + b"not HTTP\r\n\r\n" + WHOLE) == [200, 200, 400]


def test_what_follows_the_last_request_of_a_connection_is_not_answered(server):
    closing = LINE + COMMON + b"connection: close\r\n" + LENGTH + b"\r\n" + BODY
    old = WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")
    before = metric(
        httpx.get(f"{server.url}/metrics").text, "priordial_requests_total", route="/predict"
    )
    for last in (closing, old):
        assert statuses(server, last + WHOLE) == [200]
        assert statuses(server, last, WHOLE) == [200]
    after = metric(
        httpx.get(f"{server.url}/metrics").text, "priordial_requests_total", route="/predict"
    )
    assert after - before == 4


OLD_LINES = (LINE.replace(b"1.1", b"1.0"), b"GET /health/live HTTP/1.0\r\n")
BODIES = (COMMON + LENGTH + b"\r\n" + BODY, b"\r\n")


@pytest.mark.parametrize("option", [b"Keep-Alive", b"foo, keep-alive"])
def test_an_http_1_0_connection_stays_open_if_its_client_asks_for_that(server, option):
    asks = b"connection: %b\r\n" % option
    scores, lives = (line + asks + rest for line, rest in zip(OLD_LINES, BODIES, strict=True))
    missing = lives.replace(b"/health/live", b"/none")
    found = answered(server, scores + lives, scores, missing + scores)
    assert [status for status, _, _ in found] == [200, 200, 200, 404, 200]
    for _, headers, body in found:
        assert headers["connection"] == "keep-alive"
        assert body
        assert "transfer-encoding" not in headers


@pytest.mark.parametrize(
    "option", [b"", b"connection: close, keep-alive\r\n", b"connection: x\r\n"]
)
def test_an_http_1_0_connection_ends_with_its_answer_otherwise(server, option):
    for line, rest in zip(OLD_LINES, BODIES, strict=True):
        ((status, headers, _),) = answered(server, line + option + rest + WHOLE, leave_open=True)
        assert (status, headers["connection"]) == (200, "close")


def test_an_http_1_0_client_gets_no_interim_answer_and_no_chunks(server):
    kept = b"connection: keep-alive\r\n"
    expects = OLD_LINES[0] + kept + b"expect: 100-continue\r\n" + BODIES[0]
    scrape = b"GET /metrics HTTP/1.0\r\naccept-encoding: gzip\r\n" + kept + b"\r\n"
    found = answered(server, expects, scrape, OLD_LINES[0] + BODIES[0])
    assert [status for status, _, _ in found] == [200, 200, 200]
    assert "transfer-encoding" not in found[1][1]
    assert b"priordial_requests_total" in found[1][2]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"GET /", *[b"a" * 4000] * 4], 414),
        ([b"POST /predict?prior=" + b"a" * 9000 + b" HTTP/1.1\r\n"], 414),
        ([b"GET / HTTP/1.1\r\nhost: x\r\n", *[b"x-a: " + b"a" * 4000 + b"\r\n"] * 6], 431),
        ([b"GET / HTTP/1.1\r\nhost: x\r\nx-a: ", *[b"a" * 4000] * 20], 431),
        ([LINE + COMMON + CHUNKED + b"\r\n2;", *[b"a" * 4000] * 20], 400),
        ([LINE + COMMON + CHUNKED + b"\r\n0\r\nx-a: ", *[b"a" * 4000] * 20], 400),
        ([b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 80_000], 431),
        ([LINE + COMMON + CHUNKED + b"\r\n0\r\nx-a: " + b"a" * 80_000], 400),
    ],
)
def test_a_url_and_headers_are_refused_while_they_arrive(server, parts, status):
    ((found, headers, _),) = answered(server, *parts, leave_open=True)
    assert (found, headers["connection"]) == (status, "close")


CLOSING = b"connection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), b"200"),
        (LINE.replace(b"1.1", b"1.0") + COMMON + b"\r\n", b"400"),
        (LINE + COMMON + CLOSING + LENGTH + b"\r\n" + BODY, b"200"),
        (LIVE.replace(b"\r\n\r\n", b"\r\n" + CLOSING + b"\r\n"), b"200"),
    ],
    ids=["HTTP/1.0", "HTTP/1.0 without a body", "scoring", "ASGI"],
)
def test_a_client_that_sends_on_can_read_the_last_answer_of_its_connection(
    server, request_, status
):
    with connected(server) as connection:
        connection.sendall(request_)
        connection.recv(1, socket.MSG_PEEK)
        for _ in range(20):  # a reset would fail the second of them
            connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            answer = file.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in head
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    assert len(body) == int(length.removeprefix(b"content-length: "))


def test_a_half_closed_connection_is_answered(server):
    for request in (
        WHOLE,
        LIVE,
        WHOLE + WHOLE + LIVE,
        LINE + COMMON + CHUNKED + b"\r\n" + chunked(BODY),
    ):
        assert set(statuses(server, request)) == {200}
    assert statuses(server, WHOLE + WHOLE[:-5]) == [200]


def test_an_absolute_request_target_is_its_path(server):
    assert statuses(server, WHOLE.replace(b" /predict", b" http://y:80/predict")) == [200]
    assert statuses(server, b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n") == [404]


def test_head_is_answered_wherever_get_is_and_has_no_body(server):
    with httpx.Client(base_url=server.url) as client:
        for path in (
            "/health/live",
            "/health/ready",
            "/models",
            "/metrics",
            "/",
            "/openapi.json",
            "/v2",
        ):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (get.status_code, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
        assert client.head("/predict").status_code == 405
        assert "HEAD" in client.request("PUT", "/models").headers["allow"]


def test_no_redirect_is_made_from_the_host_header(server):
    with httpx.Client(base_url=server.url) as client:
        for path in ("/metrics/", "/models/", "/priors/", "/health/live/"):
            answer = client.get(path, headers={"host": "evil.example"})
            assert answer.status_code == 404
            assert "location" not in answer.headers


def test_a_client_that_leaves_with_pipelined_requests_open_leaves_no_traceback(server):
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall((LIVE + WHOLE) * 5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    assert "Traceback" not in server.log


def test_refused_requests_are_counted_and_logged(server):
    def refused():
        return metric(
            httpx.get(f"{server.url}/metrics").text,
            "priordial_requests_total",
            route="other",
            status="400",
        )

    before = refused()
    assert statuses(server, b"rubbish\r\n\r\n") == [400]
    assert refused() == before + 1
    assert eventually(lambda: '"problem":"malformed"' in server.log)


def test_a_wrong_chunk_behind_pipelined_requests_takes_no_answer_from_them(server):
    wrong = LINE + COMMON + CHUNKED + b"\r\n2\r\n{}\r\nzz\r\n"
    for parts in (
        [LIVE + LIVE + wrong],
        [LIVE, LIVE + wrong],
        [LIVE + LIVE + wrong[:-4], wrong[-4:]],
    ):
        assert statuses(server, *parts) == [200, 200, 400]
    no_host = LINE + b"content-type: application/json\r\n\r\n"
    assert statuses(server, LIVE + no_host) == [200, 400]
    assert statuses(server, LIVE + LIVE + WHOLE[:-5]) == [200, 200]


def test_a_half_closed_client_that_waits_long_is_asked_whether_it_reads_and_answered(tmp_path):
    publish_slow(tmp_path)
    body = json.dumps({"instances": [[1.0, 20_000.0]]}).encode()
    head = b"POST /predict HTTP/1.%d\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with running(tmp_path, inline_us=0) as server:
        for version, asked in ((1, True), (0, False)):  # HTTP/1.0 has no interim answers
            with connected(server) as connection:
                connection.sendall(head % (version, len(body)) + body)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 102 Processing\r\n\r\n") == asked
            assert b"HTTP/1.1 200 OK\r\n" in answer
            assert answer.endswith(b"}]}")


@pytest.mark.parametrize("head", [LIVE, LINE + COMMON + b"content-length: 2\r\n\r\n{}", WHOLE])
def test_thousands_of_requests_in_one_write_are_each_answered_in_order(server, head):
    last = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    found = statuses(server, head * 2000 + last)
    assert found == [*statuses(server, head) * 2000, 404]


def test_a_turn_of_the_loop_reads_a_bounded_part_of_what_came():
    class Recorded(FramedProtocol):
        begun = 0

        def begin_message(self):
            self.begun += 1

        def end_message(self):
            pass

    loop = Mock()
    app = Mock(max_url_bytes=100, max_header_bytes=1000)
    config = Config(app, lifespan="off", log_config=None, http=Recorded, ws="none")
    config.load()
    protocol = Recorded(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    protocol.app = app
    protocol.connection_made(Mock(is_closing=lambda: False))
    protocol.data_received(LIVE * 5000)
    turns = 1
    assert protocol.begun < 200
    while loop.call_soon.called:
        (read_on,), _ = loop.call_soon.call_args
        loop.reset_mock()
        before = protocol.begun
        read_on()
        assert protocol.begun - before < 200
        turns += 1
    assert protocol.begun == 5000
    assert turns > 25
