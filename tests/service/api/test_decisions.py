"""Decisions by cost, in every kind of answer: the posterior stays, the decision costs least."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.support.server import metric, running
from tests.support.small_models import CLASSES, inputs
from tests.support.small_models import publish_model as publish

COSTS = 0.3 * (1 - np.eye(CLASSES))
COSTS[0, 1] = COSTS[1, 2] = COSTS[2, 4] = COSTS[3, 0] = COSTS[4, 3] = 9.0
REJECT = 0.28
TARGET = [1, 2, 3, 4, 5]
PRICED = {"target": TARGET, "costs": {"matrix": COSTS.tolist(), "reject": REJECT}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish(models, "linear")
    publish(models, "unknown", class_counts=None)
    with (
        running(models, max_batch_rows=8, max_queued_rows=5000, default_model="linear") as server,
        httpx.Client(base_url=server.url, timeout=60) as found,
    ):
        found.put("/priors/priced", json=PRICED).raise_for_status()
        found.put("/priors/plain", json={"target": TARGET}).raise_for_status()
        found.put("/models/unknown/priors/priced", json=PRICED).raise_for_status()
        yield found


def posterior(predictions):
    found = np.zeros((len(predictions), CLASSES))
    for row, prediction in enumerate(predictions):
        for item in prediction["top"]:
            found[row, item["index"]] = item["probability"]
    return found


def cheapest(probabilities):
    """(index or None, expected cost) of each row, from the definition."""
    expected = probabilities @ COSTS
    best, cost = expected.argmin(axis=1).tolist(), expected.min(axis=1).tolist()
    return [(None, REJECT) if c > REJECT else (k, c) for k, c in zip(best, cost, strict=True)]


def check(predictions):
    for prediction, (index, cost) in zip(
        predictions, cheapest(posterior(predictions)), strict=True
    ):
        decision = prediction["decision"]
        assert decision["index"] == index
        assert decision["label"] == (None if index is None else f"class-{index}")
        assert decision["rejected"] is (index is None)
        assert decision["expected_cost"] == pytest.approx(cost, abs=1e-5)


def predict(client, prior, rows=40, path="/predict", seed=1, **parameters):
    body = {
        "instances": inputs(rows, seed=seed).tolist(),
        "parameters": {"prior": prior, "top_k": CLASSES, **parameters},
    }
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_the_decision_costs_least_and_the_posterior_is_that_of_the_prior_without_costs(client):
    priced, plain = (predict(client, prior, rows=300) for prior in ("priced", "plain"))
    check(priced)
    kinds = {(p["decision"]["rejected"], p["decision"]["index"] == p["index"]) for p in priced}
    assert len(kinds) == 3  # kept, changed and rejected
    for mine, theirs in zip(priced, plain, strict=True):
        assert "decision" not in theirs
        for member in ("label", "probability", "unadjusted"):
            assert mine[member] == pytest.approx(theirs[member], abs=1e-6)


def test_inline_costs_decide_like_stored_ones(client):
    assert predict(client, PRICED) == predict(client, "priced")


def test_costs_decide_at_tau_0_of_a_model_of_unknown_frequencies(client):
    check(predict(client, "priced", path="/models/unknown/predict", tau=0))


def test_requests_with_and_without_costs_that_share_batches_each_get_their_own(client):
    priors = [PRICED, "plain", {"target": TARGET, "costs": {"miss": [1, 1, 1, 1, 9]}}, "priced"]
    alone = [predict(client, prior, rows=3, seed=7) for prior in priors]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: predict(client, priors[i % 4], rows=3, seed=7), range(64)))
    for number, predictions in enumerate(found):
        for mine, theirs in zip(predictions, alone[number % 4], strict=True):
            assert mine.get("decision", {}).keys() == theirs.get("decision", {}).keys()
            if "decision" in theirs:
                assert mine["decision"] == pytest.approx(theirs["decision"], abs=1e-5)


def test_adjust_decides_under_each_setting(client):
    settings = [{"prior": "priced"}, {"prior": "plain"}, {"prior": PRICED, "tau": 0.5}]
    body = {
        "instances": inputs(9).tolist(),
        "settings": settings,
        "parameters": {"top_k": CLASSES},
    }
    results = client.post("/models/linear/adjust", json=body).json()["results"]
    check(results[0]["predictions"])
    check(results[2]["predictions"])
    assert "decision" not in results[1]["predictions"][0]


@pytest.mark.parametrize("binary", [False, True])
def test_open_inference_gives_decisions_as_outputs(client, binary):
    rows = 6
    body = {
        "inputs": [
            {
                "name": "x",
                "shape": [rows, inputs(rows).shape[1]],
                "datatype": "FP32",
                "data": inputs(rows).ravel().tolist(),
            },
            {
                "name": "prior",
                "shape": [rows, 1],
                "datatype": "BYTES",
                "data": ["priced", "plain"] * (rows // 2),
            },
        ],
        "outputs": [
            {"name": name, "parameters": {"binary_data": binary and name == "decision_index"}}
            for name in ("decision", "decision_index", "expected_cost", "probabilities")
        ],
    }
    response = client.post("/v2/models/linear/infer", json=body)
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    found = {
        o["name"]: o
        for o in httpx.Response(200, content=response.content[:length]).json()["outputs"]
    }
    probabilities = np.array(found["probabilities"]["data"]).reshape(rows, CLASSES)
    index = (
        np.frombuffer(response.content[length:], "<i8").tolist()
        if binary
        else found["decision_index"]["data"]
    )
    for row in range(rows):
        wanted, cost = cheapest(probabilities[row : row + 1])[0]
        if row % 2:  # the plain prior: an error costs 1
            wanted = int(probabilities[row].argmax())
            cost = 1 - probabilities[row].max()
        assert index[row] == (-1 if wanted is None else wanted)
        assert found["decision"]["data"][row] == ("" if wanted is None else f"class-{wanted}")
        assert found["expected_cost"]["data"][row] == pytest.approx(cost, abs=1e-5)
    assert found["decision"]["shape"] == [rows, 1]


def test_decisions_are_counted_by_what_the_costs_did(client):
    def counted():
        text = client.get("/metrics").text
        return [
            metric(text, "priordial_decisions_total", model="linear", version="1", decision=kind)
            for kind in ("as_predicted", "by_cost", "rejected")
        ]

    before = counted()
    priced = predict(client, "priced", seed=11)
    predict(client, "plain", seed=11)
    rejected = sum(p["decision"]["rejected"] for p in priced)
    same = sum(p["decision"]["index"] == p["index"] for p in priced)
    wanted = [same, len(priced) - same - rejected, rejected]
    assert [after - was for after, was in zip(counted(), before, strict=True)] == wanted


def test_a_preview_counts_decisions_rejections_and_what_they_cost(client):
    predict(client, "plain", rows=200, seed=3)
    candidate = {"target": TARGET, "costs": {"matrix": COSTS.tolist(), "reject": REJECT}}
    found = client.post("/priors/plain/preview", json=candidate).json()
    assert found["decisions_changed"] > 0.1
    assert found["rejected"]["before"] == 0 < found["rejected"]["after"]
    assert found["expected_cost"]["before"] is None
    assert 0 < found["expected_cost"]["after"] <= REJECT + 1e-6
    shares = sum(line["after"] for line in found["classes"])
    assert shares == pytest.approx(1 - found["rejected"]["after"])


def test_wrong_costs_are_422_with_the_field_and_too_many_inline_values_413(client):
    wrong = client.put("/priors/new", json={"costs": {"miss": {"class-9": 2}}})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["field"] == "costs.miss.class-9"
    pairs = [["class-1", "class-2", 1.5]] * 100_001
    body = {"instances": inputs(1).tolist(), "parameters": {"prior": {"costs": {"pairs": pairs}}}}
    assert client.post("/predict", json=body).status_code == 413


def test_a_rollback_brings_the_costs_back(client):
    client.put("/priors/seasonal", json={"costs": {"reject": 0.1}}).raise_for_status()
    client.put("/priors/seasonal", json={"target": "training"}).raise_for_status()
    found = client.post("/priors/seasonal/rollback", json={"revision": 1}).json()
    assert found["as_written"]["costs"]["reject"] == 0.1
