"""A real service answers every bad request with a problem that names the fault, and goes on."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.server import running
from tests.support.small_models import CLASSES, FEATURES, inputs, publish_trio

ROW = [0.0] * FEATURES
GOOD = {"instances": [ROW]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_trio(models)
    with running(models, default_model="linear", max_body_mib=2, max_queued_rows=100) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


@pytest.fixture
def refused(client):
    """POST a body: the problem, checked for its form; and the service still answers afterwards."""

    def post(path, status, message, **request):
        answer = client.post(path, **request)
        problem = answer.json()
        assert answer.status_code == status, problem
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["status"] == status
        assert problem["type"].startswith("/problems/")
        assert problem["title"]
        assert message in problem["detail"], problem["detail"]
        assert client.post("/predict", json=GOOD).status_code == 200
        return answer

    return post


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def png(width=3, height=2):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b"", "the body is empty"),
        (400, b"[" * 10**6, "the body is not JSON"),
        (400, b'{"instances": ' + b"[" * 10**5, "the body is not JSON"),
        (
            400,
            b'{"instances": [[NaN]]}',
            "'NaN' is not a JSON number; write null for a missing value",
        ),
        (400, b'{"instances": [[-Infinity]]}', "'-Infinity' is not a JSON number; write null"),
        (400, b'{"instances": [[1e999]]}', "the body is not JSON"),
        (400, b"\xff\xfe", "the body is not JSON"),
        (400, b"[]", "the body is a list; expected an object"),
        (400, b"7", "the body is 7; expected an object"),
        (400, b"{}", "the body has no 'instances'"),
        (422, b'{"instances": []}', "there are no instances"),
        (422, b'{"instances": {}}', "instances are an object; expected a list"),
        (422, b'{"instances": null}', "instances are null; expected a list"),
        (422, b'{"instances": [[1, 2]]}', "the input has shape [1, 2]; the model takes [batch, 6]"),
        (
            422,
            b'{"instances": [[0,0,0,0,0,"x"]]}',
            "instance 0 holds 'x' in column 5; expected numbers",
        ),
        (422, b'{"instances": [[0,0,0,0,0,1e39]]}', "instance 0 holds NaN or infinity"),
        (422, b'{"instances": [{"b64": "aGk="}]}', "model 'linear' takes tensor input, not images"),
        (400, b'{"instances": [[0]], "extra": 1}', "unknown member 'extra'"),
        (400, b'{"instances": [[0]], "parameters": {"taU": 1}}', "unknown parameter 'taU'"),
        (
            422,
            b'{"instances": [[0]], "parameters": [1]}',
            "parameters are a list; expected an object",
        ),
    ],
)
def test_a_json_body_that_is_wrong(refused, status, body, message):
    refused("/predict", status, message, content=body, headers=JSON)


@pytest.mark.parametrize(
    ("status", "parameters", "message"),
    [
        (422, {"tau": -1}, "tau is -1.0; expected 0 or a number from 1e-06 to 10"),
        (422, {"tau": 1e-7}, "tau is 1e-07"),
        (422, {"tau": 11}, "tau is 11.0"),
        (422, {"tau": False}, "tau is false; expected a number"),
        (422, {"tau": "1"}, "tau is '1'; expected a number"),
        (422, {"top_k": 0}, "top_k is 0; expected 1 to 5"),
        (422, {"top_k": CLASSES + 1}, "top_k is 6; expected 1 to 5"),
        (422, {"top_k": 1.5}, "top_k is 1.5; expected an integer"),
        (404, {"version": 7}, "model 'linear' has no version 7 loaded; it has 1"),
        (
            404,
            {"prior": "nowhere"},
            "there is no prior 'nowhere'; expected one of default, uniform, training",
        ),
        (404, {"prior": "default@7"}, "prior 'default' has no revision 7"),
        (503, {"prior": "default@>=7"}, "asks for at least 7"),
        (422, {"prior": "UPPER case"}, "'UPPER case' is not a prior"),
        (422, {"prior": 7}, "prior is 7; expected a name or an object"),
        (
            422,
            {"context": dict.fromkeys("abcdefghi", "x")},
            "context has 9 keys; expected at most 8",
        ),
        (422, {"context": {"": "x"}}, "context has a key of 0 characters; expected 1 to 128"),
        (422, {"context": {"site": "x" * 129}}, "expected texts of at most 128 characters"),
        (422, {"prior": {"target": [1, 1, 1, 1]}}, "has 4 entries; expected 5, one for each class"),
        (422, {"prior": {"label_frequencies": [1, 0, 1, 1, 1]}}, "'class-1' has label frequency 0"),
        (
            422,
            {"prior": {"label_frequencies": [1, -1, 1, 1, 1]}},
            "'class-1' has label frequency -1",
        ),
        (422, {"prior": {"target": {"lynx": 1}}}, "unknown class 'lynx'"),
        (422, {"prior": {"target": [0, 0, 0, 0, 0]}}, "all entries are 0"),
        (422, {"prior": {"target": [True, 1, 1, 1, 1]}}, "expected a number of at least 0"),
        (422, {"prior": {"targets": "uniform"}}, "targets: unknown member"),
    ],
)
def test_parameters_in_the_body_that_are_wrong(refused, status, parameters, message):
    answer = refused("/predict", status, message, json={**GOOD, "parameters": parameters})
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("status", "query", "message"),
    [
        (422, "tau=-1", "tau is -1.0"),
        (422, "tau=nan", "tau is 'nan'; expected a number"),
        (422, "tau=false", "tau is 'false'; expected a number"),
        (422, "tau=", "tau is ''"),
        (400, "tau=1&tau=2", "tau is given twice"),
        (400, "temperature=1", "unknown parameter 'temperature'"),
        (422, "top_k=many", "top_k is 'many'"),
        (422, "top_k=99999999999999999999", "expected a whole number of 1 to 9 digits"),
        (422, "tau=1e309", "tau is inf"),
        (422, "tau=0x1", "tau is '0x1'; expected a number"),
        (422, "context=:b", "context has a key of 0 characters; expected 1 to 128"),
        (404, "version=2", "has no version 2"),
        (404, "prior=x", "there is no prior 'x'"),
        (400, "prior={", "the inline prior is not JSON"),
        (400, "%ff=1", "query string"),
    ],
)
def test_a_query_that_is_wrong(refused, status, query, message):
    refused(f"/predict?{query}", status, message, json=GOOD)


@pytest.mark.parametrize("text", ["1_0", "1.0", "%201", "+1", "٧", "9" * 5000])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/linear?version=", "version"),
        ("/models/linear/report?version=", "version"),
        ("/priors/default/revisions?limit=", "limit"),
        ("/priors/default/revisions?before=", "before"),
        ("/priors/default?revision=", "revision"),
        ("/priors/default/shift?points=", "points"),
        ("/v1/models/linear/versions/", "version"),
    ],
)
def test_a_whole_number_of_a_query_or_path_is_written_in_digits(client, path, name, text):
    answer = client.get(path + text.replace("+", "%2B"))
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["field"] == name
    assert "expected a whole number" in fault["message"]


def test_a_parameter_given_twice_with_different_values_is_told(refused):
    body = {**GOOD, "parameters": {"tau": 2}}
    refused(
        "/predict?tau=1", 400, "tau is given twice: 1.0 in the query and 2.0 in the body", json=body
    )


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b"", "the body is empty"),
        (400, b"x", "not a .npy file"),
        (400, npy(np.array([{"a": 1}], object)), "dtype '|O', which is refused"),
        (400, npy(np.zeros((2, FEATURES)))[:-1], "bytes of data"),
        (422, npy(np.zeros((2, FEATURES + 1))), "the input has shape [2, 7]"),
        (422, npy(np.full((2, FEATURES), np.nan)), "instance 0 holds NaN or infinity"),
        (422, npy(np.zeros((0, FEATURES))), "there are no instances"),
        (422, npy(np.array(["a"] * FEATURES).reshape(1, -1)), "the input is text"),
        (413, npy(np.zeros((101, FEATURES), np.float32)), "101 instances"),
        (413, npy(np.zeros((50_000, FEATURES))), "at most 2097152 are accepted"),
    ],
)
def test_a_npy_body_that_is_wrong(refused, status, body, message):
    refused(
        "/predict", status, message, content=body, headers={"content-type": "application/x-npy"}
    )


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (422, "image/png", png()[:-30], "image 0 is truncated"),
        (422, "image/png", b"not an image", "image 0 is not a JPEG, PNG or WebP image"),
        (400, "image/jpeg", b"", "the body is empty"),
        (400, "multipart/form-data", b"x", "names no boundary"),
        (400, "multipart/form-data; boundary=b", b"--b\r\n", "ends before its last boundary"),
        (400, "multipart/form-data; boundary=b", b"--b--\r\n", "holds no file"),
        (415, "text/plain", b"x", "content type 'text/plain' is not accepted"),
        (415, "application/x-www-form-urlencoded", b"a=1", "expected application/json"),
    ],
)
def test_a_body_for_a_model_of_images_that_is_wrong(refused, status, kind, body, message):
    refused("/models/image/predict", status, message, content=body, headers={"content-type": kind})


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([{"b64": "%%"}], "instance 0 is '%%', which is not base64; expected A-Z"),
        (["https://127.0.0.1/a.png"], "not base64; it is a URL, which the service"),
        ([{"b64": 7}], 'instance 0 is an object; expected {"b64": "…"}'),
        ([{"b65": "aGk="}], "image 0 is not a JPEG, PNG or WebP image"),
        ([{"b65": "aGk=", "b": 1}], "instance 0 is an object; expected"),
        ([{"b64": base64.b64encode(png()).decode()}, [1]], "instance 1 is a list; expected"),
        ([{"b64": base64.b64encode(png()[:-20]).decode()}], "image 0 is truncated"),
        (["a string"], "instance 0 is 'a string', which is not base64; expected A-Z"),
    ],
)
def test_json_instances_for_a_model_of_images_that_are_wrong(refused, instances, message):
    refused("/models/image/predict", 422, message, json={"instances": instances})


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([7], "instance 0 holds 7; expected a string"),
        (["a", None], "instance 1 holds null"),
        ([["a", "b"]], "instance 0 holds a list"),
    ],
)
def test_instances_for_a_model_of_text_that_are_wrong(refused, instances, message):
    refused("/models/text/predict", 422, message, json={"instances": instances})


def test_other_ways_to_ask_wrongly(refused, client):
    refused(
        "/models/none/predict",
        404,
        "no model 'none'; expected one of image, linear, text",
        json=GOOD,
    )
    refused(
        "/predict", 406, "answers are application/json", json=GOOD, headers={"accept": "text/html"}
    )
    refused(
        "/predict",
        400,
        "X-Request-Timeout-Ms is 'soon'",
        json=GOOD,
        headers={"x-request-timeout-ms": "soon"},
    )
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        answer = client.request(method, "/predict")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for path in ("/priors", "/models/linear/rollout"):
        answer = client.post(path)
        assert answer.status_code == 405
        assert answer.json()["detail"].endswith(f"use {answer.headers['allow']}")
        assert "PUT" in answer.headers["allow"]


def test_a_prior_is_put_whole_or_refused_with_every_wrong_field(client):
    for body, field in [
        ({"label_frequencies": [1, 0, 1, 1, 1]}, "label_frequencies.class-1"),
        ({"label_frequencies": [1, 1]}, "label_frequencies"),
        ({"target": {"lynx": 1}}, "target.lynx"),
        ({"target": [0] * 5}, "target"),
        ({"smoothing": False}, "smoothing"),
    ]:
        answer = client.put("/models/linear/priors/default", json=body)
        assert answer.status_code == 422, answer.text
        assert field in [error["field"] for error in answer.json()["errors"]]
    for body in (b"", b"[" * 10**6, b'{"target": [NaN]}'):
        answer = client.put("/priors", content=body, headers=JSON)
        assert answer.status_code == 400, answer.text
    assert client.post("/predict", json=GOOD).json()["prior"] == {"name": "default", "revision": 0}


# ---- and what is right


def test_every_kind_of_body_gives_the_same_answer(client):
    x = inputs(3)
    answers = [
        client.post("/predict?top_k=5", json={"instances": x.tolist()}),
        client.post(
            "/predict?top_k=5", content=npy(x), headers={"content-type": "application/x-npy"}
        ),
        client.post(
            "/predict?top_k=5",
            content=npy(np.asfortranarray(x.astype(">f8"))),
            headers={"content-type": "application/x-npy"},
        ),
    ]
    for answer in answers[1:]:
        assert answer.json() == answers[0].json()


def test_images_may_come_alone_in_a_form_or_in_json(client):
    url = "/models/image/predict"
    form = client.post(
        url,
        files=[("a", ("a.png", png())), ("b", ("b.png", png(9, 6)))],
        data={"tau": "0.5", "prior": json.dumps({"target": {"red": 1, "green": 1, "blue": 0}})},
    ).json()
    assert (form["tau"], form["prior"]["name"]) == (0.5, None)
    assert [p["top"][-1] for p in form["predictions"]] == [
        {"label": "blue", "index": 2, "probability": 0.0}
    ] * 2
    parameters = {"tau": 0.5, "prior": {"target": [1, 1, 0]}}
    instances = [{"b64": base64.b64encode(p).decode()} for p in (png(), png(9, 6))]
    body = {"instances": instances, "parameters": parameters}
    assert client.post(url, json=body).json() == form
    body["instances"] = [{"image_bytes": each} for each in instances]
    assert client.post("/v1/models/image:predict", json=body).json() == form
    texts = [each["b64"] for each in instances]
    for rows in (texts, [{"image": each} for each in texts], [texts[0], instances[1]]):
        assert client.post(url, json={**body, "instances": rows}).json() == form
    for rows in (
        {"input_data": {"columns": ["image"], "index": [0, 1], "data": texts}},
        {"input_data": texts},
        {"dataframe_split": {"columns": [0], "data": [[each] for each in texts]}},
        {"dataframe_records": [{"image": each} for each in texts]},
        {"inputs": {"image": texts}},
    ):
        made = client.post("/v1/models/image:predict", json={**rows, "parameters": parameters})
        assert made.json() == form, rows
    pixels = np.asarray(Image.open(io.BytesIO(png()))).tolist()
    single = client.post(url, json={"instances": [pixels], "parameters": parameters}).json()
    assert single["predictions"] == form["predictions"][:1]
    query = {"tau": 0.5, "prior": '{"target": [1, 1, 0]}'}
    raw = client.post(url, params=query, content=png(), headers={"content-type": "image/png"})
    assert raw.json() == single


def test_text_comes_as_strings(client):
    answer = client.post(
        "/models/text/predict?tau=0", json={"instances": ["b", "unknown", "ö"]}
    ).json()
    assert [p["label"] for p in answer["predictions"]] == ["x", "x", "y"]


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(max_size=60)
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["instances", "parameters", "tau", "prior", "top_k", "b64", "target"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    kind=st.sampled_from(
        [
            "application/json",
            "application/x-npy",
            "image/png",
            "multipart/form-data; boundary=b",
            "",
            "\xff",
        ]
    ),
    model=st.sampled_from(["linear", "text", "image", "none", "%00", "ü"]),
    query=st.sampled_from(
        ["", "?tau=0", "?tau=1&top_k=2", "?prior=uniform", "?prior=%7B%7D", "?%", "?tau=1e400"]
    ),
)
def test_no_request_whatever_makes_the_service_fail(client, body, kind, model, query):
    answer = client.post(
        f"/models/{model}/predict{query}",
        content=body,
        headers={"content-type": kind.encode("latin-1")},
    )
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code != 200:
        assert answer.json()["detail"]
