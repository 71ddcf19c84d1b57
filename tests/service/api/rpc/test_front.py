"""Triton's own gRPC client, unmodified: it gets the answers, key checks, deadlines and
error messages of the HTTP protocol.
"""

import json
import re
import socket
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from service.api.edge.keys import make_key
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.front import SERVICE
from tests.support.eventually import eventually
from tests.support.server import metric, running
from tests.support.small_models import FEATURES, inputs, publish_trio


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    publish_trio(folder)
    return folder


@pytest.fixture(scope="module")
def server(models):
    port = free_port()
    with running(models, default_model="linear", grpc_port=port, max_grpc_mib=64) as found:
        found.address = f"127.0.0.1:{port}"
        yield found


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.address) as found:
        yield found


def tensor(rows, name="x"):
    made = triton.InferInput(name, list(rows.shape), "FP32")
    made.set_data_from_numpy(rows)
    return made


def over_http(server, rows, **parameters):
    body = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": list(rows.shape),
                "data": rows.ravel().tolist(),
            }
        ],
        "parameters": parameters,
    }
    answer = httpx.post(f"{server.url}/v2/models/linear/infer", json=body, timeout=30).json()
    (output,) = answer["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_answers_equal_those_of_the_http_protocol_with_a_tau_and_a_prior(client, server):
    rows = inputs(5)
    for parameters in ({}, {"tau": 0.5}, {"tau": 0.25, "prior": "training"}):
        found = client.infer("linear", [tensor(rows)], parameters=parameters, request_id="seven")
        np.testing.assert_allclose(
            found.as_numpy("probabilities"), over_http(server, rows, **parameters), atol=1e-6
        )
        assert found.get_response().id == "seven"
        assert found.get_response().model_name == "linear"


def test_outputs_that_are_asked_for_come_and_per_row_values_apply(client):
    rows = inputs(3)
    tau = triton.InferInput("tau", [3, 1], "FP32")
    tau.set_data_from_numpy(np.array([[0], [0.5], [1]], np.float32))
    prior = triton.InferInput("prior", [3, 1], "BYTES")
    prior.set_data_from_numpy(np.array([["uniform"], ["training"], ["uniform"]], object))
    wanted = [triton.InferRequestedOutput(name) for name in ("class_name", "class_index")]
    wanted.append(triton.InferRequestedOutput("logits", class_count=2))
    found = client.infer("linear", [tensor(rows), tau, prior], outputs=wanted)
    assert found.as_numpy("class_name").shape == found.as_numpy("class_index").shape
    assert found.as_numpy("logits").shape == (3, 2)


def test_typed_contents_are_read_as_raw_ones_are(server, client):
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc

    rows = inputs(2)
    request = pb.ModelInferRequest(model_name="linear")
    made = request.inputs.add(name="x", datatype="FP32", shape=list(rows.shape))
    made.contents.fp32_contents.extend(rows.ravel().tolist())
    with grpc.insecure_channel(server.address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, -1)
    np.testing.assert_array_equal(
        found, client.infer("linear", [tensor(rows)]).as_numpy("probabilities")
    )


def test_a_call_that_comes_too_late_is_told_what_a_client_of_this_protocol_sets(client):
    with pytest.raises(InferenceServerException, match="deadline of a gRPC call") as refused:
        client.infer("linear", [tensor(inputs(1))], timeout=1)  # the protocol's own, in µs
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_health_metadata_configuration_and_the_repository_are_told(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata().name == "priordial"
    metadata = client.get_model_metadata("linear")
    assert metadata.inputs[0].name == "x"
    assert list(metadata.inputs[0].shape) == [-1, FEATURES]
    assert client.get_model_config("linear").config.name == "linear"
    names = {each.name for each in client.get_model_repository_index().models}
    assert "linear" in names
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == serving
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watched).status == serving
        watched.cancel()


def test_a_model_is_unloaded_and_loaded_again(client):
    client.unload_model("image")
    assert not client.is_model_ready("image")
    client.load_model("image")
    assert client.is_model_ready("image")


@pytest.mark.parametrize(
    ("model", "made", "code", "says"),
    [
        ("none", lambda: tensor(inputs(1)), "NOT_FOUND", "none"),
        ("größe 1;?", lambda: tensor(inputs(1)), "NOT_FOUND", "no model 'größe 1;?'"),
        ("image/versions/1", lambda: tensor(inputs(1)), "NOT_FOUND", "image%2Fversions%2F1"),
        ("linear", lambda: tensor(inputs(1, features=FEATURES + 1)), "INVALID_ARGUMENT", "shape"),
        ("linear", lambda: tensor(inputs(1), "y"), "INVALID_ARGUMENT", "'y'"),
    ],
)
def test_what_is_wrong_has_its_status_and_the_words_of_the_http_protocol(
    client, model, made, code, says
):
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [made()])
    assert refused.value.status() == f"StatusCode.{code}"
    assert says in refused.value.message()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.get_system_shared_memory_status(), "shared memory is not supported"),
        (lambda c: c.register_system_shared_memory("a", "/a", 64), "send tensors in the body"),
        (lambda c: c.unregister_cuda_shared_memory("a"), "shared memory is not supported"),
        (lambda c: c.get_trace_settings("linear"), "use --traces"),
        (lambda c: c.update_log_settings({"log_info": True}), "--log-format"),
    ],
)
def test_a_call_that_is_not_served_is_refused_in_the_words_of_http(client, call, words):
    with pytest.raises(InferenceServerException, match=words) as refused:
        call(client)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("verb", ["get_model_metadata", "get_model_config", "load_model"])
