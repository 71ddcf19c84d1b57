"""A large answer is made in a thread and equals the answers to its rows in small requests; one that
would be too large is refused.
"""

import struct

import httpx
import numpy as np
import orjson
import pytest

from tests.support.server import running
from tests.support.small_models import FEATURES, inputs, linear_model, publish_model

CLASSES, ROWS = 2500, inputs(150)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(
        models,
        "many",
        model=linear_model(classes=CLASSES),
        class_names=[f"class-{at}" for at in range(CLASSES)],
        class_counts=list(range(1, CLASSES + 1)),
    )
    with running(models) as server, httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def predictions(client, rows, top_k):
    body = {"instances": rows.tolist(), "parameters": {"top_k": top_k}}
    return client.post("/predict", json=body).raise_for_status().json()["predictions"]


@pytest.mark.parametrize("top_k", [40, 64, 65, 300])
def test_many_ranked_classes_are_those_of_the_rows_alone(client, top_k):
    found = predictions(client, ROWS, top_k)
    assert len(found) == len(ROWS)
    for row in (0, 63, 64, 149):
        (alone,) = predictions(client, ROWS[row : row + 1], top_k)
        assert [each["index"] for each in found[row]["top"]] == [
            each["index"] for each in alone["top"]
        ]
        wanted = [each["probability"] for each in alone["top"]]
        assert np.allclose([each["probability"] for each in found[row]["top"]], wanted, rtol=1e-5)
        assert found[row]["unadjusted"]["index"] == alone["unadjusted"]["index"]


def infer(client, rows, outputs):
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(rows), FEATURES],
        "data": rows.ravel().tolist(),
    }
    return client.post("/v2/models/many/infer", json={"inputs": [tensor], "outputs": outputs})


def test_all_probabilities_are_equal_as_json_and_as_binary_data(client):
    text = infer(client, ROWS, [{"name": "probabilities"}, {"name": "class_name"}]).json()
    probabilities, names = (each["data"] for each in text["outputs"])
    binary = infer(client, ROWS, [{"name": "probabilities", "parameters": {"binary_data": True}}])
    length = int(binary.headers["inference-header-content-length"])
    values = struct.unpack(f"<{len(ROWS) * CLASSES}f", binary.content[length:])
    assert np.float32(probabilities).tolist() == list(values)
    table = np.reshape(values, (len(ROWS), CLASSES))
    assert np.allclose(table.sum(axis=1), 1, atol=1e-4)
    assert names[::5] == [f"class-{at}" for at in table.argmax(axis=1)]


def test_adjustments_of_many_classes_are_those_of_few(client):
    def adjust(settings, top_k):
        body = {
            "instances": ROWS[:5].tolist(),
            "settings": [{"tau": tau} for tau in settings],
            "parameters": {"top_k": top_k},
        }
        found = client.post("/models/many/adjust", json=body).raise_for_status().json()["results"]
        return [
            [[each["index"] for each in row["top"][:3]] for row in result["predictions"]]
            for result in found
        ]

    taus = [0.0, 0.5, 1.0, 2.0]
    assert adjust(taus, CLASSES) == [adjust([tau], 3)[0] for tau in taus]


def test_an_answer_that_would_be_too_large_is_refused_before_the_rows_are_scored(client):
    body = {"instances": np.tile(ROWS, (2, 1)).tolist(), "parameters": {"top_k": CLASSES}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 413
    assert "300 rows would be too large" in answer.json()["detail"]
    many = np.tile(ROWS, (8, 1))
    assert infer(client, many, [{"name": "probabilities"}]).status_code == 413
    settings = [{"tau": at / 100} for at in range(60)]
    wide = {"instances": ROWS[:5].tolist(), "settings": settings, "parameters": {"top_k": CLASSES}}
    answer = client.post("/models/many/adjust", json=wide)
    assert answer.status_code == 413
    assert "smaller top_k" in answer.json()["detail"]


def test_a_query_that_names_one_parameter_thousands_of_times_is_refused(client):
    for query in ("&".join(["tau=1"] * 4000), "&".join(["tau=1", "tau=2"] * 3)):
        answer = client.post(f"/predict?{query}", json={"instances": ROWS[:1].tolist()})
        assert answer.status_code == 400


def test_an_inline_prior_of_many_values_is_the_stored_prior_of_the_same_values(client):
    target = {"target": list(range(CLASSES, 0, -1))}
    client.put("/priors/long", json=target).raise_for_status()
    body = {"instances": ROWS[:2].tolist(), "parameters": {"prior": target}}
    inline = client.post("/predict", json=body).raise_for_status().json()
    stored = client.post("/predict?prior=long", json={"instances": ROWS[:2].tolist()}).json()
    assert inline["predictions"] == stored["predictions"]
    document = {"inputs": [], "parameters": {"prior": orjson.dumps(target).decode()}}
    document["inputs"].append(
        {"name": "x", "datatype": "FP32", "shape": [2, FEATURES], "data": ROWS[:2].ravel().tolist()}
    )
    document["outputs"] = [{"name": "class_name"}]
    answer = client.post("/v2/models/many/infer", json=document).raise_for_status().json()
    assert answer["outputs"][0]["data"][0] == stored["predictions"][0]["label"]
    wrong = {"target": [1] * (CLASSES + 1)}
    body["parameters"] = {"prior": wrong}
    assert client.post("/predict", json=body).status_code == 422
