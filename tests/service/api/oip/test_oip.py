"""The Open Inference Protocol V2 as its clients know it: tritonclient, unmodified, is the judge."""

import base64
import gzip
import io
import json
import re
import zlib

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from tests.support.server import running
from tests.support.small_models import (
    CLASSES,
    COUNTS,
    FEATURES,
    TEXT_LOGITS,
    inputs,
    linear_model,
    publish_model,
    publish_trio,
    weights,
)

DECISIONS = ["decision", "decision_index", "expected_cost"]
ALL = [
    "probabilities",
    "adjusted_logits",
    "logits",
    "class_index",
    "class_probability",
    "class_name",
]
BOTH = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_trio(models)
    publish_model(models, "linear", temperature=2.0)  # version 2
    publish_model(models, "unknown", class_counts=None)
    publish_model(models, "many", model=linear_model(classes=100), classes=100, class_counts=None)
    taken = linear_model()  # a model whose own input bears the name of an optional one
    taken.graph.input[0].name = taken.graph.node[0].input[0] = "tau"
    spec = {"name": "tau", "kind": "tensor", "shape": [None, FEATURES], "dtype": "float32"}
    publish_model(models, "taken", model=taken, input=spec)
    broken = models / "linear" / "3"
    broken.mkdir()
    with running(models, max_body_mib=2) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def tensor(name, values, datatype, *, binary=True):
    found = InferInput(name, list(values.shape), datatype)
    return found.set_data_from_numpy(values, binary_data=binary)


def x_of(rows, *, binary=True):
    return tensor("x", rows, "FP32", binary=binary)


def want(*names, binary=True, **more):
    return [InferRequestedOutput(name, binary_data=binary, **more) for name in names]


def formula(x, tau, *, source=COUNTS, target=None, temperature=2.0):
    """(logits, adjusted logits, probabilities) of linear_model in float64."""
    w, b = weights()
    logits = x.astype(np.float64) @ w + b
    adjusted = adjust_logits(
        logits,
        log_source_prior=log_source_prior(source, loss_tau=0),
        log_target_prior=log_target_prior(np.ones(CLASSES) if target is None else target),
        tau=tau,
        temperature=temperature,
    )
    return logits, adjusted, softmax(adjusted)


# ---- metadata, health, repository