def test_a_model_of_any_name_is_named_as_it_was_sent(client, verb):
    """The message had the name as it is in a path, with %20 for a blank."""
    with pytest.raises(InferenceServerException, match="'größe 1;'"):
        getattr(client, verb)("größe 1;")


@pytest.mark.parametrize("sent", [{"config": "{}"}, {"config": "{}", "files": {"file:1/m": b"x"}}])
def test_a_configuration_sent_with_a_load_is_refused_and_not_left_out(client, sent):
    with pytest.raises(InferenceServerException, match=r"parameter '.*' is not supported"):
        client.load_model("linear", **sent)
    client.load_model("linear")


def test_a_stream_answers_in_order_and_goes_on_after_an_error(client):
    import queue

    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, rows in enumerate([inputs(1), inputs(1, features=FEATURES + 1), inputs(2)]):
        client.async_stream_infer("linear", [tensor(rows)], request_id=str(number))
    found = [answers.get(timeout=30) for _ in range(3)]
    client.stop_stream()
    assert found[0][0].get_response().id == "0"
    assert found[1][1] is not None
    assert found[2][0].get_response().id == "2"


def test_each_answer_of_a_stream_says_that_it_is_the_final_one(server):
    requests = [pb.ModelInferRequest(model_name=name, id=name) for name in ("linear", "none")]
    for request in requests:
        request.inputs.add(name="x", datatype="FP32", shape=[1, FEATURES])
        request.raw_input_contents.append(inputs(1).tobytes())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = call(iter(each.SerializeToString() for each in requests), timeout=30)
        found = [pb.ModelStreamInferResponse.FromString(each) for each in answers]
    assert [bool(each.error_message) for each in found] == [False, True]
    for each, request in zip(found, requests, strict=True):
        answer = each.infer_response
        assert (answer.id, answer.model_name) == (request.id, request.model_name)
        assert answer.parameters["triton_final_response"].bool_param is True


def test_rows_of_grpc_and_http_are_counted_alike(client, server):
    def counted():
        return metric(
            httpx.get(f"{server.url}/metrics").text,
            "priordial_requests_total",
            route="/v2/models/{model}/infer",
        )

    before = counted()
    client.infer("linear", [tensor(inputs(1))])
    assert counted() == before + 1


def test_a_call_needs_the_key_and_role_that_http_needs(models, tmp_path):
    secret, key = make_key("client", ["predict"])
    port = free_port()
    with (
        running(models, grpc_port=port, api_keys=key.line()) as _server,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        with pytest.raises(InferenceServerException) as refused:
            client.infer("linear", [tensor(inputs(1))])
        assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        headers = {"authorization": f"Bearer {secret}"}
        client.infer("linear", [tensor(inputs(1))], headers=headers)
        with pytest.raises(InferenceServerException) as refused:
            client.unload_model("linear", headers=headers)
        assert refused.value.status() == "StatusCode.PERMISSION_DENIED"


def test_reflection_describes_the_service(server):
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="inference.GRPCInferenceService"
            ),
        ]
        listed, described = stub.ServerReflectionInfo(iter(asked), timeout=10)
    names = {each.name for each in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    found = descriptor_pb2.FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    assert "ModelInfer" in {method.name for method in found.service[0].method}


def call(server, message):
    """The answer to the bytes of a ModelInferRequest."""
    with grpc.insecure_channel(
        server.address, options=[("grpc.max_send_message_length", 2**26)]
    ) as channel:
        return channel.unary_unary(f"/{SERVICE}/ModelInfer")(message, timeout=30)


def typed(name, **contents):
    request = pb.ModelInferRequest(model_name="text" if name == "words" else "linear")
    found = request.inputs.add(name=name, datatype="BYTES" if name == "words" else "FP32")
    field = getattr(found.contents, "bytes_contents" if name == "words" else "fp32_contents")
    field.extend(contents["values"])
    found.shape.extend(contents["shape"])
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (typed("words", values=[b""] * 100_001, shape=[100_001, 1]), "at most 100000 of BYTES"),
        (typed("words", values=[b""] * 3 * 10**6, shape=[3 * 10**6, 1]), "send the tensors in raw"),
        (typed("x", values=[0.0] * 2 * 10**6, shape=[2 * 10**6, 1]), "send the tensors in raw"),
        (b"\x18\x00" * 3 * 10**6, "send the tensors in raw"),
    ],
    ids=["texts", "many texts", "numbers", "small fields"],
)
def test_a_message_that_would_become_large_is_refused_before_it_is_read(server, message, words):
    with pytest.raises(grpc.RpcError, match=words) as refused:
        call(server, message)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff\xff", b"\xff" * 5 * 10**6])
