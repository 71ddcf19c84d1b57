"""Changes through a serving process reach its webhook, whichever worker stores them."""

import httpx
import orjson

from tests.service.priors.test_webhook import SECRET, Receiver
from tests.support.eventually import eventually
from tests.support.server import running
from tests.support.small_models import publish_model


def test_every_change_is_announced_once_whichever_of_two_workers_stores_it(tmp_path):
    publish_model(tmp_path / "models")
    there = Receiver(503)  # the first attempt fails
    environment = {"PRIORDIAL_WEBHOOK_SECRET": SECRET}
    with running(
        tmp_path / "models", workers=2, webhook=there.url, environment=environment
    ) as server:
        for weight in range(1, 7):
            with httpx.Client(base_url=server.url) as client:  # a connection, and so a worker, each
                body = {"target": [weight, 1, 1, 1, 1]}
                client.put("/priors", json=body).raise_for_status()
                client.put("/priors", json=body).raise_for_status()  # nothing new
        httpx.post(f"{server.url}/priors/default/rollback", json={"revision": 0})
        eventually(lambda: len(delivered(there)) == 7)
        assert server.terminate() == 0
        assert SECRET not in server.log
    there.close()
    assert sorted(d["revision"] for d in delivered(there).values()) == [1, 2, 3, 4, 5, 6, 7]
    assert [d["revision"] for d in delivered(there).values() if not d["in_use"]] == [7]


def delivered(there):
    """Delivery → document."""
    return {headers["X-Priordial-Delivery"]: orjson.loads(body) for headers, body in there.got}
