"""Automatic steps: never more often, larger or at other times than the prior allows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import ValidationError

from service.contract.automatic import AutoAdopt, bounded, divergence, next_step
from service.contract.members.body import InvalidPrior, body_of, parse_prior
from service.contract.shift.label_shift import PriorEstimate
from service.contract.shift.verdict import Assessment, Gain

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
CURRENT = np.array([0.5, 0.3, 0.2])
WANTED = np.array([0.1, 0.2, 0.7])
FOUND = Assessment(
    estimate=PriorEstimate(WANTED, WANTED, WANTED, 2000, 1500.0, np.zeros((3, 3))),
    candidate=WANTED,
    verdict="usable",
    reason="the rows look like a mix of the known classes",
    step=float(np.abs(WANTED - CURRENT).sum()),
    misfit=None,
    self_test=0.05,
    bbse_distance=None,
    gain=Gain(0.1, 0.08),
    calibrated=True,
)


def step(found=FOUND, *, steady=True, now=NOW, changed_at=None, **bounds):
    return next_step(
        AutoAdopt(**{"mode": "on", "largest_step": 20.0, **bounds}),
        found,
        current=CURRENT,
        steady=steady,
        now=now,
        changed_at=changed_at,
    )


def test_a_sure_estimate_is_adopted_as_it_is():
    taken = step()
    assert taken.action == "adopt"
    assert taken.target == pytest.approx(WANTED)
    assert not taken.shortened


@pytest.mark.parametrize(
    ("found", "bounds", "action", "reason"),
    [
        (replace(FOUND, verdict="not_explained", reason="noise"), {}, "hold", "not_explained"),
        (replace(FOUND, step=0.05), {}, "hold", "within the error of estimates"),
        (replace(FOUND, gain=Gain(0.1, 0.0)), {}, "hold", "points of error"),
        (FOUND, {"mode": "off"}, "hold", "off"),
        (FOUND, {"freeze": True}, "hold", "frozen"),
        (FOUND, {"quiet_hours": ["11:00", "13:00"]}, "wait", "quiet hours"),
        (FOUND, {"quiet_hours": ["22:00", "12:30"]}, "wait", "quiet hours"),
    ],
)
def test_what_speaks_against_a_step_is_named(found, bounds, action, reason):
    taken = step(found, **bounds)
    assert taken.action == action
    assert reason in taken.reason
    assert taken.target is None


def test_one_look_is_not_enough():
    assert step(steady=False).action == "wait"


def test_quiet_hours_are_those_of_the_time_zone():
    bounds = {"quiet_hours": ["06:00", "08:00"], "time_zone": "America/New_York"}
    assert step(**bounds).action == "wait"  # 07:00 there
    assert step(now=NOW + timedelta(hours=2), **bounds).action == "adopt"


def test_steps_keep_their_distance_from_any_change():
    near = step(changed_at=NOW - timedelta(minutes=59), every_minutes=60.0)
    assert near.action == "wait"
    assert "60 s" in near.reason
    assert step(changed_at=NOW - timedelta(minutes=60), every_minutes=60.0).action == "adopt"


@pytest.mark.parametrize("largest", [0.001, 0.05, 0.5])
def test_no_step_is_longer_than_allowed_and_it_goes_toward_the_candidate(largest):
    taken = step(largest_step=largest)
    assert taken.shortened == (divergence(WANTED, CURRENT) > largest)
    assert divergence(taken.target, CURRENT) <= largest * 1.001
    before, after = (np.abs(t - WANTED).sum() for t in (CURRENT, taken.target))
    assert after < before


def test_no_class_falls_below_the_floor():
    target, _, _ = bounded(np.array([0.0, 0.001, 0.999]), CURRENT, largest=20.0, floor=0.01)
    assert target.min() == pytest.approx(0.01)
    assert target.sum() == pytest.approx(1)
    even, _, _ = bounded(np.array([0.0, 0.0, 1.0]), CURRENT, largest=20.0, floor=0.9)
    assert even == pytest.approx(np.full(3, 1 / 3))


def test_a_class_whose_target_is_0_can_return():
    target, _, shortened = bounded(WANTED, np.array([0.5, 0.5, 0.0]), largest=0.5, floor=0.0)
    assert shortened
    assert target[2] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "yes"},
        {"every_minutes": 0.0},
        {"largest_step": 0.0},
        {"floor": 1.0},
        {"quiet_hours": ["8:00", "9:00"]},
        {"quiet_hours": ["24:00", "09:00"]},
        {"quiet_hours": ["08:00"]},
        {"time_zone": "Atlantis/Centre"},
        {"time_zone": "../../etc/passwd"},
        {"time_zone": "localtime"},
        {"time_zone": "right/Europe/Berlin"},
        {"extra": 1},
    ],
)
def test_bounds_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        AutoAdopt(**wrong)


def test_quiet_hours_that_never_apply_are_refused_in_a_request_and_read_from_the_store():
    auto = {"mode": "on", "quiet_hours": ["06:00", "06:00"]}
    with pytest.raises(InvalidPrior) as refused:
        parse_prior({"auto_adopt": auto})
    (fault,) = refused.value.errors
    assert fault["field"] == "auto_adopt.quiet_hours"
    assert "'06:00' twice, which never applies: write" in fault["message"]
    assert not body_of({"auto_adopt": auto}).auto_adopt.is_quiet(NOW)


def test_the_default_is_a_dry_run():
    assert AutoAdopt().mode == "dry_run"


def test_a_time_zone_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="expected an IANA name such as Europe/Berlin"):
        AutoAdopt(time_zone="Europe/Nowhere")


@pytest.mark.parametrize("current", [[0.98, 0.02, 0.0], [0.02, 0.96, 0.02], [0.6, 0.3, 0.1]])
def test_classes_rise_to_the_floor_in_steps_no_larger_than_the_largest(current):
    target, candidate = np.array(current), np.array([0.001, 0.001, 0.998])
    for _ in range(200):
        before = target
        target, length, shortened = bounded(candidate, before, largest=0.05, floor=0.1)
        assert length == pytest.approx(divergence(target, before))
        assert length <= 0.05 + 1e-9
        assert (target >= np.minimum(before, 0.1) - 1e-12).all()
        if not shortened:
            break
    assert target == pytest.approx([0.1, 0.1, 0.8])


def test_a_floor_above_what_all_classes_can_have_makes_them_equal():
    target, _, _ = bounded(WANTED, CURRENT, largest=20.0, floor=0.9)
    np.testing.assert_allclose(target, 1 / 3)
    rounded = np.full(3, np.nextafter(1 / 3, 0))
    np.testing.assert_allclose(bounded(rounded, CURRENT, largest=20.0, floor=0.9)[0], 1 / 3)


def test_without_quiet_hours_no_hour_is_quiet():
    assert not AutoAdopt().is_quiet(NOW)


def test_a_class_that_the_floor_of_others_would_push_below_it_gets_the_floor_too():
    wanted = np.array([0.0, 0.0, 0.105, 0.895])
    target, _, _ = bounded(wanted, np.full(4, 0.25), largest=20.0, floor=0.1)
    assert target.min() == pytest.approx(0.1)
    assert target.sum() == pytest.approx(1.0)
