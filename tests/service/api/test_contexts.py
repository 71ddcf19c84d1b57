"""A prior that selects other priors by the context of a request or by the time."""

import json

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs
from tests.support.small_models import publish_model as publish

SITES = {"context": {"site": {"north": "winter", "south": "summer", "east": "gone"}}}
ROWS = 3


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish(models, "linear")
    with (
        running(models, workers=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as found,
    ):
        for name, target in (("winter", [9, 1, 1, 1, 1]), ("summer", [1, 1, 1, 1, 9])):
            found.put(f"/priors/{name}", json={"target": target}).raise_for_status()
        with_else = {"context": {**SITES["context"], "else": "summer"}}
        found.put("/priors/by-site", json=with_else).raise_for_status()
        found.put("/priors/alone", json={**SITES, "target": "training"}).raise_for_status()
        yield found


def ask(client, prior, context=None, **more):
    parameters = {"prior": prior, **({} if context is None else {"context": context}), **more}
    body = {"instances": inputs(ROWS).tolist(), "parameters": parameters}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("prior", "context", "used", "key", "value", "fallback"),
    [
        ("by-site", {"site": "north"}, "winter", "site", "north", None),
        ("by-site", {"site": "west"}, "summer", "site", "west", "unknown_value"),
        ("by-site", None, "summer", None, None, "no_context"),
        ("by-site", {"site": "east"}, "summer", "site", "east", "prior_not_available"),
        ("alone", {"site": "south"}, "summer", "site", "south", None),
        ("alone", {"site": "east"}, "alone", "site", "east", "prior_not_available"),
        ("alone", {"camera": "1"}, "alone", None, None, "no_context"),
    ],
)
def test_the_answer_is_that_of_the_prior_it_led_to_and_says_how(
    client, *, prior, context, used, key, value, fallback
):
    answer = ask(client, prior, context)
    assert answer["prior"] == {
        "name": used,
        "revision": 1,
        "context": {
            "name": prior,
            "revision": 1,
            "key": key,
            "value": value,
            "fallback": fallback,
        },
    }
    same = {"alone": {"target": "training"}}.get(used, used)
    assert answer["predictions"] == ask(client, same)["predictions"]
    missing = fallback == "prior_not_available"
    assert ("'gone'" in " ".join(answer.get("warnings", []))) == missing


def test_a_prior_without_context_takes_no_notice_of_one(client):
    assert ask(client, "winter", {"site": "south"})["prior"] == {"name": "winter", "revision": 1}


@pytest.mark.parametrize("text", ["site:south", '{"site": "south"}'])
def test_the_query_and_other_protocols_take_the_context_as_text(client, text):
    body = {"instances": inputs(ROWS).tolist()}
    query = {"prior": "by-site", "context": text}
    found = client.post("/predict", params=query, json=body).json()
    assert found["prior"]["name"] == "summer"
    x = inputs(ROWS)
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    infer = {"inputs": [tensor], "parameters": query}
    answer = client.post("/v2/models/linear/infer", json=infer).json()["parameters"]
    assert answer["prior"] == "summer"
    assert json.loads(answer["prior_context"])["value"] == "south"
    adjust = {**body, "settings": [{"prior": "by-site", "context": text}, {"prior": "winter"}]}
    first, second = client.post("/models/linear/adjust", json=adjust).json()["results"]
    assert first["prior"]["context"]["value"] == "south"
    assert "context" not in second["prior"]


def test_rows_of_one_inference_request_may_each_be_led_elsewhere(client):
    x = inputs(2)
    tensors = [
        {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()},
        {"name": "prior", "shape": [2, 1], "datatype": "BYTES", "data": ["by-site", "winter"]},
    ]
    infer = {"inputs": tensors, "parameters": {"context": "site:south"}}
    answer = client.post("/v2/models/linear/infer", json=infer).json()
    assert answer["parameters"]["priors"] == "summer@1, winter@1"


@pytest.mark.parametrize(
    "context",
    ["north", 3, {"site": 3}, {"": "x"}, {"s": "x" * 129}, {str(i): "" for i in range(9)}],
)
def test_a_context_that_cannot_be_read_is_refused_with_what_was_expected(client, context):
    body = {"instances": inputs(1).tolist(), "parameters": {"context": context}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 422
    assert "expected" in answer.json()["detail"]


def test_a_schedule_applies_by_itself(client):
    always = {"time_zone": "UTC", "rules": [{"hours": [0, 24], "prior": "winter"}]}
    client.put("/priors/calendar", json={"schedule": always}).raise_for_status()
    used = ask(client, "calendar")["prior"]
    assert used["name"] == "winter"
    assert used["context"] == {
        "name": "calendar",
        "revision": 1,
        "key": "schedule",
        "value": "0",
        "fallback": None,
    }


def test_writing_a_prior_that_leads_nowhere_warns_and_a_wrong_one_is_refused(client):
    found = client.get("/priors/by-site").json()
    assert found["as_written"]["context"]["site"]["north"] == "winter"
    assert any("'gone'" in warning for warning in found["warnings"])
    wrong = client.put("/priors/wrong", json={"context": {"site": "winter"}})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["field"] == "context.site"


def test_a_prior_reached_through_a_context_applies_as_it_is(client):
    client.put("/priors/twice", json={"context": {"site": {"north": "by-site"}}})
    used = ask(client, "twice", {"site": "north"})["prior"]
    assert (used["name"], used["context"]["name"]) == ("by-site", "twice")
