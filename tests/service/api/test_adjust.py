"""One scoring answers for many settings, each as /predict would answer it alone."""

import re

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.priors.rule import best
from tests.support.faulty_models import publish_root
from tests.support.server import metric, running
from tests.support.small_models import (
    CLASSES,
    FEATURES,
    inputs,
    linear_model,
    publish_trio,
    weights,
)
from tests.support.small_models import publish_model as publish

PRIOR = {"label_frequencies": [9, 7, 5, 3, 1], "target": [0, 1, 2, 3, 4]}
SETTINGS = [
    {"tau": 0},
    {"tau": 1e-6, "prior": "uniform"},
    {"tau": 0.5, "prior": "training"},
    {"prior": "default@0"},
    {"tau": 2.5, "prior": PRIOR},
    {"tau": 10, "prior": {"target": [1, 0, 0, 0, 3]}},
    {},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_trio(models)
    publish(models, "warm", temperature=1.7)
    publish(models, "unknown", class_counts=None)
    publish(models, "wide", model=linear_model(classes=2000), classes=2000, class_counts=None)
    with (
        running(models, max_queued_rows=5000, max_body_mib=8) as server,
        httpx.Client(base_url=server.url, timeout=60) as found,
    ):
        yield found


def chances(predictions, classes=CLASSES):
    found = np.zeros((len(predictions), classes))
    for row, prediction in enumerate(predictions):
        for item in prediction["top"]:
            found[row, item["index"]] = item["probability"]
    return found


@pytest.mark.parametrize("model", ["linear", "warm"])
def test_every_result_equals_the_prediction_with_that_setting_alone(client, model):
    x = inputs(6).tolist()
    body = {"instances": x, "settings": SETTINGS, "parameters": {"top_k": CLASSES}}
    answer = client.post(f"/models/{model}/adjust", json=body).json()
    assert (answer["model"], answer["version"], len(answer["results"])) == (model, 1, len(SETTINGS))
    for setting, result in zip(SETTINGS, answer["results"], strict=True):
        alone = client.post(
            f"/models/{model}/predict",
            json={"instances": x, "parameters": {"top_k": CLASSES, **setting}},
        ).json()
        assert (result["tau"], result["prior"]) == (alone["tau"], alone["prior"])
        got, wanted = result["predictions"], alone["predictions"]
        np.testing.assert_allclose(chances(got), chances(wanted), atol=1e-5)
        assert [p["label"] for p in got] == [p["label"] for p in wanted]
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine["unadjusted"] == pytest.approx(theirs["unadjusted"], abs=1e-6)
            assert mine["top"][0] == {k: mine[k] for k in ("label", "index", "probability")}


def test_logits_give_what_their_instances_give(client):
    x = inputs(4)
    w, b = weights()
    asked = {"settings": SETTINGS, "parameters": {"top_k": 3}}
    from_rows, from_logits = (
        client.post("/models/linear/adjust", json={**asked, **rows}).json()["results"]
        for rows in ({"instances": x.tolist()}, {"logits": (x @ w + b).tolist()})
    )
    for one, other in zip(from_rows, from_logits, strict=True):
        np.testing.assert_allclose(
            chances(one["predictions"]), chances(other["predictions"]), atol=1e-5
        )


def scored_batches(client):
    text = client.get("/metrics").text
    return float(re.search(r'priordial_batch_rows_count\{model="linear"\} (\S+)', text)[1])


def test_the_model_runs_once_however_many_settings_there_are(client):
    body = {"instances": inputs(1).tolist(), "settings": [{"tau": i / 10} for i in range(100)]}
    client.post("/models/linear/adjust", json=body)
    before = scored_batches(client)
    assert len(client.post("/models/linear/adjust", json=body).json()["results"]) == 100
    assert scored_batches(client) == before + 1


def test_parameters_of_the_request_are_those_that_a_setting_leaves_out(client):
    body = {"logits": [[1, 2, 3, 4, 5]], "settings": [{}, {"tau": 0.25}]}
    answer = client.post("/models/linear/adjust?tau=0.75&prior=training&top_k=2", json=body).json()
    assert [r["tau"] for r in answer["results"]] == [0.75, 0.25]
    assert [r["prior"]["name"] for r in answer["results"]] == ["training"] * 2
    assert len(answer["results"][0]["predictions"][0]["top"]) == 2


def test_it_works_for_texts(client):
    body = {"instances": ["a", "ö"], "settings": [{"tau": 0}, {"tau": 1}]}
    results = client.post("/models/text/adjust", json=body).json()["results"]
    assert [p["label"] for p in results[0]["predictions"]] == ["z", "y"]
    assert [p["label"] for p in results[1]["predictions"]] == ["z", "y"]


def test_unknown_label_frequencies_allow_tau_zero_and_inline_ones(client):
    fine = {"tau": 1, "prior": {"label_frequencies": [1, 2, 3, 4, 5]}}
    body = {"logits": [[0, 0, 0, 0, 0]], "settings": [{"tau": 0}, fine]}
    results = client.post("/models/unknown/adjust", json=body).json()["results"]
    assert [r["predictions"][0]["label"] for r in results] == ["class-0", "class-0"]
    body["settings"].append({"tau": 1})
    refused = client.post("/models/unknown/adjust", json=body)
    assert (refused.status_code, refused.json()["type"]) == (
        409,
        "/problems/unknown-label-frequencies",
    )


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"settings": [{}]}, "either 'instances' or 'logits'"),
        (
            400,
            {"logits": [[0] * 5], "instances": [[0] * 6], "settings": [{}]},
            "either 'instances' or 'logits'",
        ),
        (400, {"logits": [[0] * 5]}, "settings are null; expected a list"),
        (
            400,
            {"logits": [[0] * 5], "settings": []},
            "there are no settings; expected at least one",
        ),
        (
            400,
            {"logits": [[0] * 5], "settings": [7]},
            "setting 0 is 7; expected an object with tau, prior and context",
        ),
        (
            400,
            {"logits": [[0] * 5], "settings": [{}, {"top_k": 1}]},
            "setting 1 has an unknown member 'top_k'; expected tau, prior, context",
        ),
        (422, {"logits": [[0] * 5], "settings": [{}] * 101}, "there are 101 settings; at most 100"),
        (422, {"logits": [[0] * 5], "settings": [{"tau": -1}]}, "tau is -1.0"),
        (422, {"logits": [[0] * 5], "settings": [{"tau": False}]}, "tau is false"),
        (404, {"logits": [[0] * 5], "settings": [{"prior": "x"}]}, "there is no prior 'x'"),
        (422, {"logits": [[0] * 4], "settings": [{}]}, "shape [1, 4]; the model takes [batch, 5]"),
        (
            422,
            {"logits": [[0, 0, 0, 0, 1e39]], "settings": [{}]},
            "instance 0 holds NaN or infinity",
        ),
        (422, {"logits": [[0, 0, 0, 0, True]], "settings": [{}]}, "instance 0 holds true"),
        (422, {"logits": [], "settings": [{}]}, "logits are a list; expected a list of rows"),
        (422, {"instances": [], "settings": [{}]}, "there are no instances"),
        (422, {"instances": [[1]], "settings": [{}]}, "the input has shape [1, 1]"),
        (400, {"logits": [[0] * 5], "settings": [{}], "x": 1}, "unknown member 'x'"),
    ],
)
def test_what_is_wrong_is_told(client, status, body, message):
    answer = client.post("/models/linear/adjust", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_more_work_than_a_request_may_make_is_refused(client):
    inline = {"prior": {"label_frequencies": [1.0] * 2000}, "tau": 1}
    body = {"instances": inputs(200).tolist(), "settings": [inline] + [{"tau": 0}] * 99}
    answer = client.post("/models/wide/adjust", json=body)
    assert answer.status_code == 413, answer.text
    assert (
        "200 rows of 2000 classes under 100 settings make 40000000 numbers"
        in answer.json()["detail"]
    )
    body["settings"] = body["settings"][:3]
    assert client.post("/models/wide/adjust", json=body).status_code == 200


def test_only_json_and_only_post(client):
    answer = client.post(
        "/models/linear/adjust", content=b"x", headers={"content-type": "image/png"}
    )
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-media-type")
    assert client.get("/models/linear/adjust").status_code == 405
    assert (
        client.post("/models/none/adjust", json={"logits": [[1]], "settings": [{}]}).status_code
        == 404
    )


@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
        elements=st.integers(-3, 3),
    ),
    st.integers(1, 40),
)
def test_the_best_columns_are_those_of_a_stable_sort(values, k):
    k = min(k, values.shape[1])
    np.testing.assert_array_equal(
        best(values, k), np.argsort(-values, axis=1, kind="stable")[:, :k]
    )


