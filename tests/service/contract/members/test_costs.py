"""Costs: the decision of least expected cost, and costs that are wrong."""

import numpy as np
import pytest

from service.contract.members import costs as costs_module
from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.members.costs import MAX_COST, MAX_MATRIX_CLASSES, MAX_PAIRS, REJECTED, Costs
from service.contract.prior import resolve_prior

NAMES = ["cat", "lynx", "dog"]
P = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.34, 0.33, 0.33]])


def costs_of(document, names=NAMES):
    body = parse_prior({"costs": document})
    prior = resolve_prior(body, class_names=names, class_counts=[1] * len(names), loss_tau=0.0)
    assert prior.costs is not None
    return prior.costs


def faults_of(document, names=NAMES):
    with pytest.raises(InvalidPrior) as caught:
        costs_of(document, names)
    return {error["field"]: error["message"] for error in caught.value.errors}


def by_definition(probabilities, matrix, reject=None):
    """(decisions, costs) by the sum over every pair of classes, one at a time."""
    found = []
    for p in probabilities:
        each = [sum(p[y] * matrix[y][k] for y in range(len(p))) for k in range(len(p))]
        best = min(range(len(p)), key=each.__getitem__)
        rejected = reject is not None and reject < each[best]
        found.append((REJECTED, reject) if rejected else (best, each[best]))
    return found


def agree(costs, probabilities, matrix, reject=None):
    decided = costs.decide(probabilities)
    expected = by_definition(probabilities, matrix, reject)
    assert decided.index.tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(decided.expected_cost, [cost for _, cost in expected], atol=1e-12)


def test_an_error_costs_1_unless_said_otherwise_and_the_decision_is_the_most_probable_class():
    costs = costs_of({"reject": 1.0})
    assert costs.decide(P).index.tolist() == P.argmax(axis=1).tolist()
    np.testing.assert_allclose(costs.decide(P).expected_cost, 1 - P.max(axis=1))


def test_missing_a_dear_class_makes_its_decision_cheaper():
    costs = costs_of({"miss": {"lynx": 10}})
    assert costs.decide(P[:1]).index.tolist() == [1]
    assert costs_of({"miss": [1, 10, 1]}).decide(P).index.tolist() == costs.decide(P).index.tolist()
    agree(costs, P, [[0, 1, 1], [10, 0, 10], [1, 1, 0]])


def test_a_row_is_rejected_where_that_costs_less_than_every_decision():
    costs = costs_of({"reject": 0.4})
    decided = costs.decide(P)
    assert decided.index.tolist() == [REJECTED, 2, REJECTED]
    assert decided.expected_cost.tolist() == pytest.approx([0.4, 0.2, 0.4])
    np.testing.assert_allclose(costs.of_decisions(P, decided.index), decided.expected_cost)


def test_a_row_that_is_as_cheap_to_decide_is_not_rejected():
    assert costs_of({"reject": 0.5}).decide([[0.5, 0.25, 0.25]]).index.tolist() == [0]


def test_pairs_override_what_missing_their_true_class_costs():
    costs = costs_of({"miss": {"lynx": 3}, "pairs": [["lynx", "cat", 20], ["dog", "lynx", 0.5]]})
    agree(costs, P, [[0, 1, 1], [20, 0, 3], [1, 0.5, 0]])


@pytest.mark.parametrize("reject", [None, 0.3])
@pytest.mark.parametrize("classes", [2, 7, 40])
def test_pairs_and_the_whole_matrix_decide_alike(classes, reject):
    rng = np.random.default_rng(classes)
    names = [f"c{i}" for i in range(classes)]
    matrix = rng.uniform(0, 10, (classes, classes))
    np.fill_diagonal(matrix, 0)
    probabilities = rng.dirichlet(np.ones(classes), 50)
    pairs = [
        [names[y], names[k], matrix[y, k]] for y in range(classes) for k in range(classes) if y != k
    ]
    more = {} if reject is None else {"reject": reject}
    agree(costs_of({"pairs": pairs, **more}, names), probabilities, matrix, reject)
    agree(costs_of({"matrix": matrix.tolist(), **more}, names), probabilities, matrix, reject)


def test_sparse_pairs_agree_with_the_definition_in_every_chunk(monkeypatch):
    monkeypatch.setattr(costs_module, "_CHUNK_CELLS", 100)
    rng = np.random.default_rng(3)
    names = [f"c{i}" for i in range(30)]
    matrix = np.ones((30, 30)) - np.eye(30)
    pairs = []
    for y, k in {tuple(rng.integers(0, 30, 2).tolist()) for _ in range(60)}:
        if y != k:
            matrix[y, k] = rng.uniform(2, 20)
            pairs.append([names[y], names[k], matrix[y, k]])
    costs = costs_of({"pairs": pairs}, names)
    assert costs.matrix is None
    agree(costs, rng.dirichlet(np.ones(30), 40), matrix)


@pytest.mark.parametrize("reject", [4e-5, 6e-5])
@pytest.mark.parametrize("pairs", [[], [["cat", "dog", 1e-4]]])
def test_costs_of_very_different_sizes_decide_by_the_small_ones_too(pairs, reject):
    """Their sums would lose the small ones: the double next to 5e11 is 6e-5 away."""
    costs = costs_of(
        {"miss": {"cat": 1e12, "lynx": 1e-4, "dog": 1e-4}, "pairs": pairs, "reject": reject}
    )
    to_dog = pairs[0][2] if pairs else 1e12
    matrix = [[0, 1e12, to_dog], [1e-4, 0, 1e-4], [1e-4, 1e-4, 0]]
    agree(costs, P, matrix, reject)