def test_bytes_that_are_no_message_are_refused(server, message):
    with pytest.raises(grpc.RpcError, match="is not a ModelInferRequest") as refused:
        call(server, message)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_many_rows_are_answered_alike_in_raw_and_in_typed_contents(client, server):
    rows = inputs(2000)
    raw = client.infer("linear", [tensor(rows)]).as_numpy("probabilities")
    message = typed("x", values=rows.ravel().tolist(), shape=rows.shape)
    answer = pb.ModelInferResponse.FromString(call(server, message))
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == raw.ravel().tolist()


def test_statistics_count_what_was_scored_over_both_protocols(server, client):
    def counted():
        (found,) = client.get_inference_statistics("linear", "1").model_stats
        return found

    before = counted()
    client.infer("linear", [tensor(inputs(3))])
    httpx.post(f"{server.url}/predict", json={"instances": inputs(2).tolist()})
    after = counted()
    assert (after.name, after.version) == ("linear", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.batch_stats[0].compute_infer.ns > 0
    names = {each.name for each in client.get_inference_statistics().model_stats}
    assert "linear" in names
    with pytest.raises(InferenceServerException, match="none"):
        client.get_inference_statistics("none")


def resident_mib(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


@pytest.mark.parametrize("verb", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("kind", ["too large", "malformed", "wrong raw contents", "deadline"])
def test_a_message_that_is_refused_leaves_no_memory_behind(server, verb, kind):
    """Before, its error and gRPC's context held each other, until a rare garbage collection."""
    mib = 2**20
    wrong = pb.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(16 * mib)])
    messages = {
        "too large": bytes(16 * mib),
        "malformed": b"\x3a" + wrong.SerializeToString(),
        "wrong raw contents": wrong.SerializeToString(),
        "deadline": wrong.SerializeToString(),
    }
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=unlimited) as channel:
        path = f"/{SERVICE}/{verb}"
        is_stream = verb == "ModelStreamInfer"
        call = channel.stream_stream(path) if is_stream else channel.unary_unary(path)

        def refused():
            seconds = 0.02 if kind == "deadline" else 30
            try:
                if is_stream:
                    list(call(iter([messages[kind]] * 2), timeout=seconds))
                else:
                    call(messages[kind], timeout=seconds)
            except grpc.RpcError:
                pass

        for _ in range(3):
            refused()
        before = resident_mib(server)
        for _ in range(8):
            refused()
        # The last messages may still be on their way when their call has failed.
        assert eventually(lambda: resident_mib(server) - before < 5 * 16)


def test_a_message_longer_than_its_limit_is_refused_and_bodies_keep_theirs(models):
    """The library puts a message together on the event loop; over HTTP, nothing does."""
    port = free_port()
    longer = inputs(2000)
    message = pb.ModelInferRequest(model_name="linear", raw_input_contents=[longer.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[2000, FEATURES])
    message.raw_input_contents[0] += bytes(2**20)
    with running(models, grpc_port=port, max_grpc_mib=1) as server:
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                call(message.SerializeToString(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        body = json.dumps({"instances": longer.tolist(), "parameters": {}}) + " " * 2**20
        answer = httpx.post(f"{server.url}/models/linear/predict", content=body, timeout=60)
        assert answer.status_code == 200


def test_a_client_that_cancels_thousands_of_calls_has_no_call_of_others_cancelled(server):
    message = pb.ModelInferRequest(model_name="linear", raw_input_contents=[inputs(1).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, FEATURES])
    body, path = message.SerializeToString(), f"/{SERVICE}/ModelInfer"
    with (
        grpc.insecure_channel(server.address) as hostile,
        grpc.insecure_channel(server.address) as other,
    ):
        call = hostile.unary_unary(path)
        for _ in range(8000):
            call.future(body, timeout=60).cancel()
        for _ in range(20):
            assert other.unary_unary(path)(body, timeout=60)