def test_the_server_and_its_models_describe_themselves(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("linear", "9")
    assert not client.is_model_ready("none")
    about = client.get_server_metadata()
    assert about["name"] == "priordial"
    assert {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
    } <= set(about["extensions"])
    found = client.get_model_metadata("linear")
    assert (found["name"], found["versions"], found["platform"]) == (
        "linear",
        ["2", "1"],
        "onnx_onnxv1",
    )
    assert [(i["name"], i["datatype"], i["shape"]) for i in found["inputs"]] == [
        ("x", "FP32", [-1, FEATURES]),
        ("tau", "FP32", [-1, 1]),
        ("prior", "BYTES", [-1, 1]),
    ]
    assert [o["name"] for o in found["outputs"]] == [*ALL, *DECISIONS]
    assert client.get_model_metadata("linear", "1") == found
    text = client.get_model_metadata("text")["inputs"][0]
    assert (text["datatype"], text["shape"]) == ("BYTES", [-1, 1])
    assert [i["name"] for i in client.get_model_metadata("taken")["inputs"]] == ["tau", "prior"]


def test_a_model_has_a_configuration_as_tritons_clients_know_it(client):
    found = client.get_model_config("linear", "1")
    assert (found["name"], found["platform"], found["backend"]) == (
        "linear",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert found["version_policy"] == {"specific": {"versions": [1]}}
    assert found["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [FEATURES]},
        {"name": "tau", "data_type": "TYPE_FP32", "dims": [1], "optional": True},
        {"name": "prior", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    ]
    assert found["output"][0] == {
        "name": "probabilities",
        "data_type": "TYPE_FP32",
        "dims": [CLASSES],
    }
    assert [each["name"] for each in found["output"]] == [*ALL, *DECISIONS]
    rows = found["max_batch_size"]
    assert client.infer("linear", [x_of(inputs(rows))]).as_numpy("probabilities").shape[0] == rows
    with pytest.raises(InferenceServerException, match="at most") as refused:
        client.infer("linear", [x_of(inputs(rows + 1))])
    assert refused.value.status() == "413"
    assert client.get_model_config("text")["input"][0]["data_type"] == "TYPE_STRING"
    assert client.get_model_config("image")["input"][0] == {
        "name": "pixels",
        "data_type": "TYPE_UINT8",
        "dims": [2, 3, 3],
    }


def test_the_repository_tells_every_version_and_why_one_does_not_serve(client, http):
    found = {(i["name"], i["version"]): i for i in client.get_model_repository_index()}
    assert found["linear", "1"]["state"] == found["linear", "2"]["state"] == "READY"
    assert found["linear", "3"]["state"] == "UNAVAILABLE"
    assert "model.json" in found["linear", "3"]["reason"]
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {i["state"] for i in ready} == {"READY"}
    assert len(ready) == len(found) - 1


def test_a_model_can_be_unloaded_and_loaded_again(client):
    assert client.is_model_ready("image")
    client.unload_model("image")
    assert not client.is_model_ready("image")
    reasons = {i["name"]: i["reason"] for i in client.get_model_repository_index()}
    assert reasons["image"] == "unloaded"
    with pytest.raises(InferenceServerException, match="no model 'image' is loaded"):
        client.unload_model("image")
    client.load_model("image")
    assert client.is_model_ready("image")
    with pytest.raises(InferenceServerException, match="no model 'none' in the repository"):
        client.load_model("none")
    with pytest.raises(InferenceServerException, match=r"model\.json"):
        client.load_model("linear")  # its newest version is broken, and the others go on
    assert client.is_model_ready("linear", "2")
    with pytest.raises(InferenceServerException, match="parameter 'config' is not supported"):
        client.load_model("image", config="{}")


# ---- inference


@BOTH
def test_every_output_equals_the_formula(client, binary):
    x = inputs(7)
    answer = client.infer(
        "linear",
        [x_of(x, binary=binary)],
        outputs=want(*ALL, binary=binary),
        request_id="mine",
        parameters={"tau": 0.5, "prior": "training", "top_k": 3},
    )
    logits, adjusted, probabilities = formula(x, 0.5, target=COUNTS)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "mine",
        "linear",
        "2",
    )
    assert response["parameters"] == {"tau": 0.5, "prior": "training", "prior_revision": 0}
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("adjusted_logits"), adjusted, atol=1e-4)
    np.testing.assert_allclose(answer.as_numpy("logits"), logits, atol=1e-4)
    order = np.argsort(-probabilities, axis=1)[:, :3]
    np.testing.assert_array_equal(answer.as_numpy("class_index"), order)
    np.testing.assert_allclose(
        answer.as_numpy("class_probability"), np.take_along_axis(probabilities, order, 1), atol=1e-5
    )
    names = [
        [text.decode() if binary else text for text in row] for row in answer.as_numpy("class_name")
    ]
    assert names == [[f"class-{i}" for i in row] for row in order]


def test_probabilities_are_the_default_and_binary_ones_at_that(client, http):
    x = inputs(2)
    answer = client.infer("linear", [x_of(x)])
    assert [o["name"] for o in answer.get_response()["outputs"]] == ["probabilities"]
    assert "data" not in answer.get_output("probabilities")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), formula(x, 1)[2], atol=1e-5)
    body = {
        "inputs": [{"name": "x", "shape": [2, FEATURES], "datatype": "FP32", "data": x.tolist()}]
    }
    plain = http.post("/v2/models/linear/infer", json=body).json()
    assert [(o["name"], o["shape"]) for o in plain["outputs"]] == [("probabilities", [2, CLASSES])]
    np.testing.assert_allclose(
        np.reshape(plain["outputs"][0]["data"], (2, CLASSES)), formula(x, 1)[2], atol=1e-5
    )


def test_a_version_can_be_pinned(client):
    x = inputs(2)
    for version, temperature in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        answer = client.infer("linear", [x_of(x)], model_version=version)
        assert answer.get_response()["model_version"] == (version or "2")
        wanted = formula(x, 1, temperature=temperature)[2]
        np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, atol=1e-5)
    with pytest.raises(InferenceServerException, match="has no version 9 loaded"):
        client.infer("linear", [x_of(x)], model_version="9")


