"""Rows of a batch that influence each other are noticed before a model serves."""

import httpx
import numpy as np
import pytest

from service.contract.bundle import load_bundle
from service.contract.inputs.spec import InputSpec
from service.graph.session import open_graph
from service.graph.trial import influence, random_rows
from tests.support.neighbour_models import NEIGHBOUR_MODELS
from tests.support.server import running
from tests.support.small_models import (
    FEATURES,
    inputs,
    linear_model,
    publish_model,
    publish_trio,
)


def influence_in(folder):
    bundle = load_bundle(folder)
    graph = open_graph(folder, bundle, provider="cpu")
    return influence(graph, bundle.input, len(bundle.class_names), free=1)


@pytest.mark.parametrize("name", NEIGHBOUR_MODELS)
def test_rows_that_influence_each_other_are_noticed(tmp_path, name):
    folder = publish_model(tmp_path, model=NEIGHBOUR_MODELS[name]())
    assert influence_in(folder) > 1e-3


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_rows_of_an_ordinary_model_do_not_influence_each_other(tmp_path, batch):
    shape = [None if batch == "batch" else batch, FEATURES]
    spec = {"name": "x", "kind": "tensor", "shape": shape, "dtype": "float32"}
    folder = publish_model(tmp_path, model=linear_model(batch=batch), input=spec)
    assert influence_in(folder) == 0


@pytest.mark.parametrize("name", ["linear", "text", "image"])
def test_rows_of_every_kind_of_input_are_tried(tmp_path, name):
    publish_trio(tmp_path)
    assert influence_in(tmp_path / name / "1") == 0


def test_a_graph_that_takes_none_of_the_rows_tells_nothing():
    class Refusing:
        def run(self, *_arguments, **_settings):
            raise RuntimeError

    spec = InputSpec(name="x", kind="tensor", shape=[None, 3], dtype="bool")
    assert influence(Refusing(), spec, 3, free=1) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool", "string"])
def test_random_rows_are_the_same_at_every_call(dtype):
    kind = "text" if dtype == "string" else "tensor"
    spec = InputSpec(name="x", kind=kind, shape=[None, None], dtype=dtype)
    first, second = (list(random_rows(spec, 3, free=5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == ((3, 1) if dtype == "string" else (3, 5))


@pytest.mark.parametrize("name", ["batch_mean", "dynamic_int8"])
def test_a_model_whose_rows_influence_each_other_answers_each_row_as_if_alone(tmp_path, name):
    publish_model(tmp_path, model=NEIGHBOUR_MODELS[name]())
    rows = inputs(3)
    rows[1:] *= 100
    with running(tmp_path) as server:
        server.wait_for("a row's answer depends on the other rows of its batch")

        def ask(instances):
            answer = httpx.post(
                f"{server.url}/predict",
                json={"instances": instances.tolist(), "parameters": {"tau": 0}},
            )
            return answer.json()["predictions"]

        assert ask(rows) == [ask(rows[i : i + 1])[0] for i in range(3)]
