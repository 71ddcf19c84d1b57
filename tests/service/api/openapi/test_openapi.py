"""/openapi.json describes every route, and real answers match it."""

import io
import json
import re

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from service.api.edge.errors import TITLES
from service.api.openapi.titles import OPERATIONS
from service.wire.tables.reader import TYPES
from tests.support.server import running
from tests.support.small_models import FEATURES, inputs, publish_model, publish_trio

ROWS = inputs(2)
JSON = {"instances": ROWS.tolist()}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_trio(models)
    publish_model(models, "unknown", class_counts=None)
    with (
        running(models, default_model="linear", max_body_mib=1) as server,
        httpx.Client(base_url=server.url, timeout=30) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").json()


def test_every_reference_leads_somewhere_and_every_schema_is_one(document):
    def walk(item):
        if isinstance(item, dict):
            if "$ref" in item:
                target = document
                for part in item["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in item.values():
                walk(value)
        elif isinstance(item, list):
            for value in item:
                walk(value)

    walk(document)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        (
            "/predict",
            {
                "application/json",
                "application/jsonlines",
                "application/x-npy",
                *TYPES,
                "image/jpeg",
                "image/png",
                "image/webp",
                "multipart/form-data",
            },
        ),
        (
            "/models/{model}/predict",
            {
                "application/json",
                "application/jsonlines",
                "application/x-npy",
                *TYPES,
                "image/jpeg",
                "image/png",
                "image/webp",
                "multipart/form-data",
            },
        ),
        ("/models/{model}/adjust", {"application/json"}),
        ("/v2/models/{model}/infer", {"application/json", "application/octet-stream"}),
        (
            "/v2/models/{model}/versions/{version}/infer",
            {"application/json", "application/octet-stream"},
        ),
    ],
)
def test_a_scoring_route_tells_its_bodies_parameters_and_errors(document, path, bodies):
    operation = document["paths"][path]["post"]
    assert set(operation["requestBody"]["content"]) == bodies
    assert {"200", "400", "404", "409", "413", "415", "422", "429", "503", "504"} <= set(
        operation["responses"]
    )
    names = {each["name"] for each in operation["parameters"]}
    assert {"tau", "prior", "top_k", "X-Request-Timeout-Ms"} <= names
    assert ("model" in names) == ("{model}" in path)
    for status, response in operation["responses"].items():
        assert response["description"]
        if status != "200":
            assert int(status) in {code for code, _ in TITLES.values()}


