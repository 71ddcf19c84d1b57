"""A class list of 100,000: as exact as a short one, and no output over all classes leaves the
graph unless a request asks for it.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.contract.bundle import load_bundle
from service.graph import head
from service.graph.session import open_graph
from tests.support.small_models import FEATURES, linear_model, publish_model, weights

CLASSES, ROWS, K = 100_000, 6, 50


@pytest.fixture(scope="module", params=[None, 1], ids=["whole", "by blocks"])
def graph(tmp_path_factory, request):
    folder = publish_model(
        tmp_path_factory.mktemp("large"),
        model=linear_model(classes=CLASSES),
        classes=CLASSES,
        class_counts=[1.0] * CLASSES,
    )
    graph = open_graph(folder, load_bundle(folder), provider="cpu", intra_op_threads=1)
    graph.blocks_from_rows = request.param
    return graph


@pytest.fixture(scope="module")
def asked():
    """Rows of different tau and prior, and their adjusted logits in float64."""
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    table = np.log(np.arange(1, 3 * CLASSES + 1, dtype=np.float64)).reshape(3, CLASSES)
    table = rng.permuted(table, axis=1).astype(np.float32)
    tau = np.array([0, 0.5, 1, 1, 2, 10], np.float32)
    index = np.arange(ROWS) % 3
    settings = {"tau": tau, "prior_index": index, "prior_table": table, "top_k": K}
    w, b = weights(FEATURES, CLASSES)
    logits = inputs.astype(np.float64) @ w + b
    adjusted = logits - tau[:, None].astype(np.float64) * table[index]
    return inputs, settings, logits, adjusted


def test_the_best_of_100_000_classes_and_their_probabilities_equal_float64(graph, asked):
    inputs, settings, logits, adjusted = asked
    found = graph.run(inputs, **settings)
    wanted = softmax(adjusted)
    of_found = np.take_along_axis(wanted, found.top_index, axis=1)
    assert np.abs(found.top_probability - of_found).max() < 1e-5
    assert np.abs(of_found - np.sort(wanted)[:, ::-1][:, :K]).max() < 1e-5
    assert all(len(set(row)) == K for row in found.top_index.tolist())
    plain = softmax(logits)
    assert (found.unadjusted_index == plain.argmax(axis=1)).all()
    assert np.abs(found.unadjusted_probability - plain.max(axis=1)).max() < 1e-5


def test_all_probabilities_of_100_000_classes_equal_float64_when_they_are_asked_for(graph, asked):
    inputs, settings, _, adjusted = asked
    found = graph.run(inputs, full=True, **settings)
    assert np.abs(found.probabilities - softmax(adjusted)).max() < 1e-5
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(ROWS), abs=1e-4)


def test_a_prediction_takes_no_array_of_all_classes_out_of_the_graph(graph, asked, monkeypatch):
    inputs, settings, *_ = asked
    run, fetched = graph._session.run, []

    class Recording:
        def run(self, names, *rest):
            fetched.extend(run(names, *rest))
            return fetched

    monkeypatch.setattr(graph, "_session", SimpleNamespace(_sess=Recording()))
    graph.run(inputs, **settings)
    assert max(array.shape[-1] for array in fetched) == K


def test_no_softmax_of_all_classes_is_worked_out_unless_it_is_asked_for(graph, asked):
    inputs, settings, *_ = asked
    feeds = {
        "x": inputs,
        head.TAU: settings["tau"],
        head.PRIOR_INDEX: settings["prior_index"],
        head.PRIOR_TABLE: settings["prior_table"],
        head.TOP_K: np.array([K]),
        head.BY_BLOCKS: np.array(False),
    }
    for rows in (0, ROWS):
        outputs = graph._session.run(
            [head.PROBABILITIES], {**feeds, head.FULL_ROWS: np.array([rows])}
        )
        assert outputs[0].shape == (rows, CLASSES)
    fed = []
    graph._session, session = (
        SimpleNamespace(_sess=SimpleNamespace(run=lambda *given: fed.append(given[1]))),
        graph._session,
    )
    try:
        for full in (False, True):
            with pytest.raises(TypeError):  # nothing comes back
                graph.run(inputs, full=full, **settings)
    finally:
        graph._session = session
    assert [each[head.FULL_ROWS].tolist() for each in fed] == [[0], [ROWS]]
