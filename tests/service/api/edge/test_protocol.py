"""The fast path of scoring requests, and the unusual requests that must not take it, over raw
sockets.
"""

import asyncio
import contextlib
import gzip
import json
import socket
from unittest.mock import Mock

import pytest

from service.api.edge.bodies import MIN_COMPRESSED_BYTES
from service.api.edge.known_headers import Head
from service.api.edge.protocol import ScoringProtocol
from tests.support.server import running
from tests.support.small_models import inputs, publish_model


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models, keep_alive_seconds=1) as server:
        host, port = server.url.removeprefix("http://").split(":")
        yield host, int(port)


ROWS = inputs(32).tolist()
BODY = json.dumps({"instances": ROWS[:1]}).encode()


def request(body=BODY, *more, version="HTTP/1.1", path="/predict"):
    head = [f"POST {path} {version}", "host: x", "content-type: application/json", *more]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


def answers(connection, count):
    """(status line, headers, body) of each answer."""
    file, found = connection.makefile("rb"), []
    for _ in range(count):
        status, headers = file.readline().decode().strip(), {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        found.append((status, headers, json.loads(file.read(int(headers["content-length"])))))
    return found


def sent(address, *parts):
    connection = socket.create_connection(address, timeout=30)
    for part in parts:
        connection.sendall(part)
    return connection


def test_requests_that_are_pipelined_are_answered_in_order(address):
    other = json.dumps({"instances": ROWS[1:3]}).encode()
    with sent(address, request() + request(other) + request()) as connection:
        first, second, third = answers(connection, 3)
    assert [len(each[2]["predictions"]) for each in (first, second, third)] == [1, 2, 1]
    assert first[2] == third[2]


def test_a_request_that_comes_in_pieces_is_answered_as_one_that_comes_whole(address):
    whole = request()
    with sent(address, whole) as connection:
        expected = answers(connection, 1)[0][2]
    for cut in (1, 20, whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
        with sent(address, whole[:cut]) as connection:
            connection.sendall(whole[cut:])
            assert answers(connection, 1)[0][2] == expected


def test_a_connection_is_kept_or_closed_as_its_client_asks(address):
    with sent(address, request(), request(BODY, "connection: close")) as connection:
        kept, closed = answers(connection, 2)
        assert "connection" not in kept[1]
        assert closed[1]["connection"] == "close"
        assert connection.recv(1) == b""
    kept_old = request(BODY, "connection: keep-alive", version="HTTP/1.0")
    with sent(address, kept_old, kept_old, request()) as connection:
        first, second, third = answers(connection, 3)
        assert first[1]["connection"] == second[1]["connection"] == "keep-alive"
        assert "connection" not in third[1]
        assert first[2] == second[2] == third[2]
    with sent(address, request(version="HTTP/1.0")) as connection:
        assert answers(connection, 1)[0][0].endswith("200 OK")
        assert connection.recv(1) == b""


def test_expect_continue_and_chunked_bodies_go_uvicorns_way(address):
    whole = request(BODY, "expect: 100-continue")
    head = whole[: -len(BODY)]
    with sent(address, head) as connection:
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answers(connection, 1)[0][0].endswith("200 OK")
    chunked = (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: "
        b"application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (BODY[:5], BODY[5:])) + b"0\r\n\r\n"
    with sent(address, chunked + parts) as connection:
        assert answers(connection, 1)[0][0].endswith("200 OK")


@pytest.mark.parametrize("path", ["/predict", "/adjust"])
def test_a_client_that_sends_its_body_at_once_is_not_asked_to_continue(address, path):
    """HAProxy 2.6 waits for ever when it reads this together with a long answer."""
    whole = request(BODY, "expect: 100-continue", path=path)
    for parts in ([whole], [whole[:-9], whole[-9:]]):
        with sent(address, *parts) as connection:
            assert not answers(connection, 1)[0][0].startswith("HTTP/1.1 100")


def test_an_answer_carries_the_callers_request_id_and_no_header_can_be_smuggled_in(address):
    with sent(address, request(BODY, "x-request-id: my-own")) as connection:
        assert answers(connection, 1)[0][1]["x-request-id"] == "my-own"
    with sent(address, request(BODY, "x-request-id: a\tb")) as connection:
        assert answers(connection, 1)[0][1]["x-request-id"] != "a\tb"


def test_rows_of_one_connection_and_of_many_are_the_same(address):
    bodies = [json.dumps({"instances": [row]}).encode() for row in ROWS]
    with sent(address, b"".join(map(request, bodies))) as connection:
        one_by_one = [each[2]["predictions"][0] for each in answers(connection, len(ROWS))]
    with sent(address, request(json.dumps({"instances": ROWS}).encode())) as connection:
        together = answers(connection, 1)[0][2]["predictions"]
    assert one_by_one == together


def test_a_client_that_sends_the_same_headers_again_has_the_answers_of_one_that_does_not(address):
    asks = [(row, f"/predict?tau={row / 8}&top_k={1 + row % 3}") for row in range(16)]
    bodies = [json.dumps({"instances": [[float(row)] * len(ROWS[0])]}).encode() for row, _ in asks]
    with sent(address) as connection:
        same = []
        for body, (_, path) in zip(bodies, asks, strict=True):
            connection.sendall(request(body, path=path))
            same += answers(connection, 1)
    for body, (row, path), found in zip(bodies, asks, same, strict=True):
        with sent(address, request(body, f"x-request-id: of-{row}", path=path)) as connection:
            (other,) = answers(connection, 1)
        assert found[0] == other[0] == "HTTP/1.1 200 OK"
        assert found[2] == other[2]


def test_headers_that_are_known_change_nothing_for_a_request_that_is_unusual(address):
    other = json.dumps({"instances": ROWS[1:2]}).encode()
    known = request()
    with sent(address) as connection:
        for _ in range(3):
            connection.sendall(known)
            (expected,) = answers(connection, 1)
        connection.sendall(known[:-7])
        connection.sendall(known[-7:])
        (in_pieces,) = answers(connection, 1)
        connection.sendall(known + request(other) + known)
        first, _, third = answers(connection, 3)
        connection.sendall(known.replace(b"POST", b"GET ", 1))
        (wrong_method,) = answers(connection, 1)
        connection.sendall(known.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        (old,) = answers(connection, 1)
        assert connection.recv(1) == b""
    assert in_pieces[2] == first[2] == third[2] == old[2] == expected[2]
    assert wrong_method[0].startswith("HTTP/1.1 405")


def test_a_connection_that_rests_is_closed_and_one_that_is_used_is_not(address):
    with sent(address, request()) as rests, sent(address, request()) as used:
        answers(rests, 1)
        rests.setblocking(False)
        closed = False
        while not closed:  # for as long as it takes, the other one asks
            answers(used, 1)
            used.sendall(request())
            with contextlib.suppress(BlockingIOError):
                closed = rests.recv(1) == b""
        assert answers(used, 1)[0][0] == "HTTP/1.1 200 OK"


def test_a_deadline_ends_the_inflating_of_a_body_of_empty_blocks(address):
    packed = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 10**6 + b"\1\0\0\xff\xff" + bytes(8)
    more = ("Content-Encoding: gzip", "X-Request-Timeout-Ms: 1")
    for headers, expected in ((more, "504"), (more[:1], "400")):
        with sent(address, request(packed, *headers)) as connection:
            ((status, _, _),) = answers(connection, 1)
        assert status.split()[1] == expected


@pytest.mark.parametrize("where", ["no thread", "the thread"])
def test_an_answer_that_cannot_be_compressed_is_sent_as_it_is(where):
    async def scenario():
        failed = asyncio.get_running_loop().create_future()
        if where == "the thread":
            failed.set_exception(MemoryError())
        no_thread = RuntimeError("can't start new thread")
        protocol = Mock(spec=ScoringProtocol)
        protocol._respond_packed = lambda *found: ScoringProtocol._respond_packed(protocol, *found)
        start = Mock(side_effect=no_thread) if where == "no thread" else Mock(return_value=failed)
        protocol.loop = Mock(run_in_executor=start)
        head = Head([(b"accept-encoding", b"gzip")], 0)
        answer = (200, b"application/json", bytes(MIN_COMPRESSED_BYTES), b"id", ())
        ScoringProtocol._respond_to(protocol, head, answer)
        await asyncio.sleep(0)  # the loop calls what waits for the thread
        assert start.called
        protocol._respond.assert_called_once_with(answer)

    asyncio.run(scenario())