def test_every_error_of_every_route_has_a_schema(document):
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert response["content"], operation["operationId"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_operations_have_names_of_their_own(document):
    found = [op["operationId"] for ops in document["paths"].values() for op in ops.values()]
    assert len(found) == len(set(found))


def check(document, answer, template, method="post"):
    """A real answer against the schema of its route, status and content type."""
    reported = document["paths"][template][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].split(";")[0]
    schema = {**reported["content"][kind]["schema"], "components": document["components"]}
    if kind.endswith("json"):
        Draft202012Validator(schema).validate(answer.json())


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


TENSOR = {"name": "x", "shape": [2, FEATURES], "datatype": "FP32", "data": ROWS.ravel().tolist()}


@pytest.mark.parametrize(
    ("status", "template", "model", "request_"),
    [
        (200, "/predict", "", {"json": JSON}),
        (
            200,
            "/predict",
            "",
            {"content": npy(ROWS), "headers": {"content-type": "application/x-npy"}},
        ),
        (
            200,
            "/predict",
            "",
            {"json": {**JSON, "parameters": {"prior": {"target": [1, 2, 3, 4, 5]}}}},
        ),
        (200, "/models/{model}/predict", "text", {"json": {"instances": ["a"]}}),
        (400, "/predict", "", {"content": b"{"}),
        (404, "/models/{model}/predict", "none", {"json": JSON}),
        (404, "/predict", "", {"json": JSON, "params": {"prior": "none"}}),
        (406, "/predict", "", {"json": JSON, "headers": {"accept": "text/html"}}),
        (409, "/models/{model}/predict", "unknown", {"json": JSON, "params": {"tau": 1}}),
        (413, "/predict", "", {"content": bytes(2**20 + 1)}),
        (415, "/predict", "", {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (
            422,
            "/predict",
            "",
            {"json": {**JSON, "parameters": {"prior": {"target": [-1, 2, 3, 4, 5]}}}},
        ),
        (503, "/predict", "", {"json": JSON, "params": {"prior": "default@>=9"}}),
        (
            504,
            "/predict",
            "",
            {
                "json": {"instances": np.zeros((2000, FEATURES)).tolist()},
                "headers": {"x-request-timeout-ms": "1"},
            },
        ),
        (200, "/models/{model}/adjust", "linear", {"json": {**JSON, "settings": [{}, {"tau": 0}]}}),
        (400, "/models/{model}/adjust", "linear", {"json": JSON}),
        (200, "/v2/models/{model}/infer", "linear", {"json": {"inputs": [TENSOR], "id": "a"}}),
        (
            200,
            "/v2/models/{model}/infer",
            "linear",
            {"json": {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}},
        ),
        (400, "/v2/models/{model}/infer", "linear", {"json": {"inputs": []}}),
        (404, "/v2/models/{model}/infer", "none", {"json": {"inputs": [TENSOR]}}),
        (
            422,
            "/v2/models/{model}/infer",
            "linear",
            {"json": {"inputs": [{**TENSOR, "datatype": "FP64"}]}},
        ),
    ],
)
def test_a_real_answer_is_what_the_document_says(
    client, document, *, status, template, model, request_
):
    answer = client.post(template.replace("{model}", model), **request_)
    assert answer.status_code == status, answer.text
    check(document, answer, template)


@pytest.mark.parametrize(
    ("status", "template", "path"),
    [
        (200, "/v2", "/v2"),
        (200, "/v2/health/live", "/v2/health/live"),
        (200, "/v2/models/{model}", "/v2/models/linear"),
        (404, "/v2/models/{model}", "/v2/models/none"),
        (404, "/v2/models/{model}/versions/{version}", "/v2/models/linear/versions/x"),
        (200, "/models", "/models"),
        (404, "/models/{model}", "/models/none"),
        (422, "/models/{model}", "/models/linear?version=x"),
    ],
)
def test_so_is_that_of_a_route_that_only_reads(client, document, status, template, path):
    answer = client.get(path)
    assert answer.status_code == status
    check(document, answer, template, "get")


def test_the_examples_are_of_a_model_that_serves(client, document):
    operation = document["paths"]["/models/{model}/predict"]["post"]
    (name,) = [p["schema"]["examples"] for p in operation["parameters"] if p["name"] == "model"]
    assert name[0] == "linear"
    (example,) = document["components"]["schemas"]["PredictRequest"]["examples"]
    assert client.post("/models/linear/predict", json=example).status_code == 200
    (example,) = document["components"]["schemas"]["AdjustRequest"]["examples"]
    assert client.post("/models/linear/adjust", json=example).status_code == 200


def test_every_operation_has_a_title_in_words_and_every_group_a_description(document):
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            words = operation["summary"].split()
            assert len(words) > 2, f"give {method} {path} a title in openapi/titles.py"
            assert set(operation["tags"]) <= described


def test_every_title_is_of_an_operation_that_is_there(document):
    there = {f"{m} {path}" for path, found in document["paths"].items() for m in found}
    assert sorted(set(OPERATIONS) - there) == []


def test_the_page_of_the_document_loads_only_files_of_this_service(client):
    page = client.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "console/vendor/swagger-ui.js" in loaded
    for file in loaded:
        assert client.get(f"/{file.removeprefix('.')}").status_code == 200


def test_preview_takes_by_the_document_every_reference_that_the_service_takes(document):
    from service.priors.revisions import parse_prior_reference

    body = document["paths"]["/priors/{name}/preview"]["post"]["requestBody"]
    schema = {**body["content"]["application/json"]["schema"], "components": document["components"]}
    for reference in ("default", "a.b-c@7", "default@>=8", "default@9007199254740991"):
        parse_prior_reference(reference)
        Draft202012Validator(schema).validate({"prior": reference})
    for reference in ("Default", "a@", "a@-1", "a@12345678901234567", "@1"):
        assert not Draft202012Validator(schema).is_valid({"prior": reference})


def test_a_problem_is_described_once(document):
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if "rror" in name] == []
    assert set(schemas["OipProblem"]["properties"]) == {*schemas["Problem"]["properties"], "error"}
