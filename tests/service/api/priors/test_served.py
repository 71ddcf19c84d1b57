"""Priors in a serving process: an answer reports the revision that it was computed with."""

import asyncio
import re
import sqlite3
import threading

import httpx
import numpy as np
import orjson
import pytest

from service.api.edge.keys import make_key
from service.contract.adjustment import softmax
from tests.support.server import running
from tests.support.small_models import CLASSES, COUNTS, inputs, publish_model, weights

IN_FLIGHT = 1000
SOURCE = np.array(COUNTS) / sum(COUNTS)


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


def target_of(revision):
    """A target of its own for each revision; 0 is the unstored default, uniform."""
    return (
        np.ones(CLASSES) if revision == 0 else 1.0 + (np.arange(CLASSES) * 37 + revision * 11) % 23
    )


def probabilities_of(row, target):
    """The formula at tau 1."""
    w, b = weights()
    return softmax(row.astype(np.float64) @ w + b - np.log(SOURCE) + np.log(target / target.sum()))


class Connection:
    """A kept connection, of which an HTTP client's pool would not open a thousand."""

    async def open(self, port):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def post(self, path, body):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(re.search(rb"content-length: (\d+)", answer)[1])
        return orjson.loads(await self.reader.readexactly(length))


def flip(url, finished):
    """Give the default prior another target every 5 ms."""
    revision = 0
    with httpx.Client(base_url=url, timeout=60) as client:
        while not finished.wait(0.005):
            answer = client.put("/priors", json={"target": target_of(revision + 1).tolist()})
            revision = answer.json()["revision"]


def test_a_thousand_predictions_in_flight_while_a_prior_flips_are_each_the_formula(models):
    rows = inputs(IN_FLIGHT)
    bodies = [orjson.dumps({"instances": [row.tolist()]}) for row in rows]

    async def scenario(url):
        port = int(url.rsplit(":", 1)[1])
        connections = [await Connection().open(port) for _ in rows]
        seen = []
        while (
            len({answer["prior"]["revision"] for _, answer in seen}) < 20
            and len(seen) < 50 * IN_FLIGHT
        ):
            sent = [
                c.post(f"/predict?top_k={CLASSES}", body)
                for c, body in zip(connections, bodies, strict=True)
            ]
            seen += zip(rows, await asyncio.gather(*sent), strict=True)
        for connection in connections:
            connection.writer.close()
        return seen

    with running(models) as server:
        finished = threading.Event()
        flipping = threading.Thread(target=flip, args=(server.url, finished))
        flipping.start()
        try:
            seen = asyncio.run(scenario(server.url))
        finally:
            finished.set()
            flipping.join()
    revisions = {answer["prior"]["revision"] for _, answer in seen}
    assert len(revisions) >= 20
    offsets = {revision: target_of(revision) for revision in revisions}
    for row, answer in seen:
        wanted = probabilities_of(row, offsets[answer["prior"]["revision"]])
        found = np.zeros(CLASSES)
        for entry in answer["predictions"][0]["top"]:
            found[entry["index"]] = entry["probability"]
        assert np.abs(found - wanted).max() < 1e-5


def test_a_request_gets_the_prior_that_it_names(models):
    body = {"instances": inputs(1).tolist()}
    with running(models) as server, httpx.Client(base_url=server.url) as client:

        def used(prior=None):
            answer = client.post(
                "/predict", json=body, params={} if prior is None else {"prior": prior}
            )
            return answer.json()["prior"] if answer.is_success else answer.status_code

        assert used() == {"name": "default", "revision": 0}
        for revision in (1, 2):
            client.put("/priors", json={"target": target_of(revision).tolist()})
        assert (
            used() == used("default") == used("default@>=2") == {"name": "default", "revision": 2}
        )
        assert used("default@1") == {"name": "default", "revision": 1}
        assert used("uniform") == {"name": "uniform", "revision": 0}
        later = client.post("/predict?prior=default@>=3", json=body)
        assert (later.status_code, later.headers["retry-after"]) == (503, "1")
        assert used("summer") == 404
        assert used("default@9") == 404
        assert used("default@x") == 422
        inline = client.post(
            "/predict", json={**body, "parameters": {"prior": {"target": "training"}}}
        )
        assert inline.json()["prior"] == {"name": None, "revision": 0}
        client.delete("/priors/default")
        assert used() == {"name": "default", "revision": 0}


def test_predictions_go_on_and_readiness_tells_when_the_store_is_lost(models, tmp_path):
    file = tmp_path / "store" / "priors.db"
    file.parent.mkdir()
    body = {"instances": inputs(1).tolist()}
    with (
        running(models, store=f"sqlite:///{file}") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        client.put("/priors", json={"target": target_of(1).tolist()})
        for leftover in file.parent.iterdir():
            leftover.rename(tmp_path / leftover.name)
        refused = client.put("/priors", json={"target": target_of(2).tolist()})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert refused.json()["type"] == "/problems/unavailable"
        for _ in range(200):
            if client.get("/health/ready").json()["status"] == "degraded":
                break
        else:
            pytest.fail("readiness does not tell")
        assert client.post("/predict", json=body).json()["prior"]["revision"] == 1
        assert client.get("/health/live").status_code == 200


def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(models, tmp_path):
    store = f"sqlite:///{tmp_path}/priors.db"
    with running(models, store=store) as server, httpx.Client(base_url=server.url) as client:
        for revision in range(1, 21):
            assert client.put("/priors", json={"target": target_of(revision).tolist()}).is_success
        server.process.kill()
        server.exit()
    with sqlite3.connect(tmp_path / "priors.db") as connection:
        found = connection.execute(
            "SELECT revision FROM priordial_prior_revisions ORDER BY change"
        ).fetchall()
    connection.close()
    assert [revision for (revision,) in found] == list(range(1, 21))


def test_keys_guard_predictions_and_writes_and_are_never_logged(models, tmp_path):
    made = {role: make_key(role, [role]) for role in ("predict", "operate")}
    keys = tmp_path / "keys"
    keys.write_text("\n".join(key.line() for _, key in made.values()))
    body = {"instances": inputs(1).tolist()}
    with running(models, keys=keys) as server, httpx.Client(base_url=server.url) as client:

        def headers(role):
            return {"Authorization": f"Bearer {made[role][0]}"}

        assert client.post("/predict", json=body).status_code == 401
        assert client.post("/predict", json=body, headers=headers("operate")).status_code == 403
        assert client.post("/predict", json=body, headers=headers("predict")).status_code == 200
        prior = {"target": target_of(1).tolist()}
        assert client.put("/priors", json=prior, headers=headers("predict")).status_code == 403
        assert (
            client.put("/priors", json=prior, headers=headers("operate")).json()["by"] == "operate"
        )
        assert (
            "access-control-allow-origin"
            not in client.get("/priors", headers={"Origin": "https://example.org"}).headers
        )
        server.terminate()
    for secret, _ in made.values():
        assert secret not in server.log
