"""POST /feedback to a real service of two workers, and what GET /feedback then says."""

import asyncio
import io

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.eventually import eventually
from tests.support.proxied import free_port
from tests.support.server import metric, running
from tests.support.small_models import CLASSES, inputs
from tests.support.small_models import publish_model as publish

NAMES = [f"class-{i}" for i in range(CLASSES)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish(models, "linear")
    publish(models, "other")
    with running(models, workers=2, default_model="linear", feedback_mib=16) as found:
        yield found


def ask(server, request_id, rows=1, model="linear", seed=1, **parameters):
    """Send a request over a new connection, so that either worker may answer."""
    body = {"instances": inputs(rows, seed=seed).tolist(), "parameters": parameters}
    url = f"{server.url}/models/{model}/predict"
    answer = httpx.post(url, json=body, headers={"X-Request-Id": request_id})
    assert answer.status_code == 200
    return [prediction["label"] for prediction in answer.json()["predictions"]]


def tell(server, items, model=None, **more):
    path = "/feedback" if model is None else f"/models/{model}/feedback"
    return httpx.post(server.url + path, json={"items": items}, timeout=30, **more)


def figures(server, model="linear"):
    return httpx.get(f"{server.url}/models/{model}/feedback", timeout=30).json()


def test_labels_reach_answers_of_every_worker_and_give_the_error_of_the_traffic(server):
    rng = np.random.default_rng(0)
    items, right = [], 0
    for number in range(30):
        answers = ask(server, f"r-{number}", rows=10, seed=number, top_k=1)
        for row, label in enumerate(answers):
            true = label if rng.random() < 0.8 else NAMES[(NAMES.index(label) + 1) % CLASSES]
            right += true == label
            items.append({"request_id": f"r-{number}", "row": row, "label": true, "sampled": 1.0})
    taken = tell(server, items).json()
    assert (taken["accepted"], taken["unknown"], taken["faults"]) == (300, 0, [])
    found = figures(server)
    assert found["answers"] == 300
    by_labels = found["by_labels"]
    assert by_labels["error"]["value"] == pytest.approx(1 - right / 300, abs=1e-6)
    assert by_labels["balanced_error"]["low"] < by_labels["balanced_error"]["value"]
    assert by_labels["confusions"][0]["true"] in NAMES
    assert sum(found["labels"].values()) == 300
    text = httpx.get(f"{server.url}/metrics").text
    of = {"model": "linear", "version": "1"}
    assert metric(text, "priordial_feedback_total", outcome="right", **of) == right
    assert metric(text, "priordial_feedback_total", outcome="wrong", **of) == 300 - right


def test_the_balanced_error_is_a_gauge_with_its_interval_in_every_worker(server):
    label = ask(server, "gauge", seed=77)[0]
    tell(server, [{"request_id": "gauge", "label": label, "sampled": 1.0}])
    wanted = figures(server)["by_labels"]["balanced_error"]

    def shown():
        text = httpx.get(f"{server.url}/metrics").text
        return {
            bound: metric(
                text, "priordial_balanced_error", model="linear", version="1", bound=bound
            )
            for bound in wanted
        } == pytest.approx(wanted)

    eventually(shown)


def test_answers_in_the_store_outlive_a_killed_service_and_are_labelled_through_another(tmp_path):
    publish(tmp_path / "models", "linear")
    shared = {
        "store": f"sqlite:///{tmp_path / 'priors.db'}",
        "feedback_mib": 1,
        "feedback_store_rows": 100,
        "shift_seconds": 1,
    }
    with (
        running(tmp_path / "models", port=free_port(), **shared) as other,
        running(tmp_path / "models", port=free_port(), **shared) as killed,
    ):
        label = ask(killed, "order-1")[0]
        eventually(lambda: figures(other)["answers"] == 1)
        killed.process.kill()
        killed.process.wait()
        item = {"request_id": "order-1", "row": 0, "label": label, "sampled": 1.0}
        assert tell(other, [item]).json()["accepted"] == 1
        assert figures(other)["labels"] == {label: 1}


def test_labels_of_unknown_sampling_are_counted_and_never_the_error_of_the_traffic(server):
    label = ask(server, "unknown-sampling", model="other")[0]
    assert (
        tell(server, [{"request_id": "unknown-sampling", "label": label}]).json()["accepted"] == 1
    )
    found = figures(server, "other")
    assert found["by_labels"] is None
    assert found["of_labelled"] == {"labels": 1, "error": 0.0}
    assert any("sampled" in warning for warning in found["warnings"])
    assert found["by_posterior"]["balanced_error"] > 0


def test_csv_is_taken_and_its_faults_name_the_line(server):
    labels = ask(server, "csv,1", rows=2, model="other", seed=9)
    text = f'request_id,row,label,sampled\n"csv,1",0,{labels[0]},0.5\n"csv,1",1,{labels[1]},\n'
    headers = {"content-type": "text/csv"}
    url = f"{server.url}/models/other/feedback"
    assert httpx.post(url, content=text, headers=headers, timeout=30).json()["accepted"] == 2
    wrong = httpx.post(url, content=text + "a,x,y,z\n", headers=headers)
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "line 4.row")
    for content in (b"id,label\n1,2\n", b"\xff\xfe", b"", b"request_id,label\na\n"):
        assert httpx.post(url, content=content, headers=headers).status_code == 400


