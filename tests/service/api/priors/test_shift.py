"""`GET /priors/{name}/shift`: the class mix of traffic as it is followed."""

import numpy as np
import pytest

from service.api.priors.shift import MAX_POINTS, MAX_SHOWN_NUMBERS, shift_view
from service.priors.recent import LogitReservoir
from service.priors.shift.stream import Stream
from service.priors.shift.watch import Served, ShiftWatch
from tests.service.api.priors.test_routes import scenario
from tests.support.priors import make_bundle


def followed(bundle, priors=None, *, looks=1, priced=True):
    """A watch that has seen traffic of the last class."""
    classes = len(bundle.class_names)
    served = Served(bundle, LogitReservoir(classes), Stream(bundle))
    watch = ShiftWatch(priors, lambda: [served], kept=None, every_seconds=60, replica="a")
    for _ in range(looks):
        rows = np.tile(12.0 * np.eye(classes, dtype=np.float32)[-1], (200, 1))
        served.recent.add(rows)
        served.stream.add(rows)
        watch.learn()
        if priced:
            watch.look()
    return watch


def test_before_any_look_nothing_is_known(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        found = (await client.get("/models/pets/priors/default/shift")).json()
        assert found["estimate"] is found["judged"] is found["automatic"] is None
        assert (found["rows"], found["workers"], found["points"]) == (0, 0, [])
        assert found["target"] == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_an_unknown_prior_or_too_many_points_are_refused(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        assert (await client.get("/priors/nowhere/shift")).status_code == 404
        assert (
            await client.get(f"/priors/default/shift?points={MAX_POINTS + 1}")
        ).status_code == 422


def test_the_estimate_has_intervals_a_past_and_a_verdict(sqlite_url):
    pets = make_bundle()
    kept = {}

    class Later(ShiftWatch):
        """A placeholder for the watch, which does not exist yet when the routes are made."""

        def __init__(self):
            pass

        def of(self, bundle):
            return kept["watch"].of(bundle)

        def tracked(self, bundle):
            return kept["watch"].tracked(bundle)

    @scenario(sqlite_url, pets, watch=Later())
    async def _(client):
        kept["watch"] = followed(pets, client.priors, looks=5)
        found = (await client.get("/priors/default/shift")).json()
        assert found["class_names"] == pets.class_names
        assert found["estimate"][2] > 0.9
        for low, middle, high in zip(found["low"], found["estimate"], found["high"], strict=True):
            assert low <= middle <= high
        assert found["rows"] == 1000
        assert len(found["points"]) == 5
        assert found["judged"]["verdict"] == "uncalibrated"
        assert found["automatic"]["action"] == "hold"
        fewer = (await client.get("/priors/default/shift?points=2")).json()["points"]
        assert fewer == [found["points"][0], found["points"][-1]]
        one = (await client.get("/priors/default/shift?points=1")).json()["points"]
        assert one == [found["points"][-1]]


def test_an_answer_about_many_classes_stays_bounded(sqlite_url):
    names = tuple(f"c{i}" for i in range(20_000))
    wide = make_bundle(class_names=names, class_counts=(1.0,) * len(names))
    found = shift_view(wide, "default", 0, np.ones(len(names)), None, points=MAX_POINTS)
    assert found.points == []

    @scenario(sqlite_url, wide)
    async def _(client):
        watch = followed(wide, client.priors, looks=6)
        view = shift_view(
            wide, "default", 0, np.ones(len(names)), watch.of(wide), points=MAX_POINTS
        )
        assert 1 <= len(view.points) <= MAX_SHOWN_NUMBERS // (3 * len(names))
