"""All bodies together: what does not fit into --max-bodies-mib is refused, and fits again later."""

import gzip
import json
import socket

import httpx
import pytest

from service.api.edge.bodies import Room
from service.api.edge.errors import Problem
from tests.support.eventually import eventually
from tests.support.server import running
from tests.support.small_models import FEATURES, publish_model

MIB = 2**20
LEFT = MIB - 700_000 + 1000
"""A body of so many bytes fits until all of the body that waits has arrived."""
ROWS = json.dumps({"instances": [[1.0] * FEATURES] * 2}).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("room") / "models"
    publish_model(models, "linear")
    with running(models, max_body_mib=1, max_bodies_mib=1) as server:
        yield server


def padded(size):
    """Two rows in a JSON body of this many bytes."""
    return ROWS + b" " * (size - len(ROWS))


class Waiting:
    """A request whose body has arrived but for its last bytes."""

    def __init__(self, server, path="/predict", size=700_000, method="POST"):
        host, _, port = server.url.removeprefix("http://").partition(":")
        self.body = padded(size)
        self.connection = socket.create_connection((host, int(port)), timeout=30)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self.connection.sendall(f"{head}content-length: {size}\r\n\r\n".encode() + self.body[:-10])

    def finish(self):
        """Send the rest; the status of the answer."""
        with self.connection:
            self.connection.sendall(self.body[-10:])
            return int(self.connection.recv(65536).split()[1])

    def leave(self):
        self.connection.close()


def post(server, body, path="/predict", **headers):
    return httpx.post(server.url + path, content=body, headers={**JSON, **headers}, timeout=30)


def refused(server, body, **headers):
    """The first refusal: the other body is counted as its bytes arrive."""
    return eventually(
        lambda: (answer := post(server, body, **headers)).status_code == 429 and answer
    )


def test_a_body_that_does_not_fit_beside_others_is_refused_until_they_are_answered(server):
    other = Waiting(server)
    answer = refused(server, padded(LEFT))
    assert answer.headers["retry-after"] == "1"
    assert "--max-bodies-mib" in answer.json()["detail"]
    assert answer.json()["type"] == "/problems/overloaded"
    assert post(server, ROWS).status_code == 200  # a short body needs no room
    assert other.finish() == 200
    assert post(server, padded(500_000)).status_code == 200
    assert post(server, padded(MIB)).status_code == 200


def test_a_client_that_leaves_gives_its_room_back(server):
    other = Waiting(server)
    refused(server, padded(LEFT))
    other.leave()
    eventually(lambda: post(server, padded(MIB)).status_code == 200)


def test_a_body_of_unknown_length_is_refused_where_it_no_longer_fits(server):
    other = Waiting(server)
    refused(server, padded(LEFT))
    answer = post(server, iter([padded(400_000)[:200_000], b" " * 300_000]))
    assert answer.status_code == 429
    assert other.finish() == 200


def test_a_compressed_body_needs_the_room_of_what_is_in_it(server):
    other = Waiting(server)
    packed = gzip.compress(padded(500_000))
    assert len(packed) < 10_000
    refused(server, padded(LEFT))
    refused(server, packed, **{"content-encoding": "gzip"})
    assert other.finish() == 200
    assert post(server, packed, **{"content-encoding": "gzip"}).status_code == 200
    for _ in range(3):  # refused and malformed ones have given their room back
        cut = post(server, packed[:-20], **{"content-encoding": "gzip"})
        assert cut.status_code == 400
    assert post(server, padded(MIB)).status_code == 200


def test_bodies_of_other_routes_share_the_room(server):
    other = Waiting(server, "/priors/shop", method="PUT")
    refused(server, padded(LEFT))
    other.leave()
    eventually(lambda: post(server, padded(MIB)).status_code == 200)
    held = Waiting(server)
    refused(server, padded(LEFT))
    answer = httpx.put(
        f"{server.url}/priors/shop", content=padded(500_000), headers=JSON, timeout=30
    )
    assert answer.status_code == 429
    assert held.finish() == 200


def test_what_a_thread_adds_after_its_request_was_cancelled_takes_no_room():
    room = Room(100)
    held = room.held()
    held.add(60)
    held.release()
    held.add(60)
    with room.held() as whole:
        whole.add(100)


def test_a_room_counts_exactly_and_holds_at_least_one_largest_body():
    room = Room(100)
    with room.held() as one, room.held() as two:
        one.add(60)
        two.add(40)
        with pytest.raises(Problem, match="100 bytes are being received"):
            two.add(1)
        one.release()
        two.add(60)
    with room.held() as whole:
        whole.add(100)
    assert Room.of_worker(bodies_mib=0, body_mib=10**6, workers=4).most == 10**6 * MIB
    assert Room.of_worker(bodies_mib=128, body_mib=64, workers=4).most == 128 * MIB
