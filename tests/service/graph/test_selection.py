"""The best of many classes are found among all or by blocks: the same classes and probabilities,
whichever way the warm-up chooses.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.adjustment import softmax
from service.contract.bundle import load_bundle
from service.graph import ranking
from service.graph.session import open_graph
from service.graph.warm_up import WarmUp, warm_up
from tests.support.server import PROVIDER
from tests.support.small_models import linear_model, publish_model

_GENERATIONS = itertools.count(1)  # a device keeps its copy of the table until the number changes
EVEN, PRIME = 1200, 1009  # blocks of one size; a last block that is padded


def echo_model(classes: int, opset: int = 20):
    """Logits in, the same logits out: ties, infinities and NaN can be asked for by name."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["logits"])],
        "echo",
        [value("x", TensorProto.FLOAT, ["batch", classes])],
        [value("logits", TensorProto.FLOAT, ["batch", classes])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normalised_model(classes: int):
    """Scores in, their shares out, by an operator of classical models, whose number of rows
    onnxruntime does not infer.
    """
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Normalizer", ["x"], ["shares"], norm="L1", domain="ai.onnx.ml")],
        "normalised",
        [value("x", TensorProto.FLOAT, [None, classes])],
        [value("shares", TensorProto.FLOAT, [None, classes])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def opened(folder, classes, **changes):
    model, bound = changes.pop("model", None), changes.pop("bound", None)
    spec = {"name": "x", "kind": "tensor", "shape": [None, classes], "dtype": "float32"}
    published = publish_model(
        folder,
        model=model or echo_model(classes),
        classes=classes,
        class_counts=[1.0] * classes,
        **{"input": spec, **changes},
    )
    return open_graph(
        published, load_bundle(published), provider=PROVIDER, intra_op_threads=1, bound=bound
    )


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Echoes of an even and of a prime number of classes, of an old opset, with a temperature, and
    through an IOBinding.
    """
    folder = tmp_path_factory.mktemp("models")
    return {
        "even": opened(folder, EVEN),
        "prime": opened(folder, PRIME),
        "opset 13": opened(folder, PRIME, model=echo_model(PRIME, opset=13)),
        "temperature": opened(folder, EVEN, temperature=1.7),
        "bound": opened(folder, EVEN, bound=True),
    }


def both_ways(graph, logits, tau, offset, k):
    """The outputs (whole, by blocks), with all of them."""
    found = []
    for graph.blocks_from_rows in (None, 1):
        found.append(
            graph.run(
                logits,
                tau=np.asarray(tau, np.float32),
                prior_index=np.zeros(len(logits), np.int64),
                prior_table=offset[None].astype(np.float32),
                top_k=k,
                generation=next(_GENERATIONS),
                full=True,
            )
        )
    return found


def assert_same_bits(one, other):
    for name in ("top_index", "top_probability", "unadjusted_index", "unadjusted_probability"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(["even", "prime", "opset 13", "temperature", "bound"]),
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 5, 7])),
    values=st.tuples(
        st.sampled_from([1, 2, 5, 40, 10**6]),
        st.sampled_from([0.0, 1.0, 30.0, 300.0]),
        st.sampled_from([0.0, 0.5, 0.997]),
    ),
    seed=st.integers(0, 10**6),
)
def test_both_ways_give_the_formulas_answer_bit_by_bit_ties_included(
    graphs, name, shape, values, seed
):
    (rows, k), (levels, spread, impossible) = shape, values
    graph, rng = graphs[name], np.random.default_rng(seed)
    classes = PRIME if name in ("prime", "opset 13") else EVEN
    temperature = 1.7 if name == "temperature" else 1.0
    logits = (rng.integers(0, levels, (rows, classes)) * (spread / levels)).astype(np.float32)
    offset = rng.integers(0, levels, classes).astype(np.float32) / levels
    offset[1:][rng.random(classes - 1) < impossible] = 1e30  # never all: such a target is refused
    tau = rng.choice([0, 1e-6, 1, 10], rows).astype(np.float32)
    whole, by_blocks = both_ways(graph, logits, tau, offset, k)
    assert_same_bits(whole, by_blocks)
    # The ranking is of the float32 logits that the graph itself tells, a tie to the lower index.
    order = np.argsort(-whole.adjusted_logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(whole.top_index, order)
    exact = softmax(
        logits.astype(np.float64) / temperature - tau[:, None].astype(np.float64) * offset
    )
    chosen = np.take_along_axis(exact, order, axis=1)
    np.testing.assert_allclose(whole.top_probability, chosen, atol=3e-5 if spread > 30 else 1e-5)
    plain = softmax(logits.astype(np.float64) / temperature)
    np.testing.assert_array_equal(whole.unadjusted_index, whole.logits.argmax(axis=1))
    np.testing.assert_allclose(whole.unadjusted_probability, plain.max(axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["even", "prime"])
def test_every_class_can_win_and_come_second(graphs, name):
    classes = PRIME if name == "prime" else EVEN
    winners = np.arange(classes)
    logits = np.full((classes, classes), -np.inf, np.float32)
    logits[winners, winners] = 2
    logits[winners, winners - 1] = 1
    zeros = np.zeros(classes)
    whole, by_blocks = both_ways(graphs[name], logits, zeros, zeros, 2)
    assert_same_bits(whole, by_blocks)
    np.testing.assert_array_equal(
        by_blocks.top_index, np.stack([winners, (winners - 1) % classes], 1)
    )


def test_a_row_of_nan_is_told_by_its_probabilities_and_disturbs_no_other(graphs):
    logits = np.random.default_rng(0).normal(size=(4, EVEN)).astype(np.float32)
    clean = both_ways(graphs["even"], logits, np.ones(4), np.zeros(EVEN), 5)
    logits[2, 700] = np.nan
    for before, after in zip(
        clean, both_ways(graphs["even"], logits, np.ones(4), np.zeros(EVEN), 5), strict=True
    ):
        assert np.isnan(after.top_probability[2]).all()
        assert np.isnan(after.unadjusted_probability[2])
        for rows in ([0, 1], [3]):
            np.testing.assert_array_equal(after.top_index[rows], before.top_index[rows])
            np.testing.assert_array_equal(after.top_probability[rows], before.top_probability[rows])


def test_more_classes_than_blocks_would_serve_are_looked_for_whole(graphs):
    graph = graphs["even"]
    most = ranking.most_by_blocks(EVEN)
    logits = np.random.default_rng(0).normal(size=(3, EVEN)).astype(np.float32)
    graph.blocks_from_rows = 2
    assert [graph._by_blocks(2, most), graph._by_blocks(2, most + 1)] == [True, False]
    assert not graph._by_blocks(1, most)
    for k in (most, most + 1, 64, EVEN):
        whole, by_blocks = both_ways(graph, logits, np.ones(3), np.zeros(EVEN), k)
        assert_same_bits(whole, by_blocks)


@pytest.mark.parametrize("name", ["even", "opset 13", "temperature", "bound"])
def test_rows_that_share_tau_and_prior_get_the_same_bits_as_beside_other_settings(graphs, name):
    graph, rng = graphs[name], np.random.default_rng(0)
    classes = PRIME if name == "opset 13" else EVEN
    logits = rng.normal(size=(4, classes)).astype(np.float32)
    table = rng.normal(size=(2, classes)).astype(np.float32)
    table[1, 5:] = 1e30
    for tau in (0, 0.7, 3):
        answers = []
        for taus, priors in (([tau] * 3 + [1], [1, 1, 1, 0]), ([tau] * 3, [1] * 3)):
            answers.append(
                graph.run(
                    logits[: len(taus)],
                    tau=np.array(taus, np.float32),
                    prior_index=np.array(priors),
                    prior_table=table,
                    top_k=7,
                    generation=next(_GENERATIONS),
                    full=True,
                )
            )
        mixed, shared = answers
        for field in ("top_index", "top_probability", "adjusted_logits", "probabilities"):
            np.testing.assert_array_equal(getattr(mixed, field)[:3], getattr(shared, field))


def test_classical_models_of_many_classes_answer_rows_that_share_tau_and_prior(tmp_path):
    output = {"name": "shares", "kind": "probabilities"}
    graph = opened(tmp_path, EVEN, model=normalised_model(EVEN), output=output)
    rng = np.random.default_rng(0)
    scores, offset = rng.random((5, EVEN)), rng.normal(size=EVEN)
    shares = scores / scores.sum(axis=1, keepdims=True)
    for found in both_ways(graph, scores.astype(np.float32), np.ones(5), offset, 3):
        expected = softmax(np.log(shares) - offset)
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
        np.testing.assert_array_equal(found.top_index[:, 0], expected.argmax(axis=1))
        np.testing.assert_array_equal(found.unadjusted_index, shares.argmax(axis=1))


def test_a_ruled_out_class_has_probability_zero(graphs):
    offset = np.full(EVEN, 1e30)
    offset[[3, 1100]] = 0
    logits = np.random.default_rng(0).normal(size=(2, EVEN)).astype(np.float32)
    for found in both_ways(graphs["even"], logits, [1e-6, 10], offset, 5):
        assert (np.sort(found.top_index[:, :2], axis=1) == [3, 1100]).all()
        assert (found.top_probability[:, 2:] == 0).all()


@pytest.mark.parametrize("classes", [1000, 1009, 4099, 8142, 21_841, 100_000, 100_003])
def test_blocks_cover_all_classes_and_are_many_enough_to_leave_most_of_them_out(classes):
    width = ranking.block_width(classes)
    blocks = -(-classes // width)
    assert blocks * width >= classes > (blocks - 1) * width
    assert 4 <= 4 * ranking.most_by_blocks(classes) <= blocks


def test_small_class_lists_have_no_choice_and_are_not_tried_out(tmp_path):
    graph = opened(tmp_path, 10)
    found = warm_up(graph, np.zeros((1, 10), np.float32), 10, [1, 4])
    assert not graph.has_choice
    assert (found.selections, found.selection_note(), graph.blocks_from_rows) == ({}, "", None)


def test_warm_up_tries_both_ways_and_the_graph_takes_the_one_that_was_faster(graphs):
    graph = graphs["even"]
    found = warm_up(graph, np.zeros((1, EVEN), np.float32), EVEN, [1, 2, 4])
    assert list(found.selections) == [1, 2, 4]
    assert graph.blocks_from_rows == found.blocks_from_rows
    for rows, both in found.selections.items():
        assert found.cost_seconds[rows] == min(both) > 0
    assert "by blocks" in found.selection_note()


def test_a_model_whose_calls_are_long_is_not_tried_out_for_long(graphs, monkeypatch):
    graph, calls = graphs["even"], []
    clock = itertools.count(step=60)  # a minute a call
    monkeypatch.setattr("service.graph.warm_up.time.perf_counter", lambda: next(clock))
    run = graph.run
    monkeypatch.setattr(graph, "run", lambda *a, **b: calls.append(1) or run(*a, **b))
    found = warm_up(graph, np.zeros((1, EVEN), np.float32), EVEN, [1, 2])
    assert found.selections == {}
    assert graph.blocks_from_rows is None
    assert len(calls) == 2 * 3 + 1


@pytest.mark.parametrize(
    ("ways", "first"),
    [
        ({1: (1, 2), 2: (2, 2), 4: (4, 3), 8: (8, 5)}, 4),
        ({1: (1, 2), 2: (3, 4), 4: (5, 4), 8: (8, 5), 16: (16, 9), 32: (32, 60)}, 4),
        ({1: (1, 1), 2: (2, 2)}, None),
        ({1: (2, 1), 4: (4, 3)}, 1),
        ({1: (1, 2), 4: (3, 4)}, None),
        ({}, None),
    ],
)
def test_blocks_are_used_from_the_size_on_where_most_sizes_had_them_faster(ways, first):
    found = WarmUp({rows: min(both) for rows, both in ways.items()}, ways)
    assert found.blocks_from_rows == first


def test_another_number_of_classes_than_the_graph_has_is_told_for_large_lists_too(tmp_path):
    with pytest.raises(ValueError, match="the graph has 1200 classes, and class_names 1199"):
        opened(tmp_path, 1199, model=linear_model(features=1199, classes=1200))
