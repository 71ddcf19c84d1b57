"""Rows that were scaled differently from the training rows are recognised; other rows cause no
warning.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.contract.inputs.familiarity import MAX_NUMBERS, Familiarity, channels_of, measure


def pictures(n, seed=0):
    """Normalised pictures [n, 3, 16, 16] that differ in brightness and contrast."""
    rng = np.random.default_rng(seed)
    brightness = 0.45 * rng.normal(size=(n, 3, 1, 1))
    contrast = np.exp(rng.normal(-0.25, 0.35, size=(n, 1, 1, 1)))
    return (brightness + contrast * rng.normal(size=(n, 3, 16, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def known():
    return Familiarity(measure(pictures(2000)))


def test_rows_like_those_of_training_are_not_warned_of(known):
    rows = pictures(400, seed=1)
    features = known.features(rows)
    assert known.far(features) == []
    assert all(
        known.warning(rows[at : at + n], features[at : at + n]) is None
        for n in (1, 2, 4, 16)
        for at in range(0, 400, n)
    )


def test_four_pictures_scaled_to_0_1_instead_of_normalised_are_told(known):
    rows = 0.45 + 0.27 * pictures(400, seed=2)
    features = known.features(rows)
    reported = [known.warning(rows[at : at + 4], features[at : at + 4]) for at in range(0, 400, 4)]
    assert all(reported)
    assert "check scaling and normalisation" in reported[0]


def test_of_many_pictures_scaled_alike_no_single_one_is_blamed(known):
    rows = 0.45 + 0.27 * pictures(24, seed=2)
    assert 0 < len(known.far(known.features(rows))) < 20, "some are far by themselves"
    reported = known.warning(rows, known.features(rows))
    assert reported.startswith("the instances together are far")


def test_one_wrong_picture_among_right_ones_is_named(known):
    rows = pictures(12, seed=4)
    rows[3] = 255 * (0.45 + 0.27 * rows[3])
    reported = known.warning(rows, known.features(rows))
    assert reported.startswith("instance 3: the numbers are far")


@pytest.mark.parametrize(
    ("names", "what"), [((), "value 3 is 8000"), (("age", "sex", "fare"), "column 'fare' is 8000")]
)
def test_the_one_number_that_puts_a_row_far_is_named_with_its_own_mean(names, what):
    rng = np.random.default_rng(0)
    rows = rng.normal([40, 0.5, 30], [10, 0.5, 20], size=(500, 3))
    table = Familiarity(measure(rows), names=names)
    rows[7, 2] = 8000
    reported = table.warning(rows, table.features(rows))
    assert reported.startswith(f"instance 7: {what}")
    assert "in training mean 30, sd 20.4;" in reported
    assert reported.endswith("check its scaling and unit")


def test_one_picture_of_0_to_255_is_told_with_both_means(known):
    rows = 255 * (0.45 + 0.27 * pictures(1, seed=3))
    reported = known.warning(rows, known.features(rows))
    assert "instance 0: the numbers are far" in reported
    assert f"mean {rows.mean():.3g}" in reported


def test_a_column_in_another_unit_is_told(known):
    rng = np.random.default_rng(0)
    rows = rng.normal([40, 30, 2], [12, 20, 1], size=(500, 3))
    table = Familiarity(measure(rows))
    cents = rows[:1] * [1, 100, 1]
    assert table.warning(rows[:1], table.features(rows[:1])) is None
    assert table.warning(cents, table.features(cents)) is not None


def test_a_single_example_is_enough_for_gross_mistakes_only():
    one = Familiarity(measure(pictures(1)))
    others, gross = pictures(50, seed=4), pictures(50, seed=4) * 255
    assert one.far(one.features(others)) == []
    assert len(one.far(one.features(gross))) == 50


def test_a_missing_value_is_no_fault_of_its_row():
    rows = np.random.default_rng(0).normal(size=(100, 4))
    rows[::3, 1] = np.nan
    table = Familiarity(measure(rows))
    assert table.far(table.features(rows)) == []


def test_constant_rows_are_known_where_training_had_some():
    rows = np.random.default_rng(0).random((200, 1, 8, 8))
    blank = np.full((1, 1, 8, 8), 0.5)
    usual = Familiarity(measure(rows))
    assert usual.far(usual.features(blank)) == [0]
    mixed = Familiarity(measure(np.concatenate([rows, blank])))
    assert mixed.far(mixed.features(blank)) == []


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 30), st.integers(1, 5)),
        elements=st.floats(-1e6, 1e6),
    )
)  # fmt: skip
def test_features_are_the_mean_and_variance_of_standardised_numbers(rows):
    statistics = measure(rows)
    sd = np.array(statistics.sd)
    z = (rows - statistics.mean) / np.where(sd < 1e-100, 1, sd)
    found = Familiarity(statistics).features(rows)
    scale = 1 + np.abs(z).max() ** 2
    np.testing.assert_allclose(found[:, 0], z.mean(axis=1), atol=1e-9 * scale)
    np.testing.assert_allclose(found[:, 1], z.var(axis=1), atol=1e-9 * scale)


def test_what_is_not_finite_everywhere_has_no_statistics():
    assert measure(np.full((3, 2), np.nan)) is None


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((), None, (1, -1)),
        ((7,), None, (7, 0)),
        ((3, 16, 16), None, (3, 0)),
        ((16, 16, 3), None, (3, 2)),
        ((16, 16, 16), None, (1, -1)),
        ((16, 16, 3), "NHWC", (3, 2)),
        ((8, 16, 16), "NCHW", (8, 0)),
    ],
)
def test_the_axis_of_the_channels_is_stated_or_found(shape, layout, expected):
    assert channels_of(shape, layout=layout) == expected


def test_rows_without_a_finite_number_in_a_channel_have_no_statistics():
    assert measure(np.array([[1.0, np.nan], [2.0, np.nan]])) is None
    assert measure(np.empty((0, 2))) is None


def test_rows_of_one_number_have_no_spread_of_their_own():
    found = measure(np.random.default_rng(0).normal(size=(50, 1)))
    assert found.row_spread.sd == pytest.approx(0.0)


def test_shapes_that_are_not_seen_again_are_forgotten():
    known = Familiarity(measure(np.ones((20, 5, 5))))
    for width in range(5, 45):
        known.features(np.ones((1, 5, width)))
    assert len(known._weights) <= 32


def test_of_a_large_row_numbers_that_are_spread_evenly_stand_for_all():
    side = int(MAX_NUMBERS**0.5) + 10
    rows = np.random.default_rng(0).normal(3.0, 2.0, size=(20, 1, side, side))
    found = measure(rows)
    assert found.mean[0] == pytest.approx(3.0, abs=0.1)
    assert found.sd[0] == pytest.approx(2.0, abs=0.1)
