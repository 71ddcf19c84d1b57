"""A prior that gives most of a large class list one value is held in little memory, and is the
same prior as with all its values written out.
"""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.bundle import load_bundle
from service.contract.members.body import InvalidPrior, parse_prior
from service.contract.members.sparse import sparse_weights
from service.contract.prior import own_source, resolve_prior
from service.graph.prior_table import PriorTable
from service.priors.changes import AddCounts
from service.priors.revisions import PriorConflict, StoredRevision
from service.priors.snapshot import resolve
from tests.support.small_models import linear_model, publish_model

CLASSES = 2000
NAMES = [f"class-{i}" for i in range(CLASSES)]


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """A model of 2,000 classes with these fields of model.json."""

    def build(**changes):
        folder = publish_model(
            tmp_path_factory.mktemp("models"),
            model=linear_model(classes=CLASSES),
            classes=CLASSES,
            **{"class_counts": [1.0 + 7 * i for i in range(CLASSES)], **changes},
        )
        return load_bundle(folder)

    return build


@pytest.fixture(scope="module")
def bundles(bundle_of):
    made = {
        "counts": bundle_of(),
        "half": bundle_of(loss_tau=0.5),
        "balanced": bundle_of(loss_tau=1.0),
        "unknown": bundle_of(class_counts=None, default_tau=0.0),
    }
    return made.__getitem__  # a function, since Hypothesis would print all class names of a dict


def both_ways(bundle, body):
    """The prior of a body as the service resolves it, and with dense vectors only."""
    return resolve(bundle, "p", 1, parse_prior(body), ("p", 1)), in_full(bundle, body)


def in_full(bundle, body):
    """The prior of a body with dense vectors only."""
    return resolve_prior(
        parse_prior(body),
        class_names=bundle.class_names,
        class_counts=bundle.class_counts,
        loss_tau=bundle.loss_tau,
    )


def fault(resolved):
    """The error that a call raises, as its type and words; None when it returns."""
    try:
        resolved()
    except ValueError as wrong:
        return type(wrong), str(wrong)
    return None


VALUE = st.sampled_from([0.0, 1e-12, 0.25, 1.0, 3.0, 1e300])
WEIGHTS = st.dictionaries(st.integers(0, CLASSES - 1).map("class-{}".format), VALUE, max_size=12)


