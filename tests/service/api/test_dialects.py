"""Clients of other servers get the answers of /predict at their own paths."""

import codecs
import io
import json
import re

import httpx
import numpy as np
import pytest

from service.settings import InvalidSetting, read_settings
from tests.support.server import running
from tests.support.small_models import FEATURES, TEXT_FIELDS, inputs, publish_model, text_model

COLUMNS = [f"c{i}" for i in range(FEATURES)]
ROWS = inputs(3).tolist()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models, "linear", provenance={"data": {"columns": COLUMNS}})
    publish_model(models, "linear", provenance={"data": {"columns": COLUMNS}})
    publish_model(models, "nameless")
    publish_model(models, "text", model=text_model(), **TEXT_FIELDS)
    with running(
        models, default_model="linear", predict_route="/score/here", health_route="/health/vertex"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def frame(order=COLUMNS, rows=ROWS):
    at = [COLUMNS.index(name) for name in order]
    return {"columns": list(order), "data": [[row[i] for i in at] for row in rows]}


BODIES = {
    "instances": {"instances": ROWS},
    "signature": {"instances": ROWS, "signature_name": "serving_default"},
    "inputs": {"inputs": ROWS},
    "named tensor": {"inputs": {"x": ROWS}},
    "rows under the input's name": {"instances": [{"x": row} for row in ROWS]},
    "columns": {"inputs": {name: [row[i] for row in ROWS] for i, name in enumerate(COLUMNS)}},
    "split": {"dataframe_split": frame()},
    "reordered": {"dataframe_split": frame(COLUMNS[::-1])},
    "numbered": {"dataframe_split": {"columns": list(range(FEATURES)), "data": ROWS}},
    "numbered records": {"dataframe_records": [{str(i): v for i, v in enumerate(r)} for r in ROWS]},
    "records": {"dataframe_records": [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]},
    "Azure ML's rows": {"input_data": ROWS, "params": {}},
    "Azure ML's tensor": {"input_data": {"x": ROWS}},
    "Azure ML's table": {"input_data": {**frame(COLUMNS[::-1]), "index": [0, 1, 2]}},
}


PATHS = ["/v1/models/linear:predict", "/invocations", "/score", "/score/here"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", list(BODIES))
def test_every_form_of_a_body_has_the_answer_of_predict(client, path, form):
    expected = client.post("/predict", json={"instances": ROWS}).json()
    answer = client.post(path, json=BODIES[form])
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected


def test_parameters_reach_the_adjustment_from_query_body_and_sagemaker_s_header(client):
    expected = client.post("/predict?tau=0.5&prior=training", json={"instances": ROWS}).json()
    for answer in (
        client.post("/v1/models/linear:predict?tau=0.5&prior=training", json={"instances": ROWS}),
        client.post(
            "/invocations",
            json={"instances": ROWS, "params": {"tau": 0.5, "prior": "training"}},
        ),
        client.post(
            "/invocations",
            json={"instances": ROWS},
            headers={"X-Amzn-SageMaker-Custom-Attributes": "tau=0.5,prior=training"},
        ),
    ):
        assert answer.json() == expected


def test_a_long_body_is_translated_as_a_short_one(client):
    """Longer ones are read in a thread."""
    rows = ROWS * 600
    expected = client.post("/predict", json={"instances": rows}).json()
    for body in ({"dataframe_split": frame(COLUMNS[::-1], rows)}, {"inputs": {"x": rows}}):
        answer = client.post("/invocations", json=body)
        assert int(answer.request.headers["content-length"]) > 128 * 1024
        assert answer.json() == expected
    unknown = client.post("/invocations", json={"dataframe_split": {"data": rows, "a": 1}})
    assert (unknown.status_code, "unknown member 'a'" in unknown.json()["detail"]) == (400, True)


def lines_of(values, end="\n"):
    return end.join(json.dumps(value) for value in values).encode()


@pytest.mark.parametrize("kind", ["application/jsonlines", "application/x-ndjson; charset=utf-8"])
@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_json_lines_hold_an_instance_on_each_line(client, path, kind):
    expected = client.post("/predict?tau=0.5", json={"instances": ROWS}).json()
    records = [dict(zip(COLUMNS[::-1], row[::-1], strict=True)) for row in ROWS]
    for body in (
        lines_of(ROWS),
        lines_of(ROWS, end="\r\n") + b"\r\n\n",
        codecs.BOM_UTF8 + lines_of(records),
    ):
        answer = client.post(f"{path}?tau=0.5", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json() == expected


def test_long_json_lines_are_read_as_short_ones(client):
    """Longer ones are read in a thread."""
    expected = client.post("/predict", json={"instances": ROWS * 600}).json()
    headers = {"Content-Type": "application/jsonlines"}
    answer = client.post("/predict", content=lines_of(ROWS * 600), headers=headers)
    assert int(answer.request.headers["content-length"]) > 128 * 1024
    assert answer.json() == expected


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"[1, 2\n3]\n", 400, "line 1 is not JSON"),
        (lines_of(ROWS) + b"\n1, 2", 400, "line 4 is not JSON"),
        (lines_of(ROWS) + b"\n[NaN]", 400, "'NaN' is not a JSON number"),
        (lines_of(ROWS) + b"\n[1, 2]", 422, "instance 3"),
        (b"\n \n", 422, "at least one"),
        (b"\n" * 200_000, 413, "200000 lines"),
    ],
)
def test_json_lines_that_do_not_fit_are_refused_and_say_where(client, body, status, says):
    headers = {"Content-Type": "application/jsonlines"}
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_a_version_in_the_path_is_the_version_that_answers(client):
    answer = client.post("/v1/models/linear/versions/1:predict", json={"instances": ROWS})
    assert answer.json()["version"] == 1
    assert client.post("/v1/models/linear:predict", json={"instances": ROWS}).json()["version"] == 2


