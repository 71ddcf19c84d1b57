"""The watch over traffic: what it learns survives, is shared, is judged, and moves priors."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import text

from service.contract.automatic import AUTHOR
from service.contract.members.body import PriorBody, parse_prior
from service.priors.recent import LogitReservoir
from service.priors.revisions import StoreUnavailable
from service.priors.shift.stream import Stream
from service.priors.shift.watch import Judged, Served, ShiftWatch, adopted
from service.priors.store import kept as kept_module
from service.priors.store import open_store
from service.priors.store.kept import KeptState
from tests.support.priors import following, make_bundle
from training.scores.source import measure

SOURCE = np.array([0.5, 0.3, 0.2])
OTHER = np.array([0.1, 0.2, 0.7])
SEPARATION = 1.6


def logits(prior, n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=prior)
    x = rng.normal(size=(n, 3)) + SEPARATION * np.eye(3)[labels]
    return (SEPARATION * x + np.log(SOURCE)).astype(np.float32), labels


@pytest.fixture(scope="module")
def bundle():
    """A model with an estimation block that was measured on 3,000 rows."""
    f, labels = logits(SOURCE, 3000, seed=99)
    block, _ = measure(f, labels, log_source_prior=np.log(SOURCE), class_frequencies=SOURCE)
    return make_bundle(
        class_counts=(500.0, 300.0, 200.0),
        temperature=block.temperature,
        estimation=block.model_dump(mode="json"),
    )


class Site:
    """One worker with a model, and a clock."""

    def __init__(self, priors, bundle, *, kept=None, slot=0, replica="a", every=60.0):
        self.served = Served(bundle, LogitReservoir(3, seed=1), Stream(bundle))
        self.steps, self.shift = [], timedelta(0)
        self.watch = ShiftWatch(
            priors,
            lambda: [self.served],
            kept=kept,
            every_seconds=every,
            slot=slot,
            replica=replica,
            act=lambda _, step: self.steps.append(step),
            now=lambda: datetime.now(UTC) + self.shift,
        )

    def traffic(self, prior, n, seed=0):
        f, _ = logits(prior, n, seed)
        for start in range(0, n, 64):
            self.served.recent.add(f[start : start + 64])
            self.served.stream.add(f[start : start + 64])
            self.watch.learn()

    def look(self):
        self.watch.look()
        return self.watch.of(self.served.bundle)


def with_priors(url, function):
    async def main():
        async with following(url) as priors:
            await function(priors)

    asyncio.run(main())


@pytest.fixture
def kept_in():
    """Opens the kept states of a store, as another process would; closed at the end."""
    stores = []

    def opened(url):
        store = open_store(url)
        store.open()
        stores.append(store)
        return store.kept

    yield opened
    for store in stores:
        store.close()


def age_states(url, *, hours):
    """Let stored states look as if nothing had renewed them for some hours."""
    store = open_store(url)
    store.open()
    with contextlib.closing(store), store.database.transaction() as connection:
        earlier = f"UPDATE priordial_tracking SET kept_us = kept_us - {hours * 3_600_000_000}"
        connection.execute(text(earlier))


def test_the_estimate_of_traffic_and_its_verdict_are_known_after_a_look(sqlite_url, bundle):
    async def run(priors):
        site = Site(priors, bundle)
        assert site.watch.tracked(bundle).rows == 0
        assert site.watch.tracked(make_bundle()) is None
        assert site.look().together.rows == 0
        site.traffic(OTHER, 2000)
        found = site.look()
        assert found.together.prior == pytest.approx(OTHER, abs=0.08)
        assert found.judged.verdict == "usable"
        assert len(found.history) == 1
        ((name, value),) = site.watch.divergences(found)
        assert name == "default"
        assert value > 0

    with_priors(sqlite_url, run)


def test_an_error_of_one_model_costs_no_other_its_judgement(sqlite_url, bundle, kept_in):
    """The models after it were passed over, and its own state was not stored."""

    class Broken(LogitReservoir):
        def sample(self, **limits):
            raise RuntimeError("no sample")

    async def run(priors):
        kept = kept_in(sqlite_url)
        site = Site(priors, bundle)
        site.traffic(OTHER, 2000)
        broken = Served(bundle.model_copy(update={"name": "broken"}), Broken(3), site.served.stream)
        watch = ShiftWatch(
            priors, lambda: [broken, site.served], kept=kept, every_seconds=60, slot=0,
            replica="a", act=print,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="no sample"):
            watch.look()
        assert watch.of(bundle).judged.verdict == "usable"
        assert len(kept.of("broken")) == 1

    with_priors(sqlite_url, run)


def test_traffic_is_judged_although_the_clock_was_set_back(sqlite_url, bundle):
    async def run(priors):
        site = Site(priors, bundle)
        site.shift = timedelta(days=1)
        site.traffic(OTHER, 2000)
        wrong = site.look().judged.at
        site.shift = timedelta(0)
        site.traffic(SOURCE, 2000, seed=1)
        assert site.look().judged.at < wrong

    with_priors(sqlite_url, run)


def test_noise_is_not_explained_after_two_looks_that_agree(sqlite_url, bundle):
    async def run(priors):
        site = Site(priors, bundle)
        site.traffic(OTHER, 2000)
        assert site.look().judged.verdict == "usable"
        verdicts = []
        for look in range(3):
            noise = np.random.default_rng(look).normal(scale=9, size=(2000, 3)).astype(np.float32)
            for start in range(0, 2000, 64):
                site.served.recent.add(noise[start : start + 64])
                site.served.stream.add(noise[start : start + 64])
                site.watch.learn()
            verdicts.append(site.look().judged.verdict)
        assert verdicts == ["usable", "not_explained", "not_explained"]

    with_priors(sqlite_url, run)


def test_what_was_learnt_survives_a_restart(store_url, bundle, kept_in):
    async def run(priors):
        before = Site(priors, bundle, kept=kept_in(store_url))
        before.traffic(OTHER, 2000)
        before.look()
        after = Site(priors, bundle, kept=kept_in(store_url))
        found = after.look()
        assert found.together.rows == 2000
        assert found.together.prior == pytest.approx(OTHER, abs=0.08)
        assert found.judged.verdict == "usable"
        stranger = Site(priors, make_bundle(class_names=("a", "b", "c")), kept=kept_in(store_url))
        assert stranger.look().together.rows == 0

    with_priors(store_url, run)


def test_a_worker_under_another_name_goes_on_where_one_that_is_gone_has_ended(
    sqlite_url, bundle, kept_in
):
    async def run(priors):
        before = Site(priors, bundle, kept=kept_in(sqlite_url), replica="pod-1")
        before.traffic(OTHER, 1000)
        before.look()
        beside = Site(priors, bundle, kept=kept_in(sqlite_url), replica="pod-2")
        beside.look()
        assert beside.served.stream.now().rows == 0  # the other one still lives
        later = Site(priors, bundle, kept=kept_in(sqlite_url), replica="pod-3")
        age_states(sqlite_url, hours=1)
        later.look()
        assert later.served.stream.now().rows == 1000
        too_late = Site(priors, bundle, kept=kept_in(sqlite_url), replica="pod-4")
        age_states(sqlite_url, hours=48)
        too_late.look()
        assert too_late.served.stream.now().rows == 0

    with_priors(sqlite_url, run)


def test_the_state_of_a_worker_that_is_gone_goes_to_one_new_worker_alone(
    store_url, bundle, kept_in
):
    async def run(priors):
        for number in range(2):
            before = Site(priors, bundle, kept=kept_in(store_url), replica=f"old-{number}")
            before.traffic(OTHER, 1000 + 100 * number, seed=number)
            before.look()
        new = [
            Site(priors, bundle, kept=kept_in(store_url), replica=f"new-{number}")
            for number in range(3)
        ]
        age_states(store_url, hours=1)
        for site in new:
            site.look()
        assert sorted(site.served.stream.now().rows for site in new) == [0, 1000, 1100]

    with_priors(store_url, run)


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_worker_whose_clock_is_wrong_takes_no_state_of_one_that_lives(
    store_url, bundle, kept_in, ahead
):
    async def run(priors):
        right = Site(priors, bundle, kept=kept_in(store_url), replica="right")
        right.traffic(OTHER, 1000)
        right.look()
        wrong = Site(priors, bundle, kept=kept_in(store_url), replica="wrong")
        wrong.shift = ahead
        assert wrong.look().together.rows == 1000
        assert wrong.served.stream.now().rows == 0

    with_priors(store_url, run)


def test_a_new_worker_goes_on_where_one_ended_that_still_lived_at_its_start(
    sqlite_url, bundle, kept_in
):
    async def run(priors):
        before = Site(priors, bundle, kept=kept_in(sqlite_url), replica="old", every=1)
        before.traffic(OTHER, 1000)
        before.look()
        after = Site(priors, bundle, kept=kept_in(sqlite_url), replica="new", every=1)
        after.traffic(OTHER, 100)
        assert after.look().together.rows == 1100  # both are alive
        age_states(sqlite_url, hours=1)
        after.look()
        assert after.served.stream.now().rows == 1000
        late = Site(priors, bundle, kept=kept_in(sqlite_url), replica="late", every=1)
        late.look()
        late.shift = timedelta(hours=1)
        late.look()
        late.look()
        assert late.watch.of(bundle).restoring_until is None

    with_priors(sqlite_url, run)


def test_workers_and_replicas_know_the_traffic_of_all(store_url, bundle, kept_in):
    async def run(priors):
        sites = [
            Site(priors, bundle, kept=kept_in(store_url), slot=slot, replica=replica)
            for replica, slot in (("a", 0), ("a", 1), ("b", 0))
        ]
        for seed, site in enumerate(sites):
            site.traffic(OTHER, 1000, seed=seed)
            site.look()
        found = [site.look() for site in sites]
        assert [one.together.rows for one in found] == [3000] * 3
        assert [one.workers for one in found] == [3] * 3
        assert found[1].judged is not None  # stored by the worker that judges
        assert found[1].judged.verdict == "usable"

    with_priors(store_url, run)


def test_a_store_that_is_away_costs_nothing_but_the_memory(sqlite_url, bundle, caplog):
    class Away:
        def keep(self, kept):
            raise StoreUnavailable("away", "gone")

        def of(self, model, *, but=""):
            raise StoreUnavailable("away", "gone")

    async def run(priors):
        site = Site(priors, bundle, kept=Away())
        site.traffic(OTHER, 1000)
        site.look()
        assert site.look().together.rows == 1000
        assert caplog.text.count("in memory only") == 1

    with_priors(sqlite_url, run)


def test_a_prior_without_bounds_of_its_own_is_a_dry_run(sqlite_url, bundle, caplog):
    caplog.set_level("INFO")

    async def run(priors):
        await priors.put(bundle, "default", PriorBody(target="training"), by="anna")
        site = Site(priors, bundle)
        site.shift = timedelta(hours=2)
        for seed in range(3):
            site.traffic(OTHER, 2000, seed=seed)
            found = site.look()
        reported = found.judged.automatic["default"]
        assert reported["mode"] == "dry_run"
        assert site.steps == []
        assert caplog.text.count("dry run") == 1  # not again within the hour
        assert reported["action"] == "wait"

    with_priors(sqlite_url, run)


def test_a_prior_that_asks_for_it_is_moved_toward_its_traffic(sqlite_url, bundle):
    body = parse_prior(
        {"target": "training", "auto_adopt": {"mode": "on", "every_minutes": 30.0, "floor": 0.15}}
    )

    async def run(priors):
        await priors.put(bundle, "north", body, by="anna")
        site = Site(priors, bundle)
        for minutes in (0, 20, 40):
            site.shift = timedelta(minutes=minutes)
            site.traffic(OTHER, 2000, seed=minutes)
            site.look()
        (step,) = site.steps
        assert step.prior == "north"
        stored = adopted(step, bundle.class_names, note="why")
        assert stored.auto_adopt == body.auto_adopt
        assert sum(stored.target.values()) == pytest.approx(1)
        assert min(stored.target.values()) >= 0.15 - 1e-9
        assert stored.target["lynx"] > 0.4
        with pytest.raises(ValueError, match="adopts nothing"):
            adopted(
                type(step)(**{**step.__dict__, "step": type(step.step)("hold", "no")}),
                bundle.class_names,
                note="",
            )

    with_priors(sqlite_url, run)


def test_undoing_an_automatic_step_freezes_automatic_adoption(store_url, bundle):
    on = parse_prior({"target": "training", "auto_adopt": {"mode": "on"}})
    moved = on.model_copy(update={"target": {"cat": 0.2, "dog": 0.2, "lynx": 0.6}})

    async def run(priors):
        await priors.put(bundle, "default", on, by="anna")
        await priors.put(bundle, "default", moved, by=AUTHOR)
        back = await priors.rollback(bundle, "default", 1, by="anna")
        assert back.entry.body.target == "training"
        assert back.entry.body.auto_adopt.freeze
        again = await priors.rollback(bundle, "default", 2, by="anna")
        assert not again.entry.body.auto_adopt.freeze

    with_priors(store_url, run)


def test_kept_states_replace_each_other_and_old_ones_go(store_url, kept_in):
    kept = kept_in(store_url)
    assert kept.of("pets") == []
    for state in (b"one", b"two"):
        kept.keep(KeptState("pets", "a/0", "d", state))
    kept.keep(KeptState("pets", "b/0", "d", b"three", '{"x": 1}'))
    kept.keep(KeptState("cars", "a/0", "d", b"four"))
    found = kept_in(store_url).of("pets")
    assert [(one.keeper, one.state) for one in found] == [("b/0", b"three"), ("a/0", b"two")]
    assert found[0].judged == '{"x": 1}'
    assert [one.keeper for one in found if one in kept.of("pets", but="b/0")] == ["a/0"]


def test_a_long_state_is_kept_and_handed_on_in_parts(store_url, kept_in, monkeypatch):
    monkeypatch.setattr(kept_module, "_PART_BYTES", 1000)
    kept = kept_in(store_url)
    short, exact, long = b"a" * 999, b"b" * 1000, bytes(range(256)) * 20
    for keeper, state in (("a", long), ("a", short), ("b", short), ("b", long), ("c", exact)):
        kept.keep(KeptState("pets", keeper, "d", state))
    found = {one.keeper: one for one in kept.of("pets")}
    assert {name: one.state for name, one in found.items()} == {"a": short, "b": long, "c": exact}
    assert kept.take_over(found["b"], "c")
    assert {one.keeper: one.state for one in kept.of("pets")} == {"a": short, "c": long}


def test_a_long_state_does_not_come_with_its_row(store_url, kept_in, monkeypatch):
    monkeypatch.setattr(kept_module, "_PART_BYTES", 1000)
    kept, came = kept_in(store_url), {}
    read = kept._state
    monkeypatch.setattr(
        kept, "_state", lambda made, row: (came.update({row.keeper: row.state}), read(made, row))[1]
    )
    for keeper, size in (("a", 1000), ("b", 5120)):
        kept.keep(KeptState("pets", keeper, "d", bytes(size)))
    assert {one.keeper: len(one.state) for one in kept.of("pets")} == {"a": 1000, "b": 5120}
    assert came == {"a": bytes(1000), "b": None}


def test_parts_of_two_states_are_never_joined(postgres, kept_in, monkeypatch):
    monkeypatch.setattr(kept_module, "_PART_BYTES", 1000)
    url = postgres.new_schema()
    kept, other = kept_in(url), kept_in(url)
    kept.keep(KeptState("pets", "a", "d", bytes(5120)))
    read = kept._state

    def replaced_meanwhile(connection, row):
        other.keep(KeptState("pets", "a", "d", b"x" * 5120))
        return read(connection, row)

    monkeypatch.setattr(kept, "_state", replaced_meanwhile)
    assert [one.state for one in kept.of("pets")] == [b""]


def test_a_judgement_is_read_back_as_it_was_written():
    at = datetime(2026, 5, 1, tzinfo=UTC)
    judged = Judged(at, "usable", "fine", {"p": 0.5}, 100, {"default": {"mode": "off"}})
    assert Judged.of_document(judged.document()) == judged
    for document in ("{}", "[1]", "no", '{"at": 3}'):
        assert Judged.of_document(document) is None
