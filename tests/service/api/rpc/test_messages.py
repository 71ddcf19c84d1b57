"""A message whose bytes were seen before is read as a new one would be."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.rpc import messages
from service.api.rpc import open_inference_pb2 as pb
from service.wire.faults import Malformed


def request(rows, *, name="x", model="linear", tau=None, identity="", typed=False):
    message = pb.ModelInferRequest(model_name=model, id=identity)
    double = rows.dtype == np.float64
    message.inputs.add(name=name, datatype="FP64" if double else "FP32", shape=rows.shape)
    if tau is not None:
        message.parameters["tau"].double_param = tau
    if typed:
        contents = message.inputs[0].contents
        held = contents.fp64_contents if double else contents.fp32_contents
        held.extend(rows.ravel().tolist())
    else:
        message.raw_input_contents.append(rows.tobytes())
    return message


def read(known, data):
    """As the server does."""
    found = known.find(data)
    if found is None:
        found = messages.http_request(data)
        known.learn(data, found)
    return found


MADE = st.builds(
    request,
    st.tuples(st.integers(1, 3), st.integers(0, 60), st.sampled_from([np.float32, np.float64])).map(
        lambda made: np.random.default_rng(made[:2]).normal(size=made[:2]).astype(made[2])
    ),
    name=st.sampled_from(["x", "y"]),
    model=st.sampled_from(["linear", "a/b"]),
    tau=st.sampled_from([None, 0.0, 0.37]),
    identity=st.sampled_from(["", "one"]),
    typed=st.booleans(),
)


@given(st.lists(MADE, min_size=1, max_size=12))
def test_a_message_is_read_as_if_it_were_the_first(made):
    known = messages.Requests()
    for message in [*made, *made]:
        data = message.SerializeToString()
        assert read(known, data) == messages.http_request(data)


def test_new_numbers_in_a_known_message_are_the_ones_that_are_read():
    known = messages.Requests()
    read(known, request(np.zeros((2, 4), np.float32)).SerializeToString())
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = known.find(request(rows).SerializeToString())
    assert found.body[found.header_length :] == rows.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_typed_floats_are_read_as_raw_ones_are(dtype):
    """Infinity became null on the way, which a model of missing values takes for one."""
    rows = np.array([[np.inf, -np.inf, np.nan, 0.1]], dtype)
    raw, typed = (
        messages.http_request(request(rows, typed=typed).SerializeToString())
        for typed in (False, True)
    )
    assert raw == typed


def test_typed_bytes_that_are_no_text_are_read_as_raw_ones_are():
    """They are a picture, say, or a text in another encoding."""
    values = ["ä".encode("latin-1"), b"\x89PNG"]
    message = pb.ModelInferRequest(model_name="words")
    message.inputs.add(name="x", datatype="BYTES", shape=[2])
    message.inputs[0].contents.bytes_contents.extend(values)
    found = messages.http_request(message.SerializeToString())
    wanted = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    assert found.body[found.header_length :] == wanted


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_malformed_and_never_anything_else(data):
    known = messages.Requests()
    read(known, request(np.zeros((1, 4), np.float32)).SerializeToString())
    with contextlib.suppress(Malformed):
        read(known, data)


def test_a_message_that_is_cut_off_is_malformed():
    whole = request(np.zeros((1, 4), np.float32)).SerializeToString()
    with pytest.raises(Malformed):
        read(messages.Requests(), whole[:-1])


def test_an_answer_is_the_message_that_protobuf_would_write():
    header = (
        b'{"model_name":"linear","model_version":"1","parameters":{"tau":1.0,"prior":"default"},'
        b'"outputs":[{"name":"probabilities","datatype":"FP32","shape":[1,50],'
        b'"parameters":{"binary_data_size":200}}]}'
    )
    numbers = np.arange(50, dtype=np.float32).tobytes()
    found = pb.ModelInferResponse.FromString(messages.response_of(header + numbers, len(header)))
    assert list(found.raw_output_contents) == [numbers]
    assert found.outputs[0].name == "probabilities"
    assert found.parameters["prior"].string_param == "default"
    assert found.parameters["tau"].double_param == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m.parameters["tau"], "double_param", float("nan")), "'tau' is nan"),
        (lambda m: setattr(m.parameters["tau"], "double_param", float("inf")), "'tau' is inf"),
        (lambda m: m.parameters["tau"].SetInParent(), "'tau' has no value"),
        (
            lambda m: m.inputs[0].contents.fp32_contents.extend([0.5]),
            "has contents and raw_input_contents; send one of them",
        ),
    ],
)
def test_what_would_be_answered_as_if_it_were_not_there_is_refused(change, says):
    message = request(np.zeros((1, 4), np.float32))
    change(message)
    with pytest.raises(Malformed, match=says):
        messages.http_request(message.SerializeToString())