def test_an_npy_body_is_taken_at_invocations(client):
    buffer = io.BytesIO()
    np.save(buffer, np.array(ROWS, np.float32))
    answer = client.post(
        "/invocations", content=buffer.getvalue(), headers={"content-type": "application/x-npy"}
    )
    assert len(answer.json()["predictions"]) == len(ROWS)


TENSOR = {"name": "x", "datatype": "FP32", "shape": [3, FEATURES], "data": ROWS}
JSON_CALLS = [
    ("POST", "/predict", {"instances": ROWS}),
    ("POST", "/predict", {"instances": ROWS * 600}),  # read in slices
    ("POST", "/v1/models/linear:predict", {"instances": ROWS}),
    ("POST", "/v1/models/linear:predict", {"instances": ROWS * 600}),  # read in a thread
    ("POST", "/v2/models/linear/infer", {"inputs": [TENSOR]}),
    ("POST", "/models/linear/adjust", {"instances": ROWS, "settings": [{"tau": 0}]}),
    ("PUT", "/models/linear/priors/marked", {"target": "uniform"}),
]


@pytest.mark.parametrize(("method", "path", "body"), JSON_CALLS)
def test_a_byte_order_mark_is_no_part_of_json(client, method, path, body):
    text, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    plain = client.request(method, path, content=text, headers=headers)
    marked = client.request(method, path, content=codecs.BOM_UTF8 + text, headers=headers)
    assert plain.status_code in {200, 201}, plain.text
    assert (marked.status_code // 100, marked.json()) == (2, plain.json())


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "text/plain;charset=UTF-8",
        "application/octet-stream",
    ],
)
@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models/linear:predict", "/invocations", "/models/linear/adjust"]
)
def test_json_is_taken_with_the_type_that_a_client_sends_unasked(client, kind, path):
    body = {"instances": ROWS, **({"settings": [{"tau": 0}]} if "adjust" in path else {})}
    headers = {"content-type": kind}
    answer = client.post(path, content=f"\r\n{json.dumps(body)}", headers=headers)
    assert (answer.status_code, answer.json()) == (200, client.post(path, json=body).json())
    refused = client.post(path, content="instances=%5B1%5D", headers=headers)
    assert (refused.status_code, "application/json" in refused.json()["detail"]) == (415, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/models/none:predict", {"instances": ROWS}, 404, "none"),
        ("/v1/models/linear/versions/9:predict", {"instances": ROWS}, 404, "9"),
        ("/invocations", {"instances": ROWS, "inputs": ROWS}, 400, "instances and inputs"),
        ("/invocations", {}, 400, "no rows"),
        ("/invocations", {"rows": ROWS}, 400, "unknown member 'rows'"),
        ("/invocations", {"dataframe_split": frame(COLUMNS[1:])}, 422, "lacks column 'c0'"),
        (
            "/invocations",
            {"dataframe_records": [dict.fromkeys([*COLUMNS, "age"], 1.0)]},
            422,
            "unknown column 'age'",
        ),
        ("/invocations", {"dataframe_split": {"columns": COLUMNS, "data": [[1]]}}, 400, "row 0"),
        ("/score", {"input_data": {"columns": COLUMNS, "data": [[1]]}}, 400, "row 0 of input_data"),
        (
            "/score",
            {"input_data": {"data": 7}},
            400,
            "data of input_data are 7; expected a list",
        ),
        ("/score", {"input_data": {"a": [1], "b": [1, 2]}}, 400, "a: 1, b: 2"),
        ("/v1/models/nameless:predict", {"dataframe_split": frame()}, 422, "by name"),
        ("/invocations", {"inputs": {"a": [1], "b": [1, 2]}}, 400, "different lengths"),
        ("/invocations", {"inputs": {"a": 1, "b": 2}}, 400, "column 'a' of inputs is 1; expected"),
        ("/v1/models/linear:classify", {"examples": []}, 404, "use POST /v1/models/linear:predict"),
        ("/v1/models/linear/versions/1:explain", {"instances": ROWS}, 404, "'explain' is not"),
        ("/v1/models/linear/labels/stable:predict", {"instances": ROWS}, 404, "no labels"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_and_says_why(client, path, body, status, says):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    if path.startswith("/v1"):
        assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize("path", ["/models/nameless/predict", "/models/nameless/adjust"])
def test_rows_as_objects_are_read_under_the_input_s_name_and_else_refused_with_the_ways_out(
    client, path
):
    settings = {"settings": [{"tau": 0}]} if path.endswith("adjust") else {}
    plain = client.post(path, json={"instances": ROWS, **settings}).json()
    under = [{"x": row} for row in ROWS]
    assert client.post(path, json={"instances": under, **settings}).json() == plain
    for wrong in ({"age": 1}, {"x": ROWS[0], "y": 1}):
        answer = client.post(path, json={"instances": [*under, wrong], **settings})
        assert answer.status_code == 422
        assert "as a list in the model's order" in answer.json()["detail"]
        assert "--column-names" in answer.json()["detail"]
    answer = client.post(path, json={"instances": [{"b64": "aGk="}], **settings})
    assert "not images; send its rows as JSON, CSV, .npy" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["review"], "index": [0, 1], "data": [["a"], ["ö"]]}},
        {"dataframe_split": {"columns": [0], "data": [["a"], ["ö"]]}},
        {"dataframe_records": [{"review": "a"}, {"review": "ö"}]},
        {"input_data": {"columns": ["review"], "index": [0, 1], "data": ["a", "ö"]}},
        {"instances": [{"words": "a"}, {"words": "ö"}]},
        {"inputs": {"words": ["a", "ö"]}},
    ],
)
def test_the_only_column_of_a_frame_is_the_text(client, body):
    plain = client.post("/models/text/predict", json={"instances": ["a", "ö"]}).json()
    assert client.post("/v1/models/text:predict", json=body).json() == plain
    two = {"dataframe_records": [{"a": "a", "b": "b"}]}
    answer = client.post("/v1/models/text:predict", json=two)
    assert (answer.status_code, "no column names" in answer.json()["detail"]) == (422, True)