@BOTH
def test_each_row_may_have_a_tau_and_a_prior_of_its_own(client, binary):
    x = inputs(6)
    taus = np.array([0, 0.5, 1, 1, 2.5, 10], np.float32).reshape(-1, 1)
    inline = json.dumps({"target": [0, 0, 1, 1, 2]})
    priors = ["uniform", "training", inline, "default", inline, "training"]
    answer = client.infer(
        "linear",
        [
            x_of(x, binary=binary),
            tensor("tau", taus, "FP32", binary=binary),
            tensor("prior", np.array(priors, object).reshape(-1, 1), "BYTES", binary=binary),
        ],
        outputs=want("probabilities", "class_index", binary=binary),
    )
    targets = {
        "uniform": np.ones(5),
        "default": np.ones(5),
        "training": COUNTS,
        inline: [0, 0, 1, 1, 2],
    }
    found = answer.as_numpy("probabilities")
    for row, (tau, prior) in enumerate(zip(taus[:, 0], priors, strict=True)):
        wanted = formula(x[row : row + 1], float(tau), target=targets[prior])[2]
        np.testing.assert_allclose(found[row], wanted[0], atol=1e-5)
        assert answer.as_numpy("class_index")[row, 0] == wanted[0].argmax()
    expected_message = answer.get_response()["parameters"]
    assert expected_message == {"priors": "uniform@0, training@0, inline@0, default@0"}


def test_a_row_prior_goes_with_a_common_tau_and_the_other_way_round(client):
    x = inputs(2)
    column = tensor("prior", np.array([["uniform"], ["training"]], object), "BYTES")
    answer = client.infer("linear", [x_of(x), column], parameters={"tau": 1.5})
    assert answer.get_response()["parameters"]["tau"] == 1.5
    wanted = [formula(x[:1], 1.5)[2][0], formula(x[1:], 1.5, target=COUNTS)[2][0]]
    np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, atol=1e-5)
    taus = tensor("tau", np.array([[0.0], [3.0]], np.float32), "FP32")
    answer = client.infer("linear", [x_of(x), taus], parameters={"prior": "training"})
    wanted = [formula(x[:1], 0)[2][0], formula(x[1:], 3, target=COUNTS)[2][0]]
    np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, atol=1e-5)


def test_requests_with_different_settings_share_batches(server, client, http):
    x = inputs(1)
    with InferenceServerClient(server.url.removeprefix("http://"), concurrency=32) as many:
        sent = [
            (
                tau,
                many.async_infer(
                    "many",
                    [x_of(x)],
                    parameters={
                        "tau": tau,
                        "prior": json.dumps({"label_frequencies": list(range(1, 101))}),
                    },
                ),
            )
            for tau in np.linspace(0, 3, 200)
        ]
        for tau, pending in sent:
            found = pending.get_result().as_numpy("probabilities")
            alone = client.infer(
                "many",
                [x_of(x)],
                parameters={
                    "tau": tau,
                    "prior": json.dumps({"label_frequencies": list(range(1, 101))}),
                },
            )
            np.testing.assert_allclose(found, alone.as_numpy("probabilities"), atol=1e-5)
    assert re.search(r'priordial_batch_rows_count\{model="many"\}', http.get("/metrics").text)


@BOTH
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_text_model_takes_bytes(client, binary, shape):
    words = np.array(["b", "ö", "unknown", ""], object).reshape(shape)
    answer = client.infer(
        "text",
        [tensor("words", words, "BYTES", binary=binary)],
        outputs=want("logits", "class_name"),
        parameters={"tau": 0, "top_k": 1},
    )
    np.testing.assert_array_equal(answer.as_numpy("logits"), TEXT_LOGITS[[2, 3, 0, 0]])
    assert answer.as_numpy("class_name").ravel().tolist() == [b"x", b"y", b"x", b"x"]