def test_an_exploration_counts_as_a_request_and_not_among_the_answers(tmp_path):
    publish(tmp_path)
    publish_root(tmp_path, FEATURES)
    with running(tmp_path) as server, httpx.Client(base_url=server.url) as client:

        def counted(name, **labels):
            return metric(client.get("/metrics").text, name, **labels)

        x = inputs(6).tolist()
        for _ in range(2):
            client.post(
                "/models/linear/adjust", json={"instances": x, "settings": SETTINGS}
            ).raise_for_status()
        assert (
            counted("priordial_requests_total", route="/models/{model}/adjust", status="200") == 2
        )
        assert counted("priordial_batch_rows_count", model="linear") == 2
        assert counted("priordial_predictions_total", model="linear") == 0
        client.post("/models/linear/predict", json={"instances": x}).raise_for_status()
        assert counted("priordial_predictions_total", model="linear", decision="adjusted") == 6
        preview = client.post(
            "/models/linear/priors/default/preview", json={"target": "uniform"}
        ).json()
        assert preview["rows"] == 6
        refused = client.post("/models/sqrt/predict", json={"instances": [[1.0] * 6, [-1.0] * 6]})
        assert refused.status_code == 422
        assert counted("priordial_predictions_total", model="sqrt") == 0
        client.post("/models/sqrt/predict", json={"instances": [[1.0] * 6] * 3}).raise_for_status()
        preview = client.post(
            "/models/sqrt/priors/default/preview", json={"target": "uniform"}
        ).json()
        assert preview["rows"] == 3
