"""The order of the rows, and the rate, are functions of the step."""

import numpy as np
import pytest

from training.data.order import batches, steps_of
from training.faults import WrongUse
from training.learning.samplers import make_sampler
from training.loop.schedule import in_steps, learning_rate

LABELS = np.repeat(np.arange(3), [10, 6, 4])


def rows_of(first_step=0, *, steps=9, batch_rows=6):
    sampler = make_sampler("uniform", LABELS, 3, seed=1)
    return list(
        batches(sampler, rows=20, batch_rows=batch_rows, steps=steps, first_step=first_step)
    )


def test_epochs_lie_end_to_end_so_every_batch_is_full():
    taken = np.concatenate([rows for _, rows in rows_of(steps=10)])
    assert sorted(taken[:20]) == sorted(taken[20:40]) == list(range(20))
    assert {len(rows) for _, rows in rows_of()} == {6}


@pytest.mark.parametrize("first", [1, 3, 4, 8])
def test_starting_again_at_a_step_takes_the_rows_that_it_would_have_taken(first):
    whole, again = rows_of(), rows_of(first)
    assert [step for step, _ in again] == list(range(first, 9))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(whole[first:], again, strict=True))


def test_a_batch_larger_than_the_data_goes_round():
    (_, rows), *_ = rows_of(batch_rows=50, steps=1)
    assert np.bincount(rows).min() >= 2


def test_steps_of_a_paper_recipe():
    assert steps_of(epochs=200, rows=12406, batch_rows=128) == 19384


def rate(step, **settings):
    return learning_rate(step, base=0.1, steps=100, **settings)


def test_the_rate_warms_up_linearly_and_drops_at_milestones():
    settings = {"schedule": "steps", "warmup": 4, "milestones": (50, 80)}
    assert [rate(step, **settings) for step in range(5)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1]
    )
    assert [rate(step, **settings) for step in (49, 50, 79, 80)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001]
    )


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_nothing():
    settings = {"schedule": "cosine", "warmup": 20}
    assert rate(20, **settings) == pytest.approx(0.1)
    assert rate(60, **settings) == pytest.approx(0.05)
    assert rate(99, **settings) < 1e-3


def test_points_below_one_are_shares_of_the_run():
    assert in_steps([0.5, 80], steps=100, name="milestones") == (50, 80)
    for wrong in ([101], [-1], [80, 0.5]):
        with pytest.raises(WrongUse, match="milestones"):
            in_steps(wrong, steps=100, name="milestones")