def test_texts_that_are_said_to_be_base64_are_decoded(http):
    """MLServer's clients write BYTES so; their characters were scored as the text."""
    words = ["b", "ö"]

    def answer(data, **parameters):
        given = {"name": "words", "datatype": "BYTES", "shape": [2, 1], "data": data}
        body = {"inputs": [{**given, "parameters": parameters}]}
        return http.post("/v2/models/text/infer", json=body)

    encoded = [base64.b64encode(word.encode()).decode() for word in words]
    found = answer(encoded, content_type="base64")
    assert found.status_code == 200, found.text
    assert found.json() == answer(words, content_type="str").json()
    refused = answer(["b", "ö"], content_type="base64")
    assert refused.status_code == 400
    assert "element 0 is 'b', which is not base64" in refused.json()["error"]


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (2, 3, 3)).astype(np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_of_images_takes_tensors_and_encoded_images(client):
    pictures = [picture(0), picture(1)]
    as_tensor = tensor("pixels", np.stack(pictures), "UINT8")
    encoded = tensor("pixels", np.array([[png(p)] for p in pictures], object), "BYTES")
    answers = [
        client.infer("image", [each], outputs=want("logits")).as_numpy("logits")
        for each in (as_tensor, encoded)
    ]
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(answers[0], [p.mean(axis=(0, 1)) / 255 for p in pictures], atol=1e-6)
    broken = tensor("pixels", np.array([[png(pictures[0])[:-20]]], object), "BYTES")
    with pytest.raises(InferenceServerException, match="image 0 is truncated"):
        client.infer("image", [broken])


@BOTH
def test_classification_tells_value_index_and_label(client, binary):
    x = inputs(3)
    logits, adjusted, probabilities = formula(x, 1)
    for name, values in [
        ("probabilities", probabilities),
        ("adjusted_logits", adjusted),
        ("logits", logits),
    ]:
        answer = client.infer("linear", [x_of(x)], outputs=want(name, binary=binary, class_count=2))
        assert answer.get_output(name)["datatype"] == "BYTES"
        for row, line in zip(values, answer.as_numpy(name), strict=True):
            assert len(line) == 2
            for index, text in zip(np.argsort(-row)[:2], line, strict=True):
                value, at, label = (text.decode() if binary else text).split(":")
                assert (int(at), label) == (index, f"class-{index}")
                assert float(value) == pytest.approx(row[index], abs=1e-4)
    answer = client.infer("linear", [x_of(x)], outputs=want("probabilities", class_count=99))
    assert answer.as_numpy("probabilities").shape == (3, CLASSES)


def test_more_classes_than_the_graph_ranks_are_ranked_all_the_same(client):
    outputs = want("class_index", "class_probability", "probabilities")
    answer = client.infer("many", [x_of(inputs(3))], outputs=outputs, parameters={"top_k": 90})
    index, chance, all_of_them = (answer.as_numpy(o.name()) for o in outputs)
    assert index.shape == (3, 90)
    np.testing.assert_array_equal(np.take_along_axis(all_of_them, index, 1), chance)
    assert (np.diff(chance, axis=1) <= 0).all()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(client, http, algorithm):
    x = inputs(2)
    answer = client.infer(
        "linear",
        [x_of(x)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(answer.as_numpy("probabilities"), formula(x, 1)[2], atol=1e-5)
    bomb = (gzip if algorithm == "gzip" else zlib).compress(bytes(3 * 2**20))
    refused = http.post("/predict", content=bomb, headers={"content-encoding": algorithm})
    assert refused.status_code == 413
    cut = http.post("/predict", content=bomb[:-5], headers={"content-encoding": algorithm})
    assert cut.status_code in {400, 413}
    other = http.post("/predict", content=b"x", headers={"content-encoding": "br"})
    assert (other.status_code, other.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")


@pytest.mark.parametrize("count", [10, 5000])  # the latter are read in a thread
def test_texts_for_a_model_of_numbers_are_refused_however_many_they_are(http, count):
    entry = {"name": "x", "datatype": "BYTES", "shape": [count, 1]}
    entry["parameters"] = {"binary_data_size": 4 * count}
    head = json.dumps({"inputs": [entry]}).encode()
    answer = http.post(
        "/v2/models/linear/infer",
        content=head + bytes(4 * count),
        headers={
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head)),
        },
    )
    assert answer.status_code == 422
    assert "input 'x' is BYTES; the model takes FP32" in answer.json()["detail"]


def test_json_of_a_type_for_arrays_is_read_however_long_it_is(http):
    rows = inputs(1500)
    entry = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist()}
    body = json.dumps({"inputs": [entry], "outputs": [{"name": "class_index"}]}).encode()
    assert len(body) > 128 * 1024
    answers = [
        http.post("/v2/models/linear/infer", content=body, headers={"content-type": kind})
        for kind in ("application/octet-stream", "application/json")
    ]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_a_raw_request_is_one_row_and_is_answered_in_binary(http):
    x = inputs(1)
    raw = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    answer = http.post("/v2/models/linear/infer?tau=0.5", content=x.tobytes(), headers=raw)
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["parameters"]["tau"] == 0.5
    found = np.frombuffer(answer.content[length:], np.float32)
    np.testing.assert_allclose(found, formula(x, 0.5)[2][0], atol=1e-5)
    for model, body in [
        ("text", "ö".encode()),
        ("image", png(picture(0))),
        ("image", picture(0).tobytes()),
    ]:
        assert http.post(f"/v2/models/{model}/infer", content=body, headers=raw).status_code == 200
    refused = http.post("/v2/models/linear/infer", content=x.tobytes()[:-1], headers=raw)
    assert refused.status_code == 400
    assert "expected one row of" in refused.json()["error"]


def test_a_text_that_is_too_long_is_refused_before_it_is_decoded(http):
    raw = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    body = b"\xff" * 80_001
    refused = http.post("/v2/models/text/infer", content=body, headers=raw)
    expected_message = "instance 0 is a text of 80,001 bytes; expected at most 20,000 characters"
    assert (refused.status_code, refused.json()["error"]) == (422, expected_message)
    given = {"name": "words", "datatype": "BYTES", "shape": [1, 1]}
    head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": 80_005}}]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    whole = head + (80_001).to_bytes(4, "little") + body
    refused = http.post("/v2/models/text/infer", content=whole, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (422, expected_message)


def test_an_optional_input_gives_way_to_a_models_own_of_the_same_name(client):
    x = inputs(2)
    answer = client.infer("taken", [tensor("tau", x, "FP32")], parameters={"tau": 0.5})
    wanted = formula(x, 0.5, temperature=1.0)[2]
    np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, atol=1e-5)


def test_a_timeout_is_a_deadline_in_microseconds(client):
    x = inputs(1)
    assert client.infer("linear", [x_of(x)], timeout=10_000_000).get_response()["outputs"]
    with pytest.raises(InferenceServerException, match="deadline") as refused:
        client.infer("linear", [x_of(x)], timeout=1)
    assert refused.value.status() == "504"


# ---- errors


def entry(**changes):
    found = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.0] * FEATURES}
    return {k: v for k, v in {**found, **changes}.items() if v is not None}


