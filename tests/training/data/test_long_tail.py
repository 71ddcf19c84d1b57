"""Profiles as in Cao et al., and what is drawn with them."""

import numpy as np
import pytest

from service.contract.scores import paired_standard_errors
from training.data.dataset import Split, counts_of, rows_by_class
from training.data.long_tail import profile_counts, shifted_rows
from training.data.splits import long_tailed, stratified
from training.faults import WrongUse


def test_cifar_10_lt_has_the_counts_of_the_paper():
    counts = profile_counts("exp", max_per_class=5000, imbalance_ratio=100, num_classes=10)
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "total"),
    [(10, 5000, 10, 20431), (10, 5000, 50, 13996), (10, 5000, 200, 11203),
     (100, 500, 10, 19573), (100, 500, 50, 12608), (100, 500, 100, 10847), (100, 500, 200, 9502)],
)  # fmt: skip
def test_every_published_size_of_cifar_lt_is_met(classes, largest, ratio, total):
    counts = profile_counts(
        "exp", max_per_class=largest, imbalance_ratio=ratio, num_classes=classes
    )
    assert counts.sum() == total


def test_the_step_profile_has_two_sizes():
    counts = profile_counts("step", max_per_class=5000, imbalance_ratio=100, num_classes=10)
    assert counts.tolist() == [5000] * 5 + [50] * 5


def test_ratio_one_leaves_the_data_balanced():
    assert set(profile_counts("exp", max_per_class=7, imbalance_ratio=1, num_classes=5)) == {7}


@pytest.mark.parametrize("ratio", [0.5, 1e9])
def test_a_ratio_that_cannot_be_is_refused(ratio):
    with pytest.raises(WrongUse):
        profile_counts("exp", max_per_class=100, imbalance_ratio=ratio, num_classes=5)


def test_a_long_tail_is_drawn_by_its_seed_from_each_class():
    labels = np.tile(np.arange(4), 50)
    split = Split(np.arange(200.0)[:, None], labels)
    wanted = np.array([50, 20, 5, 1])
    one, same, other = (long_tailed(split, wanted, seed=seed) for seed in (1, 1, 2))
    assert counts_of(one.labels, 4).tolist() == wanted.tolist()
    assert np.array_equal(one.inputs, same.inputs)
    assert not np.array_equal(one.inputs, other.inputs)
    assert np.array_equal(one.inputs[:, 0] % 4, one.labels)  # inputs stay with their labels


def test_a_stratified_split_parts_the_rows_and_leaves_every_class_in_both():
    labels = np.repeat(np.arange(5), [40, 10, 3, 2, 1])
    kept, drawn = stratified(labels, share=0.1, seed=0)
    assert sorted([*kept, *drawn]) == list(range(len(labels)))
    assert counts_of(labels[drawn], 5).tolist() == [4, 1, 1, 1, 0]
    assert counts_of(labels[kept], 5).min() >= 1


class Watched(np.ndarray):
    """Labels that count how often all rows are compared with a class."""

    compared = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        Watched.compared += ufunc is np.equal
        plain = [np.asarray(each) if isinstance(each, Watched) else each for each in inputs]
        return getattr(ufunc, method)(*plain, **keywords)


def test_rows_are_grouped_by_class_at_once_however_many_classes_there_are():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(2_000), 2))
    rows = rows_by_class(labels, 2_001)
    assert len(rows) == 2_001
    assert all((own == np.flatnonzero(labels == y)).all() for y, own in enumerate(rows))
    assert (len(rows[5]), len(rows[2_000])) == (2, 0)
    watched = labels.view(Watched)
    ones = np.ones(2_000, np.int64)
    stratified(watched, share=0.1, seed=0)
    long_tailed(Split(np.arange(4_000), watched), ones, seed=0)
    shifted_rows(watched, direction="forward", ratio=2, class_counts=ones)
    paired_standard_errors(np.zeros((1, 4_000)), watched, ones / 2_000)
    assert Watched.compared == 0


def test_another_class_count_does_not_change_what_is_drawn_of_the_others():
    few = np.repeat(np.arange(3), [10, 20, 30])
    _, drawn = stratified(few, share=0.2, seed=5)
    _, with_more = stratified(np.concatenate([few, [3] * 8]), share=0.2, seed=5)
    assert set(drawn) <= set(with_more)


def test_shifted_test_sets_follow_the_training_order_or_its_reverse():
    labels = np.repeat(np.arange(3), 100)
    counts = np.array([10, 500, 60])
    forward = labels[shifted_rows(labels, direction="forward", ratio=25, class_counts=counts)]
    backward = labels[shifted_rows(labels, direction="backward", ratio=25, class_counts=counts)]
    assert counts_of(forward, 3).tolist() == [4, 100, 20]
    assert counts_of(backward, 3).tolist() == [100, 4, 20]