def test_status_and_health_are_told_as_each_client_reads_them(client):
    assert client.get("/v1/models").json() == {"models": ["linear", "nameless", "text"]}
    reported = client.get("/v1/models/linear").json()
    assert reported["ready"] is True
    assert {each["version"] for each in reported["model_version_status"]} == {"1", "2"}
    assert all(each["state"] == "AVAILABLE" for each in reported["model_version_status"])
    one = client.get("/v1/models/linear/versions/1").json()
    assert [each["version"] for each in one["model_version_status"]] == ["1"]
    assert client.get("/v1/models/none").status_code == 404
    for path in ("/ping", "/health", "/health/vertex"):
        assert client.get(path).status_code == 200


def test_the_form_of_a_model_is_told_as_tensorflow_serving_tells_it(client):
    told = client.get("/v1/models/linear/metadata").json()
    assert told["model_spec"] == {"name": "linear", "signature_name": "", "version": "2"}
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert list(signature["inputs"]) == ["x"]
    tensor = signature["inputs"]["x"]
    assert tensor["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in tensor["tensor_shape"]["dim"]] == ["-1", str(FEATURES)]
    row = client.post("/v1/models/linear:predict", json={"instances": ROWS}).json()["predictions"][
        0
    ]
    assert set(signature["outputs"]) <= set(row)
    one = client.get("/v1/models/linear/versions/1/metadata").json()
    assert one["model_spec"]["version"] == "1"
    text = client.get("/v1/models/text/metadata").json()["metadata"]["signature_def"]
    (words,) = text["signature_def"]["serving_default"]["inputs"].values()
    assert words["dtype"] == "DT_STRING"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/models/none/metadata", "none"),
        ("/v1/models/linear/versions/9/metadata", "9"),
        ("/v1/models/linear/labels/stable", "'stable'"),
        ("/v1/models/linear/labels/stable/metadata", "/v1/models/linear/versions/N"),
    ],
)
def test_what_tensorflow_serving_would_not_find_is_answered_in_its_form(client, path, says):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert says in answer.json()["error"]