def request(*entries, **more):
    return {"inputs": list(entries), **more}


@pytest.mark.parametrize(
    ("status", "body", "expected_message"),
    [
        (400, {}, "the request has no inputs"),
        (400, [], "the body is a list; expected an object"),
        (400, {"inputs": []}, "the request has no inputs"),
        (400, request(entry(), extra=1), "unknown member 'extra'"),
        (400, request(entry(), model_name="other"), "model_name is 'other' in the body"),
        (400, request(entry(), model_version="77"), "model_version is '77' in the body"),
        (400, request(entry(), model_version=1), "model_version is 1; expected a string"),
        (400, request(7), "an input is 7; expected an object"),
        (400, request(entry(datatype="FP8")), "datatype 'FP8'; expected one of BOOL"),
        (400, request(entry(shape=None)), "has shape None; expected [batch, …]"),
        (400, request(entry(shape=[-1, 6])), "has shape [-1, 6]; expected"),
        (400, request(entry(shape=[True, 6])), "has shape [True, 6]; expected"),
        (400, request(entry(data=None)), "neither 'data' nor 'binary_data_size'"),
        (
            400,
            request(entry(parameters={"binary_data_size": 4})),
            ("has both 'data' and 'binary_data_size'"),
        ),
        (
            400,
            request(entry(data=None, parameters={"binary_data_size": 24})),
            ("24 bytes of binary data; 0 are left"),
        ),
        (
            400,
            request(entry(parameters={"shared_memory_region": "a"})),
            ("shared memory, which is not supported"),
        ),
        (400, request(entry(), entry()), "input 'x' is given twice"),
        (400, request(entry(), id=7), "id is 7; expected a string"),
        (400, request(entry(), parameters={"taU": 1}), "unknown parameter 'taU'"),
        (400, request(entry(), parameters=[1]), "parameters are a list; expected an object"),
        (422, request(entry(), parameters={"tau": "1"}), "tau is '1'; expected a number"),
        (422, request(entry(), parameters={"tau": -1}), "tau is -1.0"),
        (422, request(entry(), parameters={"timeout": -1}), "timeout is -1"),
        (
            422,
            request(entry(), parameters={"binary_data_output": 1}),
            ("binary_data_output is 1; expected true or false"),
        ),
        (404, request(entry(), parameters={"prior": "x"}), "there is no prior 'x'"),
        (400, request(entry(), parameters={"prior": "{"}), "the inline prior is not JSON"),
        (422, request(entry(), parameters={"prior": '{"target": [0]}'}), "has 1 entries"),
        (
            422,
            request(entry(name="y")),
            ("the model has no input 'y'; it takes x, and optionally tau and prior for each row"),
        ),
        (422, request(entry(name="tau", shape=[1, 1], data=[1])), "input 'x' is missing"),
        (422, request(entry(datatype="FP64")), "input 'x' is FP64; the model takes FP32"),
        (
            422,
            request(entry(datatype="BYTES", data=["a"] * 6)),
            ("input 'x' is BYTES; the model takes FP32"),
        ),
        (
            422,
            request(entry(shape=[1, 7], data=[0] * 7)),
            ("the input has shape [1, 7]; the model takes [batch, 6]"),
        ),
        (
            422,
            request(entry(shape=[2, 6])),
            "has 6 elements; expected 12, as its shape [2, 6] says",
        ),
        (422, request(entry(data=[[[0]] * 6])), "nested deeper than its shape"),
        (422, request(entry(data=[0, 0, 0, 0, 0, "a"])), "holds 'a'; expected FP32"),
        (422, request(entry(data=[0, 0, 0, 0, 0, True])), "holds true; expected FP32"),
        (422, request(entry(data=[0, 0, 0, 0, 0, None])), "holds null; expected FP32"),
        (422, request(entry(data=[0, 0, 0, 0, 0, 1e39])), "instance 0 holds NaN or infinity"),
        (422, request(entry(shape=[0, 6], data=[])), "there are no instances"),
        (400, request(entry(data=7)), "data is 7; expected a list"),
        (
            422,
            request(entry(), outputs=[{"name": "scores"}]),
            ("there is no output 'scores'; expected one of probabilities"),
        ),
        (
            400,
            request(entry(), outputs={"name": "logits"}),
            ("outputs are an object; expected a list"),
        ),
        (
            400,
            request(entry(), outputs=[{"name": "logits"}] * 2),
            ("output 'logits' is requested twice"),
        ),
        (
            422,
            request(entry(), outputs=[{"name": "logits", "parameters": {"classification": 0}}]),
            "classification is 0",
        ),
        (
            422,
            request(entry(), outputs=[{"name": "class_name", "parameters": {"classification": 1}}]),
            "output 'class_name' cannot have classification",
        ),
        (
            400,
            request(
                entry(), outputs=[{"name": "logits", "parameters": {"shared_memory_region": "a"}}]
            ),
            "shared memory",
        ),
        (422, request(entry(), parameters={"top_k": 6}), "top_k is 6; expected 1 to 5"),
        (
            400,
            request(entry(), entry(name="tau", shape=[1, 1], data=[1]), parameters={"tau": 1}),
            "tau is given twice",
        ),
        (
            422,
            request(entry(), entry(name="tau", shape=[2, 1], data=[1, 1])),
            ("input 'tau' has 2 rows; expected 1"),
        ),
        (
            422,
            request(entry(), entry(name="tau", shape=[1, 2], data=[1, 1])),
            ("shape [1, 2]; expected [batch, 1]"),
        ),
        (422, request(entry(), entry(name="tau", shape=[1], data=[-0.5])), "row 0: tau is -0.5"),
        (
            422,
            request(entry(), entry(name="tau", shape=[1], datatype="FP64", data=[1])),
            ("input 'tau' is FP64; expected FP32"),
        ),
        (
            422,
            request(entry(), entry(name="prior", shape=[1], data=[1])),
            ("input 'prior' is FP32; expected BYTES"),
        ),
        (
            404,
            request(entry(), entry(name="prior", shape=[1], datatype="BYTES", data=["x"])),
            "there is no prior 'x'",
        ),
    ],
)
def test_what_is_wrong_is_told_as_a_problem_with_an_error_member(
    http, status, body, expected_message
):
    answer = http.post("/v2/models/linear/infer", json=body)
    problem = answer.json()
    assert answer.status_code == status, problem
    assert expected_message in problem["error"]
    assert problem["detail"] == problem["error"]
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    good = http.post("/v2/models/linear/infer", json=request(entry()))
    assert good.status_code == 200