def test_pairs_of_many_classes_whose_sums_would_lose_digits_are_refused():
    names = [f"n{i}" for i in range(MAX_MATRIX_CLASSES + 1)]
    rare = {"miss": {"n1": 1e12}, "reject": 1e-3}
    assert costs_of(rare, names).decide(np.eye(len(names))[:2]).index.tolist() == [0, 1]
    message = faults_of({**rare, "pairs": [["n1", "n2", 1.0]]}, names)["costs.pairs"]
    assert "more than 1e+08 times the smallest above 0" in message
    assert "raise the smallest, or make it 0" in message


def test_many_classes_take_sparse_pairs_in_memory_that_grows_with_the_pairs():
    names = [f"c{i}" for i in range(20_000)]
    costs = costs_of({"pairs": [["c1", "c0", 50.0]], "reject": 2.0}, names)
    probabilities = np.zeros((2, 20_000))
    probabilities[:, 0], probabilities[:, 1] = (0.9, 0.99), (0.1, 0.01)
    assert costs.decide(probabilities).index.tolist() == [1, 0]
    assert costs.nbytes < 200_000
    assert costs_of({"matrix": [[0, 1, 1], [1, 0, 1], [1, 1, 0]]}).nbytes == 72
    assert costs_of({"reject": 1}).nbytes == 24


def test_a_correct_decision_may_have_a_cost_in_the_whole_matrix():
    costs = costs_of({"matrix": [[0.5, 1, 1], [1, 0, 1], [1, 1, 0]]})
    assert costs.decide([[1.0, 0.0, 0.0]]).expected_cost.tolist() == [0.5]


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        (7, "costs", "expected an object"),
        ({}, "costs", "is empty; give miss"),
        ({"mis": 1, "reject": 1}, "costs.mis", "unknown member"),
        ({"miss": 3}, "costs.miss", "by class name, or a list"),
        ({"miss": {"lynx": -1}}, "costs.miss.lynx", "got -1"),
        ({"miss": {"fox": 1}}, "costs.miss.fox", "unknown class 'fox'"),
        ({"miss": [1, 2]}, "costs.miss", "has 2 entries; expected 3, one for each class"),
        ({"miss": [1, True, 2]}, "costs.miss.1", "got True"),
        ({"miss": [0, 0, 0]}, "costs", "every decision costs 0"),
        ({"pairs": 3}, "costs.pairs", "expected a list"),
        ({"pairs": [["cat", "lynx"]]}, "costs.pairs.0", "expected"),
        ({"pairs": [["cat", "lynx", "9"]]}, "costs.pairs.0", "expected"),
        ({"pairs": [["cat", "fox", 9]]}, "costs.pairs.0", "unknown class 'fox'"),
        ({"pairs": [["cat", "cat", 9]]}, "costs.pairs.0", "twice; expected two classes"),
        ({"pairs": [["cat", "dog", 9], ["cat", "dog", 8]]}, "costs.pairs.1", "occurs twice"),
        ({"matrix": [1, 2]}, "costs.matrix", "a list of rows"),
        ({"matrix": [[0, 1], [1, 0]]}, "costs.matrix", "has 2 rows of 2 costs; the model has 3"),
        ({"matrix": [[0] * 3] * 3}, "costs", "every decision costs 0"),
        ({"matrix": [[0, float("nan"), 1]]}, "costs.matrix.0.1", "got nan"),
        ({"matrix": [[0]], "reject": 1, "miss": [1]}, "costs.matrix", "leave out miss and pairs"),
        ({"reject": MAX_COST * 2}, "costs.reject", "expected a cost from 0"),
        ({"reject": "free"}, "costs.reject", "got 'free'"),
    ],
)
def test_wrong_costs_are_named(document, field, message):
    assert message in faults_of(document)[field]


def test_costs_of_hostile_size_are_refused_in_a_few_words():
    pairs = [["cat", "dog", 1.0]] * (MAX_PAIRS + 1)
    assert "at most" in faults_of({"pairs": pairs})["costs.pairs"]
    rows = [[0.0]] * (MAX_MATRIX_CLASSES + 1)
    assert "use pairs" in faults_of({"matrix": rows})["costs.matrix"]
    names = [f"c{i}" for i in range(MAX_MATRIX_CLASSES + 1)]
    assert "use pairs" in faults_of({"matrix": [[1.0]]}, names)["costs.matrix"]
    assert "dict of 9" in faults_of({"reject": dict.fromkeys("abcdefghi")})["costs.reject"]
    assert len(faults_of({"miss": ["x"] * 10_000})) <= 52


def test_a_prior_without_costs_is_written_as_before_so_that_older_programs_can_read_it():
    assert "costs" not in PriorBody().model_dump()
    written = parse_prior({"costs": {"reject": 0.2}}).model_dump(mode="json")
    assert written["costs"]["reject"] == 0.2
    assert PriorBody.model_validate(written).costs == parse_prior(written).costs


def test_costs_need_arrays_of_one_kind():
    assert isinstance(costs_of({"miss": {"lynx": 2}}), Costs)


def test_equal_costs_have_equal_digests_and_any_other_cost_changes_it():
    documents = [
        {"miss": {"lynx": 5.0}},
        {"miss": {"lynx": 6.0}},
        {"miss": {"lynx": 5.0}, "reject": 0.5},
        {"miss": {"lynx": 5.0}, "pairs": [["cat", "dog", 2.0]]},
        {"matrix": [[0.0, 1.0, 5.0], [1.0, 0.0, 1.0], [5.0, 5.0, 0.0]]},
    ]
    digests = [costs_of(each).digest() for each in documents]
    assert digests == [costs_of(each).digest() for each in documents]
    assert len(set(digests)) == len(documents)
