"""The estimation block: the true values of a made-up model are measured from any class mix."""

import numpy as np
import pytest

from service.contract.adjustment import log_normalise
from service.contract.shift.estimation import Estimation
from training.scores import source
from training.scores.source import measure

CLASSES = 4
PRIOR = np.array([0.6, 0.25, 0.1, 0.05])


def split(counts, *, bias=0.0, temperature=1.0, seed=0, separation=1.5):
    """Logits [n, 4] of a model that knows the truth under PRIOR, then distorted; and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), counts)
    x = rng.normal(size=(len(labels), CLASSES)) + separation * np.eye(CLASSES)[labels]
    return (separation * x + np.log(PRIOR) - bias) * temperature, labels


def block_of(counts, **distortion):
    return measure(*split(counts, **distortion), log_source_prior=np.log(PRIOR))[0]


def test_a_calibrated_model_is_left_as_it_is():
    block = block_of([1000] * 4)
    assert block.calibration == "temperature"
    assert block.temperature == pytest.approx(1, rel=0.05)
    assert block.bias == [0.0] * 4
    assert block.source_prior == pytest.approx(PRIOR, rel=0.1)


def test_a_temperature_is_measured_without_a_bias_where_that_is_all():
    block = block_of([1000] * 4, temperature=2.0)
    assert block.calibration == "temperature"
    assert block.temperature == pytest.approx(2, rel=0.05)
    low, high = block.temperature_interval
    assert low < 2 < high


@pytest.mark.parametrize("counts", [[1000] * 4, [3000, 1250, 500, 250]])
def test_the_log_source_holds_a_bias_whatever_the_mix_of_the_split(counts):
    bias = np.array([0.5, -0.5, 0.3, -0.3])
    block = block_of(counts, bias=bias, temperature=1.5)
    assert block.calibration == "bias"
    assert block.temperature == pytest.approx(1.5, rel=0.07)
    low, high = block.temperature_interval
    assert low < block.temperature < high < 1.2 * low
    assert block.log_source == pytest.approx(log_normalise(np.log(PRIOR) - bias), abs=0.2)


def test_a_block_is_the_same_again_and_is_valid_json_for_a_model():
    first, second = block_of([60] * 4), block_of([60] * 4)
    text = first.model_dump_json()
    assert text == second.model_dump_json()
    assert Estimation.model_validate_json(text) == first


def test_no_row_of_a_rare_class_weighs_more_than_the_average_row():
    labels = np.repeat(np.arange(4), [500, 100, 20, 1])
    weights = source.row_weights(labels, np.log(PRIOR))
    assert weights.max() == pytest.approx(weights[labels == 3].max())
    assert weights.sum() <= len(labels)
    assert weights[labels == 3] == pytest.approx(weights.max())


def test_a_class_without_validation_rows_keeps_its_share_of_training():
    block = block_of([300, 300, 300, 0])
    assert block.validation.class_counts == [300, 300, 300, 0]
    assert not block.calibrates_every_class
    assert block.self_test is None
    ratio = block.source_prior[3] / PRIOR[3]
    assert ratio == pytest.approx(1, rel=0.1)


def test_the_self_test_is_worse_for_a_classifier_that_knows_less():
    clear, vague = block_of([150] * 4, separation=3.0), block_of([150] * 4, separation=0.8)
    assert clear.self_test.uniform < vague.self_test.uniform
    assert clear.self_test.misfit_99 < 0.1


def test_replicates_spread_more_where_the_split_is_small():
    def spread(counts):
        return np.std(block_of(counts).replicates.log_source, axis=0).mean()

    assert spread([40] * 4) > 2 * spread([1000] * 4)


def test_a_model_of_probabilities_is_sketched_by_entropy():
    logits, labels = split([200] * 4)
    block, _ = measure(
        log_normalise(logits), labels, log_source_prior=np.log(PRIOR), probabilities=True
    )
    assert block.sketch.statistic == "entropy"
    assert np.sum(block.sketch.counts) == 800


def test_a_model_of_logits_is_sketched_by_three_numbers_of_each_row_and_directions():
    logits, labels = split([200] * 4)
    block, _ = measure(logits, labels, log_source_prior=np.log(PRIOR))
    features = block.sketch.features(logits, temperature=1.0)
    assert features.mean(axis=0)[:7] == pytest.approx(0, abs=0.01)
    assert features.mean(axis=0)[7:] == pytest.approx(1, abs=0.05)
    means = block.sketch.class_means(block.validation.class_counts)
    assert means[2] == pytest.approx(features[labels == 2].mean(0), abs=1e-4)
    assert block.validation.repeated == 0
    flat = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]] * 20)
    assert source.sketch(flat, np.arange(40) % 4, temperature=1.0) is None


def test_directions_are_the_axes_of_the_logits_within_classes_without_those_of_rounding():
    logits, labels = split([200] * 4)
    logits[:, 3] = logits[:, 2] + 1e-5 * np.random.default_rng(0).normal(size=len(logits))
    axes = np.array(source.sketch(logits, labels, temperature=1.0).directions)
    assert axes.shape == (3, 4)
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-5)
    assert (np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1) > 0).all()


def test_many_classes_and_few_rows_have_no_directions():
    rng = np.random.default_rng(0)
    many, few = np.arange(400) % 11, np.arange(8) % 4
    assert source.sketch(rng.normal(size=(400, 11)), many, temperature=1.0).directions == []
    assert source.sketch(rng.normal(size=(8, 4)), few, temperature=1.0).directions == []


def test_the_self_test_finds_the_class_that_estimates_get_wrong():
    logits, labels = split([600] * 4)
    hard = labels >= 2
    # a third of the rows of the classes 2 and 3 look the more like the other the surer they are
    swapped = hard & (np.arange(len(labels)) % 3 == 0)
    logits[swapped] = logits[swapped][:, [0, 1, 3, 2]] * 2
    block, _ = measure(logits, labels, log_source_prior=np.log(PRIOR))
    excess = block.self_test.class_excess
    assert len(excess.uniform) == len(excess.others) == 4
    assert max(excess.reversed[2:]) >= max(excess.reversed[:2])


def test_rows_that_come_again_in_a_split_are_counted():
    logits, labels = split([50] * 4)
    block, _ = measure(np.tile(logits, (2, 1)), np.tile(labels, 2), log_source_prior=np.log(PRIOR))
    assert block.validation.repeated == 200
    assert not block.validation.tells_rows_apart


def test_probabilities_that_all_look_the_same_have_no_sketch():
    labels = np.arange(40) % 4
    rows = log_normalise(3 * np.eye(4)[labels])
    assert source.sketch(rows, labels, temperature=1.0, probabilities=True) is None


def test_rows_that_all_look_the_same_have_no_sketch():
    labels = np.arange(40) % 4
    assert source.sketch(3 * np.eye(4)[labels], labels, temperature=1.0) is None


def test_many_classes_have_no_replicates_and_no_confusion_matrix(monkeypatch):
    monkeypatch.setattr(source, "MAX_CLASSES_WITH_REPLICATES", 3)
    monkeypatch.setattr(source, "MAX_CONFUSION_CLASSES", 3)
    block = block_of([60] * 4)
    assert block.replicates is None
    assert block.confusion is None
