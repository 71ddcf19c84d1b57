"""The S object: what it holds, and how its numbers relate."""

import json

import numpy as np
import pytest

from service.contract.adjustment import log_softmax
from service.contract.adjustment import log_target_prior as target_of
from service.contract.scores import balanced_error
from training.commands.tables import table
from training.scores.evaluate import score

COUNTS = np.array([900, 90, 9])
LOG_SOURCE = np.log(COUNTS / COUNTS.sum())


def split(counts=(60, 60, 60), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    return rng.normal(size=(len(labels), 3)) + 1.5 * np.eye(3)[labels] + LOG_SOURCE, labels


def scored(logits, labels, **changes):
    arguments = {
        "log_source_prior": LOG_SOURCE,
        "temperature": 1.2,
        "chosen_tau": 0.8,
        "train_class_counts": COUNTS,
    } | changes
    return score(logits, labels, **arguments)


def test_the_object_has_the_members_of_the_contract_and_is_json():
    result = scored(*split())
    assert {"n", "error", "balanced_error", "many", "medium", "few", "ece", "nll"} <= set(result)
    assert len(result["per_class"]) == 3
    assert set(result["at_tau"]) == {"0", "1", "chosen"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_top_level_is_the_chosen_tau():
    logits, labels = split()
    result = scored(logits, labels)
    assert result["balanced_error"] == result["at_tau"]["chosen"]["balanced_error"]
    predicted = (logits / 1.2 - 0.8 * LOG_SOURCE).argmax(1)
    assert result["balanced_error"] == pytest.approx(balanced_error(predicted, labels, 3))
    assert result["n"] == 180
    assert result["at_tau"]["chosen"]["tau"] == 0.8


def test_at_tau_0_the_model_is_scored_as_trained_and_at_1_after_the_whole_change():
    logits, labels = split()
    at_tau = scored(logits, labels)["at_tau"]
    for name, tau in (("0", 0), ("1", 1)):
        predicted = (logits / 1.2 - tau * LOG_SOURCE).argmax(1)
        assert at_tau[name]["balanced_error"] == pytest.approx(balanced_error(predicted, labels, 3))
    assert at_tau["1"]["balanced_error"] < at_tau["0"]["balanced_error"]


def test_each_group_is_its_classes_mean_and_the_balanced_error_that_of_all():
    result = scored(*split())
    assert [result["many"], result["medium"], result["few"]] == result["per_class"]
    assert result["balanced_error"] == pytest.approx(np.mean(result["per_class"]))


def test_without_training_counts_there_are_no_groups_and_empty_ones_are_null():
    logits, labels = split()
    assert scored(logits, labels, train_class_counts=None)["many"] is None
    assert scored(logits, labels, train_class_counts=[900, 901, 902])["few"] is None


def test_a_class_absent_from_the_split_is_null():
    result = scored(*split((20, 20, 0)))
    assert result["per_class"][2] is None
    assert result["few"] is None


def test_repeating_a_classs_examples_changes_only_the_plain_error():
    logits, labels = split()
    many = np.concatenate([np.arange(180), np.tile(np.flatnonzero(labels == 0), 9)])
    balanced = scored(logits, labels, intervals=False)
    skewed = scored(logits[many], labels[many], intervals=False)
    for name in ("balanced_error", "nll", "ece", "brier", "many", "few"):
        assert skewed[name] == pytest.approx(balanced[name]), name
    assert skewed["error"] != pytest.approx(balanced["error"])


def test_probabilities_are_scored_under_the_target_that_they_were_adjusted_to():
    logits, labels = split((90, 30, 60))
    target = np.array([0.5, 0.5, 0.0])
    result = scored(
        logits, labels, log_target_prior=target_of(target), chosen_tau=1.0, temperature=1.0
    )
    z = log_softmax((logits - LOG_SOURCE)[:, :2])
    own = [-z[labels == y, y].mean() for y in (0, 1)]
    assert result["nll"] == pytest.approx(np.mean(own))


@pytest.mark.parametrize("name", ["error", "balanced_error"])
def test_the_interval_of_an_error_holds_it(name):
    low, high = scored(*split())[f"{name}_interval"]
    assert low < scored(*split())[name] < high
    assert f"{name}_interval" not in scored(*split(), intervals=False)


def test_a_class_with_few_validation_rows_is_named_and_the_served_row_is_marked():
    found = scored(*split(), chosen_tau=0.5, served_tau=1.0)
    fit = {"temperature": 1.0, "tau": {"chosen": 0.5}, "seconds": 1.0, "validation": found}
    rare = {"class": "lynx", "rows": 2}
    printed = table({**fit, "rarest_in_validation": rare}).splitlines()
    (served,) = [line for line in printed if line.endswith("  served")]
    assert served.split()[:2] == ["validation", "1"]
    assert "class 'lynx' has 2 validation rows" in printed[-1]
    enough = table({**fit, "rarest_in_validation": {**rare, "rows": 20}})
    assert "lynx" not in enough


def test_the_printed_intervals_name_the_tau_that_they_are_of():
    found = scored(*split(), chosen_tau=0.5, served_tau=1.0)
    last = table({"split": "test", **found}).splitlines()[-1]
    assert last.startswith("test, 95 % at τ = 1: ")
    assert f"{100 * found['at_tau']['1']['error_interval'][0]:.2f}%" in last
