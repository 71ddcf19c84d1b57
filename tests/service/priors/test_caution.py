"""A prior that is extreme, or that changes many recent answers, is noticed before it decides."""

import numpy as np
import pytest

from service.contract.members.body import PriorBody
from service.contract.prior import resolve_prior
from service.priors.caution import (
    MIN_ROWS,
    TooManyFlips,
    check_flips,
    effective_classes,
    flip_share,
    flip_warning,
    target_warnings,
)
from service.priors.rule import Rule

NAMES = ["cat", "dog", "lynx"]


def prior(target):
    return resolve_prior(
        PriorBody(target=target), class_names=NAMES, class_counts=[100, 50, 5], loss_tau=0.0
    )


def test_effective_classes_are_all_for_a_uniform_target_and_one_for_a_single_class():
    assert effective_classes(np.full(7, 1 / 7)) == pytest.approx(7)
    assert effective_classes(np.array([1.0, 0.0, 0.0])) == 1
    assert 1 < effective_classes(np.array([0.9, 0.1, 0.0])) < 2


@pytest.mark.parametrize("target", ["uniform", "training", [1, 2, 3], [1, 1, 0], [1000, 100, 1]])
def test_an_ordinary_target_has_no_warning(target):
    assert (
        target_warnings(prior(target if isinstance(target, str) else map_of(target)), NAMES) == []
    )


def test_a_target_for_one_class_is_warned_of_by_name():
    narrow, ratio = target_warnings(prior(map_of([1, 200_000, 1])), NAMES)
    assert "1.00 of 3 classes" in narrow
    assert "'dog'" in narrow
    assert "200,000 times" in ratio
    assert "'cat'" in ratio
    (only,) = target_warnings(prior(map_of([0, 0, 1])), NAMES)
    assert "'lynx'" in only


def test_flips_are_the_rows_whose_label_differs():
    logits = np.random.default_rng(0).normal(0, 2, (500, 3)).astype(np.float32)
    before, after = Rule(prior("uniform"), 1.0), Rule(prior(map_of([1, 20, 1])), 1.0)
    labels = [rule.adjust(logits, temperature=2.0).argmax(axis=1) for rule in (before, after)]
    share = flip_share(logits, temperature=2.0, before=before, after=after)
    assert share == (labels[0] != labels[1]).mean() > 0
    assert flip_share(logits, temperature=2.0, before=after, after=after) == 0


def test_only_a_share_above_the_limit_of_enough_rows_is_refused():
    check_flips(0.5, MIN_ROWS, most=0.5)
    check_flips(1.0, MIN_ROWS - 1, most=0.5)
    with pytest.raises(TooManyFlips, match=r"51% .* \?force=1"):
        check_flips(0.51, MIN_ROWS, most=0.5)
    assert flip_warning(0.01, 4096, tau=1.0) is None
    assert "38% of the last 4,096 answers" in flip_warning(0.38, 4096, tau=1.0)


def map_of(values):
    return dict(zip(NAMES, map(float, values), strict=True))
