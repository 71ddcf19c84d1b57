"""Requests that repeat all but their numbers and their id: kept forms change no answer."""

import json
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.oip.forms import MAX_KEPT_HEADERS, keep_form, kept_form, parted
from service.api.oip.request import read_header
from service.wire.json_rows import ShortJson
from tests.support.priors import make_bundle
from tests.support.server import running
from tests.support.small_models import FEATURES, inputs, publish_model

ROW = [0.5, -1.25, 3, 1e-3][:FEATURES] + [2.0] * max(0, FEATURES - 4)


def body(data, *, shape=(1, FEATURES), datatype="FP32", name="x", **members):
    tensor = {"name": name, "shape": list(shape), "datatype": datatype, "data": data}
    return json.dumps({**members, "inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models) as server, httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def answers(http, content):
    """The answers to a body that may have a kept form, and to the same one read as a header."""
    path = "/v2/models/linear/infer"
    headers = {"content-type": "application/json"}
    length = {"inference-header-content-length": str(len(content))}
    found = [http.post(path, content=content, headers=headers) for _ in range(2)]
    found.append(http.post(path, content=content, headers={**headers, **length}))
    return [(each.status_code, each.content) for each in found]


def test_the_form_of_a_request_answers_the_next_ones_with_their_own_numbers_and_id(http):
    for number, row in enumerate(inputs(5)):
        first, second, read = answers(http, body(row.tolist(), id=f"request-{number}"))
        assert first == second == read
        assert first[0] == 200
        assert json.loads(first[1])["id"] == f"request-{number}"


NUMBERS = st.one_of(
    st.floats(allow_nan=False, width=32),
    st.integers(-(2**64), 2**65),
    st.sampled_from([None, True, "1", 1e39, -0.0, 2**53 + 1, [1.0], {}]),
)
ROWS = st.one_of(
    st.lists(NUMBERS, min_size=FEATURES, max_size=FEATURES),
    st.lists(st.floats(-9, 9), min_size=FEATURES - 1, max_size=FEATURES + 1),
    st.just([ROW]),
    st.just([ROW[:1], ROW[1:]]),
    st.just(ROW * 2),
    st.just([ROW, ROW]),
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["", "a", "ü", 'q"', "\n", "1", None, 7]),
        "parameters": st.sampled_from([{}, {"tau": 0.5}, {"top_k": 2}, {"data": [1, 2]}]),
        "outputs": st.sampled_from([[], [{"name": "class_name"}], [{"name": "data"}]]),
        "model_name": st.sampled_from(["linear", "other"]),
    },
)
SHAPES = st.sampled_from([(1, FEATURES), (2, FEATURES), (FEATURES,), (0, FEATURES), (1, 1)])
NAMES = st.sampled_from(["x", "x", "x", "data", "id", "y"])
CUTS = st.sampled_from(
    [None, None, None, (b"]", b""), (b"1", b"NaN"), (b"}", b"]"), (b":", b" : ")]
)


@given(ROWS, MEMBERS, st.tuples(SHAPES, NAMES, CUTS))
@settings(max_examples=150, deadline=None)
def test_a_kept_form_never_changes_an_answer(http, data, members, more):
    shape, name, cut = more
    content = body(data, shape=shape, name=name, **members)
    if cut is not None:
        content = content.replace(*cut, 1)
    answers(http, body(ROW, shape=(1, FEATURES), **members))  # a valid one may keep its form
    first, second, read = answers(http, content)
    assert first == second == read


MODEL_BUNDLE = make_bundle()


@pytest.fixture
def model():
    spec = MODEL_BUNDLE.input
    return SimpleNamespace(bundle=MODEL_BUNDLE, infer_forms={}, short_json=ShortJson(spec))


def of_pets(data, **members):
    spec = MODEL_BUNDLE.input
    return body(data, shape=(1, spec.shape[1]), name=spec.name, **members)


def test_only_bodies_that_differ_in_numbers_and_id_share_a_form(model):
    width = MODEL_BUNDLE.input.shape[1]
    first = of_pets([0.5] * width, id="a")
    keep_form(model, first, read_header(first))
    assert len(model.infer_forms) == 1

    form, values, identity = kept_form(model, of_pets([2.5] * width, id="other"))
    assert form.header.outputs[0].name == "probabilities"
    assert (values.dtype, values.tolist(), identity) == (np.float32, [[2.5] * width], "other")
    for content in (
        of_pets([0.5] * width),
        of_pets([0.5] * width, id="a", parameters={"tau": 1}),
        of_pets([0.5] * (width + 1), id="a"),
        of_pets([None] * width, id="a"),
        of_pets([True] * width, id="a"),
        of_pets([0.5] * width, id="a\n"),
    ):
        assert kept_form(model, content) is None


@pytest.mark.parametrize(
    "content",
    [
        body(ROW, parameters={"data": [1]}),
        body(ROW, name="data"),
        body(ROW, id='a"'),
        b'{"inputs": [{"name": "d\\u0061ta", "data": [1]}]}',
        b'{"id": "a", "inputs": [{"id": "b", "data": [1]}]}',
        b'{"inputs": [{"data": 1}]}',
        b'{"inputs": []}',
        b'"data": [',
        body(ROW, id="x" * 300),
        body(ROW, model_name="x" * 3000),
    ],
)
def test_a_body_whose_parts_are_not_certain_is_read_in_full(content):
    assert parted(content) is None


def test_a_model_keeps_a_bounded_number_of_forms(model):
    width = MODEL_BUNDLE.input.shape[1]
    for number in range(MAX_KEPT_HEADERS + 9):
        content = of_pets([1.0] * width, parameters={"tau": number / 1000})
        keep_form(model, content, read_header(content))
    assert 0 < len(model.infer_forms) <= MAX_KEPT_HEADERS
