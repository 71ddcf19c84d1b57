"""Priors as people write them: what is accepted, what it becomes, and how faults are named."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract.adjustment import LOG_ZERO
from service.contract.members.body import (
    MAX_LISTED_ERRORS,
    InvalidPrior,
    PriorBody,
    body_of,
    document_of,
    parse_prior,
)
from service.contract.prior import UnknownLabelFrequencies, own_source, resolve_prior

NAMES = ["cat", "dog", "lynx"]
COUNTS = [900, 90, 10]


def resolve(body, counts=COUNTS, loss_tau=0.0):
    return resolve_prior(
        parse_prior(body), class_names=NAMES, class_counts=counts, loss_tau=loss_tau
    )


def faults(body, **keywords):
    with pytest.raises(InvalidPrior) as caught:
        resolve(body, **keywords)
    return {fault["field"]: fault["message"] for fault in caught.value.errors}


def test_a_long_name_is_cut_in_its_fault():
    (field,) = faults({"target": {"c" * 10**6: 1}, "others": 1})
    assert field.startswith("target.ccc")
    assert len(field) == 200


def test_an_empty_prior_is_the_models_counts_with_a_uniform_target():
    prior = resolve({})
    assert prior.label_frequencies == pytest.approx([0.9, 0.09, 0.01])
    assert prior.target == pytest.approx(np.full(3, 1 / 3))
    assert prior.offset == pytest.approx(np.log([0.9, 0.09, 0.01]) - math.log(1 / 3))
    assert prior.warnings == ()


def test_names_and_positions_counts_and_probabilities_mean_the_same():
    by_name = resolve({"target": {"lynx": 2, "cat": 1, "dog": 1}})
    by_position = resolve({"target": [0.25, 0.25, 0.5]})
    assert by_name.log_target == pytest.approx(by_position.log_target)


def test_others_gives_the_value_of_each_class_that_is_not_named():
    prior = resolve({"target": {"lynx": 8}, "others": 1})
    assert prior.target == pytest.approx([0.1, 0.1, 0.8])
    prior = resolve({"label_frequencies": {"cat": 8}, "others": 1})
    assert prior.label_frequencies == pytest.approx([0.8, 0.1, 0.1])


def test_the_target_training_is_the_priors_own_frequencies_or_else_the_models():
    own = resolve({"label_frequencies": [1, 1, 2], "target": "training"})
    assert own.target == pytest.approx([0.25, 0.25, 0.5])
    assert own.offset == pytest.approx(np.zeros(3))
    assert resolve({"target": "training"}).target == pytest.approx([0.9, 0.09, 0.01])


def test_the_source_follows_loss_tau():
    prior = resolve({"label_frequencies": [16, 4, 1]}, loss_tau=0.5)
    assert np.exp(prior.log_source) == pytest.approx(np.array([4, 2, 1]) / 7)


def test_on_a_model_trained_at_loss_tau_1_label_frequencies_warn_that_they_do_nothing():
    prior = resolve({"label_frequencies": [1, 2, 3]}, loss_tau=1)
    assert prior.offset == pytest.approx(np.zeros(3))
    assert "no effect" in prior.warnings[0]
    assert resolve({}, loss_tau=1).warnings == ()


def test_smoothing_adds_to_each_count_and_lets_a_zero_pass():
    prior = resolve({"label_frequencies": [8, 0, 0], "smoothing": 1})
    assert prior.label_frequencies == pytest.approx(np.array([9, 1, 1]) / 11)


def test_a_zero_label_frequency_is_refused_by_name():
    found = faults({"label_frequencies": [8, 0, 0]})
    assert set(found) == {"label_frequencies.dog", "label_frequencies.lynx"}
    assert "ask for smoothing" in found["label_frequencies.dog"]


def test_a_zero_target_is_legal_and_all_zeros_are_not():
    assert resolve({"target": [1, 1, 0]}).log_target[2] == LOG_ZERO
    assert "all entries are 0" in faults({"target": [0, 0, 0]})["target"]


def test_without_any_label_frequencies_there_is_no_offset():
    prior = resolve({"target": [1, 2, 3]}, counts=None)
    assert prior.offset is None
    assert prior.label_frequencies is None
    with pytest.raises(UnknownLabelFrequencies, match="target 'training'"):
        resolve({"target": "training"}, counts=None)


def test_without_counts_a_model_at_loss_tau_1_still_has_its_uniform_source():
    prior = resolve({"target": [2, 1, 1]}, counts=None, loss_tau=1)
    assert prior.offset == pytest.approx(math.log(1 / 3) - np.log([0.5, 0.25, 0.25]))


def test_expected_and_note_are_kept():
    body = parse_prior({"expected": True, "note": "winter"})
    assert body.note == "winter"
    assert resolve({"expected": True}).expected


def test_a_null_label_frequencies_is_the_models_own():
    assert resolve({"label_frequencies": None}).label_frequencies[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"target": {"cat": 1}}, "target", "2 classes are not named (the first is 'dog')"),
        ({"target": {"wolf": 1}, "others": 1}, "target.wolf", "unknown class 'wolf'"),
        ({"target": {"wolf": 1}}, "target.wolf", "unknown class"),
        ({"target": [1, 2]}, "target", "has 2 entries; expected 3, one for each class"),
        ({"label_frequencies": []}, "label_frequencies", "has 0 entries"),
        (
            {"target": [1, 1, -0.1]},
            "target.lynx",
            "'lynx' has probability -0.1; expected a number of at least 0",
        ),
        (
            {"label_frequencies": [1, 1, -2]},
            "label_frequencies.lynx",
            "'lynx' has label frequency -2",
        ),
        ({"target": [1, "2", 1]}, "target.1", "expected a number of at least 0; got '2'"),
        ({"target": [1, True, 1]}, "target.1", "got True"),
        ({"target": [1, None, 1]}, "target.1", "got None"),
        ({"target": [1, math.nan, 1]}, "target.1", "got nan"),
        ({"target": {"cat": 10**400}}, "target.cat", "got 1000"),
        ({"target": "balanced"}, "target", "a list or 'uniform' or 'training'; got 'balanced'"),
        ({"label_frequencies": "uniform"}, "label_frequencies", "or null; got 'uniform'"),
        ({"target": 3}, "target", "got 3"),
        ({"target": None}, "target", "a list or 'uniform' or 'training'; got None"),
        ({"smoothing": -1}, "smoothing", "got -1"),
        (
            {"smoothing": 1e308, "label_frequencies": [1e308] * 3},
            "smoothing",
            "makes a label frequency infinite",
        ),
        ({"others": "many"}, "others", "got 'many'"),
        ({"tagret": [1, 1, 1]}, "tagret", "unknown member"),
        ({"note": "x" * 2001}, "note", "2000"),
        ([1, 1, 1], "", "the prior is a list; expected an object with target"),
        ("uniform", "", "the prior is a string; expected"),
        (None, "", "the prior is null; expected"),
        (True, "", "the prior is a boolean; expected"),
        (3, "", "the prior is a number; expected"),
        ({1}, "", "the prior is set; expected"),
    ],
)
def test_a_fault_is_named_by_its_field_and_what_came(body, field, message):
    assert message in faults(body)[field]


def test_every_wrong_field_is_named_at_once():
    found = faults({"label_frequencies": [1, -1, 0], "target": {"cat": -1, "wolf": 2}})
    assert {"label_frequencies.dog", "target.cat", "target.wolf"} <= set(found)


def test_the_list_of_faults_is_bounded_and_says_how_many_more():
    body = {"target": {f"class {i}": "x" * 500 for i in range(80)}}
    with pytest.raises(InvalidPrior) as caught:
        parse_prior(body)
    assert len(caught.value.errors) == MAX_LISTED_ERRORS + 1
    assert caught.value.errors[-1]["message"] == "and 30 more"
    assert all(len(fault["message"]) < 150 for fault in caught.value.errors)


def test_a_bad_label_frequency_is_not_hidden_by_a_target_that_refers_to_it():
    found = faults({"label_frequencies": [0, 1, 1], "target": "training"}, counts=None)
    assert set(found) == {"label_frequencies.cat"}


def test_a_missing_member_of_a_wire_model_is_called_missing():
    from pydantic import BaseModel

    from service.contract.members.body import pydantic_errors

    class Wire(BaseModel):
        needed: int

    with pytest.raises(ValidationError) as caught:
        Wire.model_validate({})
    assert pydantic_errors(caught.value) == [("needed", "missing; this member is required")]


weights = st.lists(st.just(0.0) | st.floats(1e-149, 1e150), min_size=3, max_size=3)


@given(weights.filter(any), weights.filter(all))
def test_any_accepted_prior_is_a_pair_of_finite_distributions(target, frequencies):
    prior = resolve({"target": target, "label_frequencies": frequencies})
    assert prior.target.sum() == pytest.approx(1)
    assert prior.label_frequencies.sum() == pytest.approx(1)
    assert np.isfinite(prior.offset).all()
    assert np.exp(prior.log_target).sum() == pytest.approx(1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
members = st.sampled_from(sorted(PriorBody.model_fields))


@given(json_values | st.dictionaries(members | st.text(max_size=3), json_values))
def test_no_body_fails_in_any_way_but_the_named_ones(body):
    try:
        resolve(body)
    except (InvalidPrior, UnknownLabelFrequencies) as error:
        json.dumps(getattr(error, "errors", []), allow_nan=False)


@pytest.mark.parametrize("form", ["object", "list"])
def test_a_long_vector_is_checked_as_a_short_one_is(form):
    """From 4,097 entries on, entries are not checked by pydantic."""

    def body(odd, length):
        values = [odd, *range(1, length)]
        named = {f"c{n}": value for n, value in enumerate(values)}
        return {"target": named if form == "object" else values, "note": "long", "smoothing": 1}

    for odd in (0, 1.5, -1, 10**20):
        found, text = parse_prior(body(odd, 5000)), parse_prior(body(odd, 5))
        assert found == PriorBody.model_validate(body(odd, 5000))
        assert document_of(found) == found.model_dump(mode="json")
        assert document_of(found, without=["note"]) == found.model_dump(
            mode="json", exclude={"note"}
        )
        assert list(document_of(found)) == list(text.model_dump(mode="json"))
    for odd in ("1", True, None, [], 10**400, float("nan"), float("inf")):
        refusals = []
        for length in (5, 5000):
            with pytest.raises(InvalidPrior) as caught:
                parse_prior(body(odd, length))
            refusals.append(str(caught.value))
            with pytest.raises(ValidationError):
                body_of(body(odd, length))
        assert refusals[0] == refusals[1]


def test_a_measured_source_replaces_that_of_the_counts_but_not_one_that_the_prior_names():
    measured = np.log([0.8, 0.15, 0.05])

    def source(body):
        return resolve_prior(
            parse_prior(body),
            class_names=NAMES,
            class_counts=COUNTS,
            loss_tau=0.0,
            calibrated_log_source=measured,
        )

    assert source({}).calibrated
    assert source({}).log_source is measured
    assert source({"target": "training"}).target == pytest.approx([0.9, 0.09, 0.01])
    named = source({"label_frequencies": [900, 90, 10]})
    assert not named.calibrated
    assert np.exp(named.log_source) == pytest.approx([0.9, 0.09, 0.01])


def test_where_label_frequencies_have_no_effect_the_measured_source_stays():
    measured = np.log([0.4, 0.35, 0.25])
    prior = resolve_prior(
        parse_prior({"label_frequencies": [900, 90, 10], "target": "training"}),
        class_names=NAMES,
        class_counts=COUNTS,
        loss_tau=1.0,
        calibrated_log_source=measured,
    )
    assert prior.calibrated
    assert prior.log_source is measured
    assert prior.target == pytest.approx([0.9, 0.09, 0.01])
    assert "have no effect" in prior.warnings[0]


def test_so_it_does_for_a_large_class_list():
    names = [f"class-{i}" for i in range(1000)]
    measured = np.log(np.arange(1.0, 1001) / 500_500)
    own = own_source(None, classes=1000, loss_tau=1.0, calibrated_log_source=measured)
    prior = resolve_prior(
        parse_prior({"label_frequencies": {"class-3": 9}, "others": 1, "target": "training"}),
        class_names=names,
        class_counts=None,
        loss_tau=1.0,
        calibrated_log_source=measured,
        own=own,
    )
    assert prior.calibrated
    np.testing.assert_array_equal(prior.log_source, measured)
    assert prior.target[3] == pytest.approx(9 / 1008)