def test_too_many_different_priors_in_one_request_are_refused(http):
    rows = 65
    priors = [json.dumps({"target": [1, 1, 1, 1, i + 1]}) for i in range(rows)]
    body = request(
        entry(shape=[rows, FEATURES], data=[0] * rows * FEATURES),
        entry(name="prior", shape=[rows], datatype="BYTES", data=priors),
    )
    answer = http.post("/v2/models/linear/infer", json=body)
    assert (
        answer.status_code,
        "65 different priors; expected at most 64" in answer.json()["error"],
    ) == (422, True)


def test_unknown_label_frequencies_concern_only_rows_with_a_tau(client):
    x = inputs(2)
    inline = json.dumps({"label_frequencies": COUNTS})
    priors = tensor("prior", np.array([["default"], [inline]], object), "BYTES")
    for tau, fine in ((0.0, True), (1.0, False)):
        taus = tensor("tau", np.array([[tau], [1.0]], np.float32), "FP32")
        if fine:
            assert client.infer("unknown", [x_of(x), taus, priors]).as_numpy(
                "probabilities"
            ).shape == (2, 5)
            continue
        with pytest.raises(InferenceServerException, match="no class_counts") as refused:
            client.infer("unknown", [x_of(x), taus, priors])
        assert refused.value.status() == "409"


