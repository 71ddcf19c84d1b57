"""The adjustment head equals the formula on any classifier's graph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from service.contract.bundle import load_bundle
from service.graph import head
from service.graph.composer import compose_file
from service.graph.foreign import UnsupportedGraph, external_files
from service.graph.session import open_graph
from tests.support.server import PROVIDER
from tests.support.small_models import COUNTS, inputs, linear_model, publish_model, weights


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory):
    def build(model=None, **changes):
        folder = publish_model(tmp_path_factory.mktemp("models"), model=model, **changes)
        return open_graph(folder, load_bundle(folder), provider=PROVIDER, intra_op_threads=1)

    return build


@pytest.fixture(scope="module")
def plain(graph_of):
    return graph_of()


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    folder = publish_model(tmp_path_factory.mktemp("models"))
    return open_graph(
        folder, load_bundle(folder), provider=PROVIDER, intra_op_threads=1, bound=True
    )


def table_of(*pairs):
    rows = [
        log_source_prior(source, loss_tau=0) - log_target_prior(target) for source, target in pairs
    ]
    return np.array(rows, np.float32)


def run(graph, x, tau, index, table, *, k=5, full=True):
    return graph.run(
        x,
        tau=np.asarray(tau, np.float32),
        prior_index=np.asarray(index, np.int64),
        prior_table=table,
        top_k=k,
        full=full,
    )


def expected(x, tau, source, target, temperature=1.0):
    w, b = weights()
    logits = x.astype(np.float64) @ w.astype(np.float64) + b
    return logits, softmax(
        adjust_logits(
            logits,
            log_source_prior=log_source_prior(source, loss_tau=0),
            log_target_prior=log_target_prior(target),
            tau=tau,
            temperature=temperature,
        )
    )


TARGETS = [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [0.0, 0.5, 0.0, 0.25, 0.25]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 1e-6, 0.3, 1, 2.5, 10]), st.integers(0, 2)),
        min_size=1,
        max_size=20,
    ),
    seed=st.integers(0, 1000),
)
def test_every_row_of_a_mixed_batch_equals_the_formula_for_its_own_tau_and_prior(plain, rows, seed):
    x = inputs(len(rows), seed=seed)
    table = table_of(*((COUNTS, target) for target in TARGETS))
    out = run(plain, x, [tau for tau, _ in rows], [i for _, i in rows], table)
    for row, (tau, index) in enumerate(rows):
        _, probabilities = expected(x[row : row + 1], tau, COUNTS, TARGETS[index])
        np.testing.assert_allclose(out.probabilities[row], probabilities[0], atol=1e-5)
        np.testing.assert_allclose(
            out.top_probability[row], probabilities[0][out.top_index[row]], atol=1e-5
        )


def test_tau_zero_leaves_the_logits_bit_equal(plain):
    x = inputs(50)
    out = run(plain, x, np.zeros(50), np.full(50, 2), table_of(*((COUNTS, t) for t in TARGETS)))
    np.testing.assert_array_equal(out.adjusted_logits, out.logits)
    np.testing.assert_array_equal(out.top_index[:, 0], out.unadjusted_index)


def test_a_zero_target_is_exactly_impossible_at_any_tau_above_zero_and_untouched_at_zero(plain):
    x = inputs(3)
    table = table_of((COUNTS, TARGETS[2]))
    out = run(plain, x, [1e-6, 10, 0], [0, 0, 0], table)
    assert (out.probabilities[:2, [0, 2]] == 0).all()
    assert (out.probabilities[2] > 0).all()
    assert np.isfinite(out.probabilities).all()


def test_an_answer_does_not_depend_on_its_batch(plain):
    x = inputs(33)
    table = table_of(*((COUNTS, t) for t in TARGETS))
    tau, index = np.linspace(0, 3, 33), np.arange(33) % 3
    together = run(plain, x, tau, index, table)
    for row in range(33):
        alone = run(plain, x[row : row + 1], tau[row : row + 1], index[row : row + 1], table)
        np.testing.assert_allclose(alone.probabilities[0], together.probabilities[row], atol=1e-6)


def test_the_ranking_alone_is_the_same_as_with_all_outputs(plain):
    x = inputs(8)
    table = table_of((COUNTS, TARGETS[1]))
    full, ranked = (
        run(plain, x, np.ones(8), np.zeros(8), table, k=3, full=f) for f in (True, False)
    )
    np.testing.assert_array_equal(full.top_index, ranked.top_index)
    np.testing.assert_array_equal(full.unadjusted_probability, ranked.unadjusted_probability)
    assert ranked.logits is None


def test_an_io_binding_gives_the_same_answers_and_follows_the_tables_generation(plain, bound):
    x = inputs(8)
    for generation, target in enumerate(TARGETS):
        table = table_of((COUNTS, target))
        one = run(plain, x, np.ones(8), np.zeros(8), table)
        two = bound.run(
            x,
            tau=np.ones(8, np.float32),
            prior_index=np.zeros(8, np.int64),
            prior_table=table,
            top_k=5,
            generation=generation,
            full=True,
        )
        np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_the_temperature_divides_the_logits_and_not_the_offset(graph_of):
    graph = graph_of(temperature=1.7)
    x = inputs(10)
    out = run(graph, x, np.ones(10), np.zeros(10), table_of((COUNTS, TARGETS[1])))
    logits, probabilities = expected(x, 1.0, COUNTS, TARGETS[1], temperature=1.7)
    np.testing.assert_allclose(out.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)


@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax"])
def test_a_softmax_at_the_end_is_cut_off(graph_of, ending):
    kind = "probabilities" if ending == "Softmax" else "logits"
    graph = graph_of(linear_model(ending=ending), output={"name": "logits", "kind": kind})
    x = inputs(10)
    out = run(graph, x, np.ones(10), np.zeros(10), table_of((COUNTS, TARGETS[0])))
    logits, probabilities = expected(x, 1.0, COUNTS, TARGETS[0])
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    np.testing.assert_allclose(out.probabilities, probabilities, atol=1e-5)


def test_probabilities_that_no_softmax_made_are_taken_as_their_logarithms(graph_of):
    model = linear_model(ending="Softmax")
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["p"]))
    model.graph.output[0].name = "p"
    graph = graph_of(model, output={"name": "p", "kind": "probabilities"})
    x = inputs(10)
    out = run(graph, x, np.ones(10), np.zeros(10), table_of((COUNTS, TARGETS[1])))
    np.testing.assert_allclose(
        out.probabilities, expected(x, 1.0, COUNTS, TARGETS[1])[1], atol=1e-5
    )


def test_half_precision_logits_are_adjusted_in_single_precision(graph_of):
    spec = {"name": "x", "kind": "tensor", "shape": [None, 6], "dtype": "float16"}
    graph = graph_of(linear_model(dtype=TensorProto.FLOAT16), input=spec)
    out = run(
        graph, inputs(4).astype(np.float16), np.ones(4), np.zeros(4), table_of((COUNTS, TARGETS[1]))
    )
    want = softmax(out.logits.astype(np.float64) - table_of((COUNTS, TARGETS[1]))[0])
    np.testing.assert_allclose(out.probabilities, want, atol=1e-6)


def read_in_branches(model):
    """The model with its logits read by a node and, in branches, by two more."""
    branches = []
    for op in ("Identity", "Neg"):
        read = helper.make_node(op, ["logits"], [f"of_{op}"])
        value = helper.make_tensor_value_info(f"of_{op}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([read], op, [], [value]))
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["yes"], value=yes),
            helper.make_node(
                "If", ["yes"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
            ),
            helper.make_node("Add", ["chosen", "logits"], ["twice"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, None))
    return model


def test_float32_logits_are_not_copied_even_where_other_nodes_read_them(graph_of):
    composed = head.compose(read_in_branches(linear_model()), output="logits", kind="logits")
    assert "Cast" not in {node.op_type for node in composed.graph.node}
    graph = graph_of(model=read_in_branches(linear_model()))
    x = inputs(6)
    out = run(graph, x, [1.0] * 6, [0] * 6, table_of((COUNTS, TARGETS[1])))
    np.testing.assert_allclose(
        out.probabilities, expected(x, 1.0, COUNTS, TARGETS[1])[1], atol=1e-5
    )


def test_a_graph_that_insists_on_a_batch_size_takes_smaller_ones(graph_of):
    spec = {"name": "x", "kind": "tensor", "shape": [4, 6], "dtype": "float32"}
    graph = graph_of(linear_model(batch=4), input=spec)
    out = run(graph, inputs(3), np.ones(3), np.zeros(3), table_of((COUNTS, TARGETS[1])))
    np.testing.assert_allclose(
        out.probabilities, expected(inputs(3), 1.0, COUNTS, TARGETS[1])[1], atol=1e-5
    )


def test_a_name_of_the_services_own_is_refused():
    model = linear_model()
    model.graph.node[0].output[0] = head.TAU
    with pytest.raises(UnsupportedGraph, match=r"adjustment\.tau"):
        head.compose(model, output="logits", kind="logits")


def test_an_old_opset_is_refused_by_number():
    with pytest.raises(UnsupportedGraph, match="opset 12"):
        head.compose(linear_model(opset=12), output="logits", kind="logits")


def test_an_unknown_output_is_refused_with_the_names_there_are():
    with pytest.raises(UnsupportedGraph, match="no output 'z'; expected one of logits"):
        head.compose(linear_model(), output="z", kind="logits")


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(UnsupportedGraph, match=r"model\.onnx"):
        compose_file(tmp_path / "model.onnx", output="y", kind="logits", temperature=1.0)


def test_external_data_that_leaves_the_folder_is_refused(tmp_path):
    model = linear_model()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnsupportedGraph, match="leaves the folder"):
        external_files(model, tmp_path / "folder")