def test_requests_are_counted_under_the_template_of_their_route(client):
    client.post("/v1/models/linear:predict", json={"instances": ROWS})
    text = client.get("/metrics").text
    assert 'route="/v1/models/{model}:predict"' in text
    assert 'route="/invocations"' in text


def test_the_variables_of_vertex_ai_and_sagemaker_are_settings_that_ours_win_over():
    vertex = {
        "AIP_HTTP_PORT": "8080",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/7-predict",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/7",
    }
    found = read_settings({}, vertex)
    assert (found.port, found.health_route) == (8080, "/v1/endpoints/7")
    assert found.predict_route == "/v1/endpoints/7-predict"
    assert read_settings({"port": "1"}, vertex).port == 1
    assert read_settings({}, vertex | {"PRIORDIAL_PORT": "2"}).port == 2
    assert read_settings({}, {"SAGEMAKER_BIND_TO_PORT": "9"}).port == 9
    with pytest.raises(InvalidSetting, match="--predict-route"):
        read_settings({"predict_route": "no path"}, {})


READY = {"/ping", "/health", "/health/ready", "/v2/health/ready", "/v1/models/{model}"}
READY.add("/v2/models/{model}/ready")
SCORES = {
    "/predict",
    "/invocations",
    "/score",
    "/models/{model}/predict",
    "/v1/models/{model}:predict",
}


@pytest.mark.parametrize(("flag", "same"), [("predict_route", SCORES), ("health_route", READY)])
def test_a_further_path_may_not_be_one_of_another_meaning(client, flag, same):
    own = set(client.get("/openapi.json").json()["paths"]) - {"/score/here", "/health/vertex"}
    for path in own - same:
        filled = re.sub(r"\{\w+\}", "x", path)
        with pytest.raises(InvalidSetting, match=f"--{flag.replace('_', '-')} is '"):
            read_settings({flag: filled}, {})
    for path in same:
        read_settings({flag: re.sub(r"\{\w+\}", "x", path)}, {})
