"""A fleet's connections, all at once, under the default bounds: each is answered or refused."""

import asyncio
import collections
import json

import httpx
import numpy as np
import pytest

from service.contract.adjustment import adjust_logits, log_source_prior, softmax
from tests.support.faulty_models import publish_steady
from tests.support.server import running
from tests.support.small_models import CLASSES, COUNTS, inputs, publish_model, weights

CONNECTIONS = 256
BATCH = 16
FLOOR, FLOOR_AFTER_REFUSALS = 64, BATCH
"""Rows that always have room; and for a second after a refusal (docs/operations.md)."""
SLOW_ROWS = np.stack([np.linspace(-2, 2, CONNECTIONS), np.ones(CONNECTIONS)], 1).astype(np.float32)
ROWS = {"linear": inputs(CONNECTIONS, seed=9), "steady": SLOW_ROWS, "crowded": SLOW_ROWS}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    publish_steady(models, rounds=3000)  # some 100 ms a batch
    publish_steady(models, "crowded", rounds=3000)
    with running(models, max_batch_rows=BATCH) as found:
        yield found


def wanted(model):
    """The probabilities [n, C] of the rows."""
    w, b = (
        weights() if model == "linear" else (np.vstack([np.arange(CLASSES), np.zeros(CLASSES)]), 0)
    )
    logits = ROWS[model].astype(np.float64) @ w + b
    source = log_source_prior(COUNTS, loss_tau=0)
    return softmax(adjust_logits(logits, log_source_prior=source, log_target_prior=0.0, tau=1.0))


def requests_of(model):
    for row in ROWS[model]:
        body = json.dumps({"instances": [row.tolist()]}).encode()
        head = f"POST /models/{model}/predict HTTP/1.1\r\nhost: x\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        yield head.encode() + body


async def answer(reader):
    """(status, headers, document) of the next answer on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, json.loads(body)


async def at_once(address, requests):
    """The answer on each connection: all are open first, and all send in one turn of the loop."""
    host, port = address
    lines = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in requests))
    try:
        for (_, writer), request in zip(lines, requests, strict=True):
            writer.write(request)
        first = await asyncio.gather(*(answer(reader) for reader, _ in lines))
        for (_, writer), request in zip(lines, requests, strict=True):
            writer.write(request)  # whoever was refused is still connected, and heard
        return first, await asyncio.gather(*(answer(reader) for reader, _ in lines))
    finally:
        for _, writer in lines:
            writer.close()


def check(model, answers):
    """Answers by status; every answer is of its own row, every refusal says when to come back."""
    truth = wanted(model)
    for (status, headers, document), chances in zip(answers, truth, strict=True):
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert document["type"] == "/problems/overloaded"
            continue
        assert status == 200, document
        (found,) = document["predictions"]
        reported = {each["index"]: each["probability"] for each in found["top"]}
        assert reported == pytest.approx(dict(enumerate(chances.tolist())), abs=1e-5)
    return collections.Counter(status for status, _, _ in answers)


@pytest.mark.parametrize("model", ["linear", "steady"])
def test_each_of_a_burst_of_connections_is_answered_rightly_or_refused(server, model):
    address = server.url.removeprefix("http://").split(":")
    bursts = asyncio.run(at_once(address, list(requests_of(model))))
    for burst, floor in zip(bursts, (FLOOR, FLOOR_AFTER_REFUSALS), strict=True):
        statuses = check(model, burst)
        assert sum(statuses.values()) == CONNECTIONS
        if model == "linear":
            assert statuses == {200: CONNECTIONS}  # a burst is no overload of what is quick
        else:
            assert statuses[200] >= floor
            assert statuses[429] > 0
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for name, rows in ROWS.items():
            after = client.post(f"/models/{name}/predict", json={"instances": rows[:1].tolist()})
            assert after.status_code == 200
        assert client.get("/health/ready").json() == {"ready": True, "status": "ready"}


def test_a_burst_of_two_models_leaves_the_quick_one_unrefused(server):
    address = server.url.removeprefix("http://").split(":")
    pairs = zip(requests_of("linear"), requests_of("crowded"), strict=True)
    both = [request for pair in pairs for request in pair]
    for burst in asyncio.run(at_once(address, both)):
        quick, slow = burst[::2], burst[1::2]
        assert check("linear", quick) == {200: CONNECTIONS}
        assert check("crowded", slow)[200] >= FLOOR_AFTER_REFUSALS
