"""The estimation block: its form, and how the service reads it."""

import numpy as np
import pytest
from pydantic import ValidationError

from service.contract.adjustment import adjust_logits, softmax
from service.contract.shift.estimation import Estimation, SelfTest
from service.contract.shift.label_shift import estimate_prior
from service.contract.shift.sketch import binned, numbers_of, sketched

SOURCE = [0.7, 0.2, 0.1]


def block(**changes):
    fields = {
        "calibration": "bias",
        "temperature": 1.5,
        "bias": [0.2, -0.1, -0.1],
        "source_prior": SOURCE,
        "validation": {"rows": 90, "class_counts": [30, 30, 30]},
    } | changes
    return Estimation.model_validate(fields)


def test_adjusting_with_the_log_source_adds_the_bias_and_divides_out_the_measured_prior():
    found, logits = block(), np.array([[1.0, 2.0, 0.5]])
    z = adjust_logits(
        logits,
        log_source_prior=found.log_source,
        log_target_prior=np.zeros(3),
        tau=1,
        temperature=1.5,
    )
    expected = softmax(logits / 1.5 + np.array([0.2, -0.1, -0.1]) - np.log(SOURCE))
    assert softmax(z) == pytest.approx(expected)


def test_at_tau_zero_the_block_leaves_the_models_own_answer():
    logits = np.array([[1.0, 2.0, 0.5]])
    z = adjust_logits(
        logits, log_source_prior=block().log_source, log_target_prior=np.zeros(3), tau=0
    )
    assert np.array_equal(z, logits)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("source_prior", [0.5, 0.5]),
        ("validation", {"rows": 2, "class_counts": [1, 1]}),
        ("sketch", {"statistic": "energy", "edges": [float(i) for i in range(9)], "counts": []}),
        (
            "sketch",
            {"statistic": "logits", "centre": [0.0] * 3, "scale": [1.0] * 3, "means": []},
        ),
        (
            "self_test",
            {"rows": 9, "training": 0.1, "uniform": 0.1, "reversed": 0.1, "misfit_99": 0.0}
            | {"class_excess": {"uniform": [0.1, 0.2]}},
        ),
        ("replicates", {"temperature": [1.0, 1.0], "log_source": [[0.0], [0.0]]}),
        ("confusion", [[1, 2], [3, 4]]),
    ],
)
def test_every_part_has_an_entry_for_each_class(member, value):
    with pytest.raises(
        ValidationError, match=rf"{member}.* entries; expected 3, as many as bias has"
    ):
        block(**{member: value})


def test_each_replicate_has_a_temperature_and_a_source():
    with pytest.raises(ValidationError, match="has 1 rows; expected 2, one for each temperature"):
        block(replicates={"temperature": [1.0, 1.0], "log_source": [[0.0] * 3]})


def test_a_split_that_lacks_a_class_does_not_calibrate_every_class():
    assert block().calibrates_every_class
    lacking = block(validation={"rows": 60, "class_counts": [30, 30, 0]})
    assert not lacking.calibrates_every_class
    assert lacking.validation.fewest == 0


def test_a_later_version_of_the_block_is_refused():
    with pytest.raises(ValidationError, match="version"):
        block(version=2)


def test_energy_grows_with_every_logit_and_entropy_is_largest_for_equal_ones():
    rows = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e4, 0.0, -np.inf]])
    energy = sketched(rows, statistic="energy", temperature=1.0)
    assert energy == pytest.approx([np.log(3), np.log(np.e + 2), 1e4])
    entropy = sketched(rows, statistic="entropy", temperature=1.0)
    assert entropy[0] == pytest.approx(np.log(3))
    assert entropy[1] < entropy[0]
    assert entropy[2] == 0


def test_a_bin_holds_its_lower_edge():
    assert binned(np.array([-1.0, 0.0, 0.5, 1.0]), [0.0, 1.0]).tolist() == [0, 1, 1, 2]


def test_an_estimate_uses_the_block_as_it_is_written():
    logits = np.random.default_rng(0).normal(size=(200, 3))
    found = block()
    written = Estimation.model_validate_json(found.model_dump_json())
    one, other = (
        estimate_prior(logits, temperature=each.temperature, log_source=each.log_source)
        for each in (found, written)
    )
    assert np.array_equal(one.prior, other.prior)


def test_a_self_test_is_an_l1_distance():
    with pytest.raises(ValidationError):
        SelfTest(rows=10, training=2.5, uniform=0.1, reversed=0.1, misfit_99=0.0)


def test_the_edges_of_a_histogram_ascend():
    edges = [float(i) for i in range(9)]
    with pytest.raises(ValidationError, match="edges must ascend"):
        block(sketch={"statistic": "energy", "edges": edges[::-1], "counts": [[0] * 10] * 3})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("centre", [0.0] * 3),
        ("scale", [1.0] * 5),
        ("means", [[0.0] * 6] * 3),
        ("directions", [[1.0] * 2]),
    ],
)
def test_a_sketch_has_an_entry_for_each_number_and_direction(member, value):
    whole = {"statistic": "logits", "directions": [[1.0, 0.0, 0.0]], "centre": [0.0] * 4}
    whole |= {"scale": [1.0] * 4, "means": [[0.0] * 8] * 3}
    assert block(sketch=whole).sketch.num_classes == 3
    with pytest.raises(ValidationError, match=rf"sketch.{member} has . numbers where . are"):
        block(sketch=whole | {member: value})


def test_rest_is_the_mean_without_the_largest_logit():
    energy, spread, rest = numbers_of([[3.0, 1.0, -1.0]])[0]
    assert energy == pytest.approx(np.log(np.exp([3.0, 1.0, -1.0]).sum()))
    assert spread == pytest.approx(np.std([3.0, 1.0, -1.0]))
    assert rest == 0


def test_rows_are_told_apart_only_where_the_split_hardly_ever_repeats_one():
    def told_apart(**more):
        rows = {"rows": 90, "class_counts": [30, 30, 30]} | more
        return block(validation=rows).validation.tells_rows_apart

    assert told_apart(repeated=0)
    assert not told_apart(repeated=1)  # over a hundredth
    assert not told_apart()