def test_parquet_is_taken_with_its_empty_cells_and_faulty_columns_are_named(server):
    labels = ask(server, "parquet", rows=2, model="other", seed=10)
    headers = {"content-type": "application/vnd.apache.parquet"}
    url = f"{server.url}/models/other/feedback"

    def answer(**columns):
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file)
        return httpx.post(url, content=file.getvalue(), headers=headers, timeout=30)

    taken = answer(request_id=["parquet"] * 2, row=[None, 1], label=labels, sampled=[0.5, None])
    assert taken.json()["accepted"] == 2
    assert figures(server, "other")["by_labels"]["labels"] >= 1
    wrong = answer(request_id=["a", "b"], row=[0.5, 1.0], label=["x", None])
    assert wrong.status_code == 422
    assert [each["field"] for each in wrong.json()["errors"]] == ["items.0.row", "items.1.label"]
    assert "expected request_id" in answer(id=["a"], label=["x"]).json()["detail"]
    assert httpx.post(url, content=b"PAR1", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"request_id,label\n" + b"," * (2**20 + 1), 413, "line 2: a row has more than 1,048,576"),
        (b"," * (2**20 + 1), 413, "line 1: a row has more than 1,048,576"),
        (b"request_id,label\n" + b"a,b\n" * 100_001, 422, "at most 100000 may be sent"),
        (b"request_id,label,row\na,b,1_0\n", 422, "line 2.row"),
        ("request_id,label,row\na,b,٧\n".encode(), 422, "line 2.row"),
        (b"request_id,label,row\na,b,-1\n", 422, "line 2.row"),
        (b"request_id,label,row\na,b,4294967296\n", 422, "line 2.row"),
        (b"request_id,label,sampled\na,b,0_1\n", 422, "line 2.sampled"),
        (b"request_id,label,sampled\na,b,nan\n", 422, "line 2.sampled"),
        (b"request_id,label,sampled\na,b,1e-50\n", 422, "from 1e-09 to 1; got 1e-50"),
        (b"request_id,label,sampled\na,b,1\n\na,b,2\n", 422, '"line 4.sampled"'),
        (b"request_id,label\na,b\na,\n", 422, '"line 3.label"'),
    ],
)
def test_csv_beyond_a_bound_is_refused(server, content, status, message):
    answer = httpx.post(
        f"{server.url}/feedback", content=content, headers={"content-type": "text/csv"}, timeout=30
    )
    assert answer.status_code == status
    assert message in answer.text


def test_more_feedback_than_may_wait_is_refused_at_once(server):
    """Unknown ids are searched for twice, so all these requests overlap."""
    body = {"items": [{"request_id": "never-seen", "label": NAMES[0]}]}

    async def ask_together():
        async with httpx.AsyncClient(timeout=30) as client:
            asked = (client.post(f"{server.url}/feedback", json=body) for _ in range(40))
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_together())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert "the most that can wait" in refused[0].json()["detail"]


def test_ids_that_are_not_kept_are_counted_and_wrong_labels_are_named(server):
    ask(server, "known")
    items = [
        {"request_id": "never-seen", "label": NAMES[0]},
        {"request_id": "known", "label": "no such class"},
    ]
    taken = tell(server, items).json()
    assert (taken["accepted"], taken["unknown"], taken["unknown_ids"]) == (0, 1, ["never-seen"])
    assert taken["faults"][0]["request_id"] == "known"
    elsewhere = [{"request_id": "known", "label": NAMES[0]}]
    assert tell(server, elsewhere, model="other").json()["unknown"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"items": []}, 422),
        ({"items": [{"request_id": "a"}]}, 422),
        ({"labels": []}, 422),
        ([], 422),
        ({"items": [{"request_id": "a", "label": "x"}] * 100_001}, 413),
    ],
)
def test_wrong_feedback_is_refused_with_what_was_expected(server, body, status):
    answer = httpx.post(f"{server.url}/feedback", json=body, timeout=30)
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert "expected" in detail or "more than 200000 texts and names, the most" in detail


def test_other_bodies_and_models_are_refused(server):
    xml = httpx.post(f"{server.url}/feedback", content="<a/>", headers={"content-type": "text/xml"})
    assert xml.status_code == 415
    assert tell(server, [{"request_id": "a", "label": "x"}], model="none").status_code == 404
    assert httpx.get(f"{server.url}/models/none/feedback").status_code == 404


def test_a_service_that_keeps_no_answers_says_how_to_keep_them(tmp_path):
    publish(tmp_path, "linear")
    with running(tmp_path, feedback_mib=0) as found:
        for answer in (
            tell(found, [{"request_id": "a", "label": "x"}]),
            httpx.get(f"{found.url}/feedback"),
        ):
            assert answer.status_code == 409
            assert "--feedback-mib" in answer.json()["detail"]


def test_the_mix_of_each_context_of_a_prior_is_told(server):
    by_site = {"context": {"site": {"north": "uniform", "south": "training"}}}
    url = f"{server.url}/models/other/priors/by-site"
    httpx.put(url, json=by_site).raise_for_status()

    def asked():
        body = {
            "instances": inputs(40).tolist(),
            "parameters": {"prior": "by-site@>=1", "context": {"site": "north"}},
        }
        return httpx.post(f"{server.url}/models/other/predict", json=body).status_code == 200

    def all_noted():
        found = httpx.get(f"{url}/contexts").json().get("contexts", [])  # or not heard of yet
        rows = [(one["key"], one["value"], one["rows"]) for one in found]
        return found if rows == [("site", "north", 40)] else None

    eventually(asked)
    found = eventually(all_noted)
    assert sum(found[0]["mix"].values()) == pytest.approx(1)
    assert httpx.get(f"{server.url}/models/other/priors/uniform/contexts").status_code == 409
