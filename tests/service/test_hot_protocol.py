"""The short way of a hot request, and everything unusual that must not take it, over raw sockets."""

import json
import socket

import pytest

from tests.service.server import running
from tests.service.small_models import inputs, publish_model


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models) as server:
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
    with sent(address, request(version="HTTP/1.0")) as connection:
        assert answers(connection, 1)[0][0].endswith("200 OK")
        assert connection.recv(1) == b""


def test_expect_continue_and_chunked_bodies_go_uvicorns_way(address):
    with sent(address, request(BODY, "expect: 100-continue")) as connection:
        file = connection.makefile("rb")
        assert file.readline() == b"HTTP/1.1 100 Continue\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (BODY[:5], BODY[5:])) + b"0\r\n\r\n"
    with sent(address, chunked + parts) as connection:
        assert answers(connection, 1)[0][0].endswith("200 OK")


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