@pytest.mark.parametrize("length", ["-1", "abc", "10000", "1.5", ""])
def test_a_wrong_header_length_is_malformed(http, length):
    answer = http.post(
        "/v2/models/linear/infer",
        content=json.dumps(request(entry())).encode(),
        headers={"inference-header-content-length": length},
    )
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length is" in answer.json()["error"]


def test_clients_read_the_error_of_every_route(client, http):
    for call in (
        lambda: client.get_model_metadata("none"),
        lambda: client.get_model_metadata("linear", "x"),
        lambda: client.infer("none", [x_of(inputs(1))]),
        lambda: client.get_model_config("none"),
        lambda: client.get_model_config("linear", "9"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert refused.value.status() == "404"
        assert refused.value.message()
    assert http.get("/v2/models/linear/infer").json()["error"]
    assert http.post("/v2/repository/index", content=b"{").json()["error"]
    assert http.post("/v2/repository/index", json={"redy": True}).status_code == 400
    assert http.post("/v2/repository/index", json={"ready": 1}).status_code == 400


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_request_whatever_makes_the_service_fail(http, data):
    header = bytearray(
        json.dumps(request(entry(data=None, parameters={"binary_data_size": 24}))).encode()
    )
    length = len(header)
    body = header + inputs(1).tobytes()
    for _ in range(data.draw(st.integers(0, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        length = data.draw(st.integers(0, len(body) + 3))
    model = data.draw(st.sampled_from(["linear", "text", "image"]))
    answer = http.post(
        f"/v2/models/{model}/infer",
        content=bytes(body),
        headers={"inference-header-content-length": str(length)},
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]


def test_members_that_a_client_repeats_from_the_path_are_taken(http):
    x = inputs(2)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    version = None
    for _ in range(2):
        body = request(
            tensor, id="7", model_name="linear", model_version=version, parameters=None,
            outputs=None,
        )  # fmt: skip
        answer = http.post("/v2/models/linear/infer", json=body)
        assert answer.status_code == 200, answer.text
        found = np.array(answer.json()["outputs"][0]["data"]).reshape(2, -1)
        np.testing.assert_allclose(found, formula(x, 1)[2], atol=1e-5)
        version = answer.json()["model_version"]
