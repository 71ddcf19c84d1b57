"""Odd requests, folders and rows of the store that were tried once and held: none may do harm."""

import os
import signal
import socket
import sqlite3

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs, publish_model

BODY = {"instances": inputs(1).tolist()}
HEAD = b"Host: x\r\n"
CLOSE = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
REQUESTS = {
    "HEAD, and a HEAD with a body": (
        b"HEAD /metrics HTTP/1.1\r\n%b\r\nHEAD /models HTTP/1.1\r\n%bContent-Length: 5\r\n\r\nhello"
        % (HEAD, HEAD),
        [200, 200],
    ),
    "100-continue with chunks": (
        b"POST /predict HTTP/1.1\r\n%bExpect: 100-continue\r\n%b\r\n2\r\n{}\r\n0\r\n\r\n"
        % (HEAD, CHUNKED),
        [400],
    ),
    "a websocket": (b"GET /predict HTTP/1.1\r\n%b%b\r\n" % (HEAD, WEBSOCKET), [405]),
    **{
        path: (b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), HEAD), [404])
        for path in (
            "/%2e%2e/%2e%2e/etc/passwd",
            "/console/..%2f..%2f..%2fetc/passwd",
            "/console/%00.js",
            "/%c0%ae%c0%ae/",
            "/models/..%2f..%2f/report",
            "//etc/passwd",
            "/models/linear/samples/-1.png",
        )
    },
}
ALTERED = (
    "update priordial_prior_revisions set revision = -5 where revision = 2",
    "update priordial_prior_revisions set change = 9223372036854775807 where revision = 2",
    "update priordial_prior_revisions set body = 'null'",
    "update priordial_prior_revisions set body = x'00ff'",
    "update priordial_prior_revisions set updated_us = 'yesterday', deleted = 7",
    "update priordial_prior_revisions set name = '../../x' where revision = 1",
    "update priordial_workers set damaged = '{', models = '[]', pid = 'x'",
    "delete from priordial_meta",
    "drop table priordial_workers",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(models):
    with running(models) as found:
        yield found


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_odd_request_gets_its_answer_and_the_next_one_too(server, kind):
    sent, expected = REQUESTS[kind]
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent + CLOSE)
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    statuses = [int(part[:3]) for part in found.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [*expected, 200]


def test_odd_entries_of_the_models_folder_cost_no_other_model(tmp_path):
    publish_model(tmp_path, "good")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "itself").symlink_to(tmp_path)
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
    for name, text in (("deep", "[" * 100_000), ("marked", "\ufeff{}"), ("empty", "")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.json").write_text(text, encoding="utf-8")
    (tmp_path / "loop" / "1").mkdir(parents=True)
    (tmp_path / "loop" / "1" / "model.json").symlink_to("model.json")
    (tmp_path / "endless" / "1").mkdir(parents=True)
    (tmp_path / "endless" / "1" / "model.json").symlink_to("/dev/zero")
    with running(tmp_path, default_model="good") as server:
        assert httpx.post(f"{server.url}/predict", json=BODY, timeout=30).status_code == 200
        shown = httpx.get(f"{server.url}/models", timeout=30).json()
        (tmp_path / "good").rename(tmp_path.with_name("elsewhere"))
        (tmp_path / "good").symlink_to("good")  # as a folder that this user may not list
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("load of good failed: .*; version 1 keeps serving")
        assert httpx.post(f"{server.url}/predict", json=BODY, timeout=30).status_code == 200
    assert [each["name"] for each in shown["models"]] == ["good"]
    faults = {each["model"] for each in shown["faults"]}
    assert {"a", "b", "deep", "marked", "empty", "loop", "endless"} <= faults


@pytest.mark.parametrize("statement", ALTERED)
def test_a_store_that_was_altered_by_hand_costs_no_prediction(models, tmp_path, statement):
    file = tmp_path / "priors.db"
    with (
        running(models, store=f"sqlite:///{file}") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        for last in (5, 6):
            body = {"target": [1, 2, 3, 4, last]}
            client.put("/priors/default", json=body).raise_for_status()
        with sqlite3.connect(file, timeout=10) as store:
            store.execute(statement)
        store.close()
        paths = ("", "/default", "/default/revisions", "/default?revision=2", "/default/replicas")
        for path in paths:
            assert client.get(f"/priors{path}").status_code in {200, 404, 503}
        assert client.get("/models/linear/replicas").status_code in {200, 503}
        written = client.put("/priors/default", json={"target": [9, 1, 1, 1, 1]})
        assert written.status_code in {200, 201, 503}
        assert client.post("/predict", json=BODY).status_code == 200
        assert client.get("/health/ready").json()["ready"]