BODIES = st.fixed_dictionaries(
    {
        "target": st.one_of(st.just("uniform"), st.just("training"), WEIGHTS),
        "label_frequencies": st.one_of(st.none(), WEIGHTS),
        "others": st.sampled_from([0.0, 1e-9, 2.0]),
        "smoothing": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=80, deadline=None)
@given(model=st.sampled_from(["counts", "half", "balanced", "unknown"]), body=BODIES)
def test_a_sparse_prior_equals_its_dense_form(bundles, model, body):
    bundle = bundles(model)
    wrong = fault(lambda: in_full(bundle, body))
    assert wrong == fault(lambda: resolve(bundle, "p", 1, parse_prior(body), ("p", 1)))
    if wrong is not None:
        return
    found, dense = both_ways(bundle, body)
    for field in ("label_frequencies", "target", "log_source", "log_target"):
        one, other = getattr(found.prior, field), getattr(dense, field)
        assert (one is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    if dense.offset is not None:
        np.testing.assert_allclose(np.asarray(found.offset), dense.offset, rtol=2e-7, atol=2e-7)
        some = np.array([[0, 1, CLASSES - 1], [7, 7, 999]])
        np.testing.assert_array_equal(found.offset[some], np.asarray(found.offset)[some])


def test_classes_that_a_sparse_prior_treats_alike_get_equal_offsets(bundles):
    body = {"target": {"class-5": 3, "class-9": 3}, "others": 1, "label_frequencies": {}}
    offset = np.asarray(both_ways(bundles("counts"), body)[0].offset)
    assert len(set(offset.tolist())) == 2
    assert offset[5] == offset[9] < offset[0]


@pytest.mark.parametrize("frequencies", [None, {"class-3": 10.0, "class-1999": 2.0}])
def test_memory_grows_with_the_classes_named_and_not_with_the_class_list(bundles, frequencies):
    body = {"target": {f"class-{i}": 5 for i in range(50)}, "others": 1}
    found, _ = both_ways(bundles("counts"), {**body, "label_frequencies": frequencies})
    assert found.nbytes < 50 * 5 * 8
    assert both_ways(bundles("counts"), {})[0].nbytes == 0  # the paper's rule names no class
    many, _ = both_ways(bundles("counts"), {"target": dict.fromkeys(NAMES, 2), "others": 1})
    assert many.nbytes > 3 * CLASSES * 8


def test_a_row_of_the_table_is_written_out_once_and_again_only_when_it_is_gone(bundles):
    table = PriorTable(CLASSES, capacity=3)
    priors = [
        both_ways(bundles("counts"), {"target": {"class-1": i + 2}, "others": 1})[0]
        for i in range(3)
    ]
    for number, writes in ((0, 1), (1, 2), (0, 2), (2, 3), (1, 4)):
        slot = table.acquire(number, priors[number].offset)
        np.testing.assert_array_equal(table.rows[slot], np.asarray(priors[number].offset))
        assert table.generation == writes
        table.release(slot)


def test_a_wrong_sparse_prior_is_told_as_a_dense_one_is(bundles):
    body = {"target": {"wolf": 1, "class-1": 2}, "others": 1, "label_frequencies": {"class-2": 0}}
    with pytest.raises(InvalidPrior) as wrong:
        in_full(bundles("counts"), body)
    with pytest.raises(InvalidPrior) as again:
        resolve(bundles("counts"), "p", 1, parse_prior(body), ("p", 1))
    assert again.value.errors == wrong.value.errors
    assert [each["field"] for each in again.value.errors] == [
        "label_frequencies.class-2",
        "target.wolf",
    ]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("unknown", {"target": {"class-1": 3}, "others": 1}),
        ("counts", {"target": [1.0 + i % 2 for i in range(CLASSES)]}),
        ("counts", {"target": "training", "label_frequencies": [1.0 + i for i in range(CLASSES)]}),
        ("counts", {"target": "training"}),
        ("counts", {"target": {"class-1": 0}, "others": 0}),
        ("counts", {"target": {"class-1": 1e300}, "others": 1e-12}),
    ],
)
def test_what_is_not_sparse_is_resolved_in_full(bundles, model, body):
    bundle = bundles(model)
    wrong = fault(lambda: in_full(bundle, body))
    assert wrong == fault(lambda: resolve(bundle, "p", 1, parse_prior(body), ("p", 1)))
    if wrong is None:
        found, dense = both_ways(bundle, body)
        np.testing.assert_allclose(found.prior.target, dense.target, rtol=1e-12)


@pytest.mark.parametrize("odd", [-1.0, float("inf"), 0.0])
def test_weights_that_are_no_prior_are_left_to_the_dense_way(odd):
    assert sparse_weights({"class-1": odd}, 0.0, NAMES) is None
    assert sparse_weights({"wolf": 1.0}, 1.0, NAMES) is None


def test_a_measured_source_is_shared_too():
    measured = np.log([0.5, 0.3, 0.2])
    own = own_source([3.0, 2.0, 1.0], classes=3, loss_tau=0.0, calibrated_log_source=measured)
    np.testing.assert_array_equal(own.log_source, measured)
    with pytest.raises(ValueError, match="read-only"):
        own.log_source[0] = 0


def test_the_priors_of_a_short_class_list_share_nothing(tmp_path):
    assert load_bundle(publish_model(tmp_path)).own_source is None


def test_counts_added_to_a_sparse_prior_leave_it_sparse(bundles):
    bundle = bundles("counts")
    body = parse_prior({"target": {"class-7": 4}, "others": 2})
    stored = StoredRevision(
        bundle.name, "p", 1, body, bundle.class_digest, datetime(2026, 1, 1, tzinfo=UTC), "me", ""
    )
    added = AddCounts.checked(
        "p", {"target": {"class-8": 3, "class-7": 1}}, bundle=bundle, note=""
    ).apply(stored)
    assert added.body.target == {"class-7": 5, "class-8": 5}
    assert added.body.others == 2
    probabilities = AddCounts.checked("p", {"target": {"class-8": 3}}, bundle=bundle, note="")
    halves = parse_prior({"target": {"class-7": 1}, "others": 0.5})
    with pytest.raises(PriorConflict, match="holds probabilities"):
        probabilities.apply(replace(stored, body=halves))
