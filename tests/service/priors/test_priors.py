"""Choosing and changing priors, on both engines."""

import asyncio
import gc
import weakref
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.prior import UnknownLabelFrequencies, resolve_prior
from service.priors.changes import Condition
from service.priors.feed import WorkerReport
from service.priors.priors import Priors
from service.priors.revisions import (
    InvalidReference,
    PriorConflict,
    PriorDoesNotFit,
    RevisionNotHere,
    RevisionNotInMemory,
    StaleRevision,
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
    parse_prior_reference,
)
from service.priors.snapshot import EMPTY, advance
from service.priors.store import open_store
from tests.support.eventually import eventually_async
from tests.support.priors import following, make_bundle

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COUNTS = parse_prior({"target": {"cat": 1, "dog": 2, "lynx": 3}})
OTHER = parse_prior({"target": {"cat": 5, "dog": 2, "lynx": 3}})


def run(coroutine):
    return asyncio.run(coroutine)


def test_without_a_store_the_rule_of_the_paper_applies(pets):
    chosen = Priors().select(pets)
    expected = resolve_prior(
        PriorBody(), class_names=pets.class_names, class_counts=pets.class_counts, loss_tau=0.0
    )
    assert (chosen.name, chosen.revision) == ("default", 0)
    assert np.array_equal(chosen.offset, expected.offset.astype(np.float32))
    assert chosen.offset.dtype == np.float32


def test_built_in_priors_always_exist(pets):
    priors = Priors()
    assert np.allclose(priors.select(pets, "training").offset, 0)
    assert np.array_equal(priors.select(pets, "uniform").offset, priors.select(pets).offset)
    assert priors.select(pets, "uniform").revision == 0


def test_training_needs_label_frequencies():
    with pytest.raises(UnknownLabelFrequencies):
        Priors().select(make_bundle(class_counts=None), "training")


def test_an_unknown_prior_is_told_with_those_to_choose_from(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "winter", COUNTS, by="me")
            with pytest.raises(UnknownPrior, match=r"'summer'.*default, uniform, training, winter"):
                priors.select(pets, "summer")

    run(scenario())


def test_a_choice_is_made_once_and_then_remembered(pets):
    priors = Priors()
    assert priors.select(pets) is priors.select(pets)
    assert priors.select(pets, "uniform") is priors.select(pets, "uniform")


def test_nothing_is_kept_of_a_version_that_is_served_no_more():
    priors, stays, goes = Priors(), make_bundle(), make_bundle()
    for bundle in (stays, goes):
        priors.select(bundle)
        priors.inline(bundle, {"target": {"cat": 2, "dog": 1, "lynx": 1}})
    kept, gone = priors.select(stays), weakref.ref(goes)
    priors.forget(goes)
    del bundle, goes
    gc.collect()
    assert gone() is None
    assert priors.select(stays) is kept


def test_a_write_is_in_force_here_when_it_is_acknowledged_and_elsewhere_soon(pets, store_url):
    async def scenario():
        async with following(store_url) as here, following(store_url) as there:
            assert (await here.put(pets, "default", COUNTS, by="me")).created
            assert here.select(pets).revision == 1
            await eventually_async(lambda: there.select(pets).revision == 1)
            assert np.array_equal(here.select(pets).offset, there.select(pets).offset)

    run(scenario())


def test_an_identical_put_makes_no_revision_and_another_note_does(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            again = await priors.put(pets, "default", COUNTS, by="you")
            assert (again.entry.revision, again.entry.by, again.created) == (1, "me", False)
            in_order = parse_prior({"target": [1, 2, 3]})
            assert (await priors.put(pets, "default", in_order, by="you")).entry.revision == 1
            noted = await priors.put(
                pets, "default", COUNTS.model_copy(update={"note": "why"}), by="me"
            )
            assert noted.entry.revision == 2

    run(scenario())


def test_conditions_guard_a_write(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            create = Condition(if_none_match="*")
            await priors.put(pets, "default", COUNTS, by="me", condition=create)
            for stale in (
                create,
                Condition(if_match=frozenset({7})),
                Condition(if_none_match=frozenset({1})),
            ):
                with pytest.raises(StaleRevision) as caught:
                    await priors.put(pets, "default", OTHER, by="me", condition=stale)
                assert caught.value.current == 1
            fresh = Condition(if_match=frozenset({1, 9}))
            assert (
                await priors.put(pets, "default", OTHER, by="me", condition=fresh)
            ).entry.revision == 2
            with pytest.raises(StaleRevision):
                await priors.put(pets, "winter", COUNTS, by="me", condition=Condition(if_match="*"))

    run(scenario())


def test_an_unstored_default_counts_as_revision_zero(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            zero = Condition(if_match=frozenset({0}))
            assert (
                await priors.put(pets, "default", COUNTS, by="me", condition=zero)
            ).entry.revision == 1
            with pytest.raises(StaleRevision):
                await priors.put(pets, "winter", COUNTS, by="me", condition=zero)

    run(scenario())


def test_built_ins_cannot_be_written_and_names_are_checked(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            for name in ("uniform", "training"):
                with pytest.raises(PriorConflict, match="built in"):
                    await priors.put(pets, name, COUNTS, by="me")
                with pytest.raises(PriorConflict, match="built in"):
                    await priors.remove(pets, name, by="me")
            for name in ("Winter", "", "a" * 65, "../x", "a@b"):
                with pytest.raises(InvalidPrior, match="name"):
                    await priors.put(pets, name, COUNTS, by="me")

    run(scenario())


def test_a_prior_that_the_model_refuses_is_not_stored(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            with pytest.raises(InvalidPrior, match="unknown class 'wolf'"):
                await priors.put(pets, "default", parse_prior({"target": {"wolf": 1.0}}), by="me")
            assert await priors.history("pets", "default", before=None, limit=10) == []

    run(scenario())


def test_counts_are_added_and_start_from_those_of_the_model(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            first = await priors.add(pets, "default", {"label_frequencies": {"lynx": 5}}, by="me")
            assert first.entry.body.label_frequencies == {"cat": 100, "dog": 50, "lynx": 10}
            await priors.put(pets, "winter", COUNTS, by="me")
            second = await priors.add(pets, "winter", {"target": [0, 1, 4]}, by="me")
            assert second.entry.body.target == {"cat": 1, "dog": 3, "lynx": 7}

    run(scenario())


def test_counts_are_added_to_classes_that_others_stands_for(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(
                pets, "default", parse_prior({"target": {"cat": 7}, "others": 2.0}), by="me"
            )
            added = await priors.add(pets, "default", {"target": {"lynx": 3}}, by="me")
            assert added.entry.body.target == {"cat": 7, "dog": 2, "lynx": 5}

    run(scenario())


@pytest.mark.parametrize(
    ("stored", "addition"),
    [
        ({"target": "uniform"}, {"target": {"lynx": 1}}),
        ({"target": {"cat": 0.2, "dog": 0.3, "lynx": 0.5}}, {"target": {"lynx": 1}}),
        ({"label_frequencies": [0.5, 0.3, 0.2]}, {"label_frequencies": {"lynx": 1}}),
    ],
)
def test_counts_cannot_be_added_to_what_is_no_counts(pets, sqlite_url, stored, addition):
    async def scenario():
        async with following(sqlite_url) as priors:
            await priors.put(pets, "default", parse_prior(stored), by="me")
            with pytest.raises(PriorConflict, match="not counts"):
                await priors.add(pets, "default", addition, by="me")

    run(scenario())


@pytest.mark.parametrize(
    "addition",
    [
        {"target": {"wolf": 1}},
        {"target": {"cat": -1}},
        {"target": [1]},
        {"target": {"cat": float("inf")}},
    ],
)
def test_wrong_counts_are_refused(pets, sqlite_url, addition):
    async def scenario():
        async with following(sqlite_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            with pytest.raises(InvalidPrior):
                await priors.add(pets, "default", addition, by="me")

    run(scenario())


def test_no_addition_is_lost_among_many_writers(pets, store_url):
    async def scenario():
        async with following(store_url) as one, following(store_url) as other:
            await one.put(pets, "default", COUNTS, by="me")
            await eventually_async(lambda: other.select(pets).revision == 1)
            await asyncio.gather(
                *(
                    p.add(pets, "default", {"target": {"lynx": 1}}, by="me")
                    for p in (one, other)
                    for _ in range(20)
                )
            )
            last = await one.history("pets", "default", before=None, limit=100)
            assert [entry.revision for entry in last] == list(range(41, 0, -1))
            await eventually_async(lambda: one.select(pets).revision == 41)
            assert (await one.entry(pets, "default", 41)).body.target["lynx"] == 43

    run(scenario())


def test_rollback_makes_a_new_revision_equal_to_an_old_one(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            old = priors.select(pets)
            await priors.put(pets, "default", OTHER, by="me")
            back = await priors.rollback(pets, "default", 1, by="me")
            assert back.entry.revision == 3
            assert np.array_equal(priors.select(pets).offset, old.offset)
            assert (await priors.rollback(pets, "default", 1, by="me")).entry.revision == 3
            with pytest.raises(UnknownPrior):
                await priors.rollback(pets, "default", 99, by="me")

    run(scenario())


def test_a_rollback_to_the_same_numbers_in_another_form_changes_nothing(pets, store_url):
    """A vector in class order is the same prior as one by class name."""
    numbers = [3.0, 2.0, 1.0]
    by_name = dict(zip(pets.class_names, numbers, strict=True))

    async def scenario():
        async with following(store_url) as priors:
            for target in (by_name, [1.0, 1.0, 2.0], numbers):
                await priors.put(pets, "default", parse_prior({"target": target}), by="me")
            back = await priors.rollback(pets, "default", 1, by="me")
            assert (back.entry.revision, back.changed) == (3, False)

    run(scenario())


def test_a_deleted_prior_is_out_of_use_and_its_history_goes_on(pets, store_url):
    async def scenario():
        async with following(store_url) as priors, following(store_url) as other:
            await priors.put(pets, "winter", COUNTS, by="me")
            await eventually_async(lambda: other.names("pets") == ["winter"])
            await priors.remove(pets, "winter", by="me")
            for each in (priors, other):
                await eventually_async(lambda each=each: each.names("pets") == [])
                with pytest.raises(UnknownPrior):
                    each.select(pets, "winter")
            with pytest.raises(UnknownPrior):
                await priors.remove(pets, "winter", by="me")
            with pytest.raises(UnknownPrior):
                await priors.fetch(pets, "winter", 1)
            revived = await priors.put(pets, "winter", COUNTS, by="me")
            assert (revived.created, revived.entry.revision) == (True, 3)
            entries = await priors.history("pets", "winter", before=None, limit=10)
            assert [(e.revision, e.deleted) for e in entries] == [(3, False), (2, True), (1, False)]
            await priors.remove(pets, "winter", by="me")
            assert (await priors.rollback(pets, "winter", 1, by="me")).entry.revision == 5

    run(scenario())


def test_a_deleted_default_gives_way_to_the_rule_of_the_paper(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            await priors.remove(pets, "default", by="me")
            assert priors.select(pets).revision == 0
            assert np.array_equal(priors.select(pets).offset, Priors().select(pets).offset)

    run(scenario())


def test_a_pinned_revision_is_that_revision(pets, store_url):
    async def scenario():
        offsets = {}
        async with following(store_url) as priors:
            for i in range(1, 6):
                await priors.put(pets, "default", parse_prior({"target": [1, 2, i]}), by="me")
                offsets[i] = priors.select(pets).offset
        async with following(store_url) as fresh:
            assert fresh.select(pets, at=5).revision == 5
            with pytest.raises(RevisionNotInMemory):
                fresh.select(pets, "default", at=2)
            for i, offset in offsets.items():
                pinned = await fresh.fetch(pets, None, i)
                assert (pinned.revision, pinned.name) == (i, "default")
                assert np.array_equal(pinned.offset, offset)
            assert fresh.select(pets, "default", at=2) is await fresh.fetch(pets, "default", 2)
            assert fresh.select(pets, "default", at=0).revision == 0
            for name, at in (("default", 9), ("uniform", 1), ("summer", 1)):
                with pytest.raises(UnknownPrior):
                    await fresh.fetch(pets, name, at)

    run(scenario())


@pytest.mark.parametrize("wanted", ["a", "a@1", "a@>=1", "b", "uniform", None])
def test_a_prior_of_many_classes_is_made_ready_off_the_loop(tmp_path, wanted):
    """The cache holds one prior here, so that each is made anew; no poll makes one meanwhile."""
    many = make_bundle(class_names=[f"c{n}" for n in range(2001)], class_counts=[1.0] * 2001)

    async def scenario():
        async with following(
            f"sqlite:///{tmp_path}/p.db", cache_bytes=1, poll_seconds=3600
        ) as priors:
            for name in "ab":
                target = [ord(name) + n for n in range(2001)]
                await priors.put(many, name, parse_prior({"target": target}), by="me")
            await priors.requested(many, "training")
            with pytest.raises(RevisionNotInMemory):
                priors.at_hand(many, wanted)
            found = await priors.requested(many, wanted)
            assert priors.at_hand(many, wanted) is found
            name = "default" if wanted is None else wanted[:1] if "@" in wanted else wanted
            assert found.name == name
            assert np.array_equal(found.offset, priors.in_force(many, name).offset)
            for missing in ("winter", "winter@>=0", "a@>=9", "a@9"):
                with pytest.raises((UnknownPrior, RevisionNotHere)):
                    await priors.requested(many, missing)

    run(scenario())


def test_a_long_prior_may_take_longer_to_store_than_a_short_one(tmp_path):
    classes = 40_000
    many = make_bundle(class_names=[f"c{n}" for n in range(classes)], class_counts=[1.0] * classes)

    async def scenario():
        async with following(f"sqlite:///{tmp_path}/p.db", answer_seconds=0.0) as priors:
            body = parse_prior({"target": [1.0 + n for n in range(classes)]})
            assert (await priors.put(many, "a", body, by="me")).entry.revision == 1

    run(scenario())


def test_requests_that_come_together_have_a_long_prior_made_ready_once(tmp_path, monkeypatch):
    many = make_bundle(class_names=[f"c{n}" for n in range(2001)], class_counts=[1.0] * 2001)
    made = []
    resolve = Priors.in_force

    def counted(self, bundle, name):
        made.append(name)
        return resolve(self, bundle, name)

    async def scenario():
        async with following(
            f"sqlite:///{tmp_path}/p.db", cache_bytes=1, poll_seconds=3600
        ) as priors:
            body = parse_prior({"target": [1 + n for n in range(2001)]})
            await priors.put(many, "a", body, by="me")
            await priors.requested(many, "training")
            monkeypatch.setattr(Priors, "in_force", counted)
            together = [asyncio.ensure_future(priors.requested(many, "a")) for _ in range(20)]
            await asyncio.sleep(0)
            together[0].cancel()  # the caller for whom it was begun
            found = await asyncio.gather(*together[1:])
            assert len({id(each) for each in found}) == 1
            assert made == ["a"]
            with pytest.raises(UnknownPrior):
                await priors.requested(many, "winter")

    run(scenario())


def test_at_least_a_revision_is_that_or_a_newer_one_or_an_error(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            with pytest.raises(RevisionNotHere):
                priors.select(pets, "default", at_least=1)
            await priors.put(pets, "default", COUNTS, by="me")
            await priors.put(pets, "default", OTHER, by="me")
            assert priors.select(pets, "default", at_least=1).revision == 2
            assert priors.select(pets, None, at_least=2).revision == 2
            with pytest.raises(RevisionNotHere):
                priors.select(pets, "default", at_least=3)
            await priors.remove(pets, "default", by="me")
            with pytest.raises(UnknownPrior):
                priors.select(pets, "default", at_least=2)

    run(scenario())


def test_priors_follow_a_model_to_a_version_with_the_same_classes(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            retrained = make_bundle(version=2, class_counts=(10.0, 20.0, 30.0))
            chosen = priors.select(retrained)
            assert chosen.revision == 1
            assert not np.array_equal(chosen.offset, priors.select(pets).offset)

    run(scenario())


def test_a_prior_of_another_class_list_is_told_and_not_applied(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            await priors.put(pets, "winter", COUNTS, by="me")
            wider = make_bundle(
                version=2,
                class_names=("cat", "dog", "lynx", "wolf"),
                class_counts=(1.0, 1.0, 1.0, 1.0),
            )
            assert [entry.name for entry in priors.misfits(wider)] == ["default", "winter"]
            assert priors.misfits(pets) == []
            assert priors.select(wider).revision == 0
            with pytest.raises(PriorDoesNotFit, match="another class list"):
                priors.select(wider, "winter")
            with pytest.raises(PriorDoesNotFit):
                await priors.add(wider, "winter", {"target": {"wolf": 1}}, by="me")
            with pytest.raises(PriorDoesNotFit):
                await priors.rollback(wider, "winter", 1, by="me")
            await priors.put(wider, "winter", parse_prior({"target": [1, 1, 1, 2]}), by="me")
            assert priors.select(wider, "winter").revision == 2
            assert priors.select(pets, "winter").revision == 1, (
                "the old version keeps the prior that fits it"
            )
            with pytest.raises(PriorDoesNotFit, match="newest that fits, revision 1"):
                priors.select(pets, "winter", at_least=2)
        async with following(store_url) as priors:
            assert priors.select(wider, "winter").revision == 2
            assert priors.select(pets, "winter").revision == 1

    run(scenario())


def test_an_inline_prior_is_checked_and_resolved_once(pets):
    priors = Priors()
    first = priors.inline(pets, {"target": {"cat": 1, "dog": 2, "lynx": 3}})
    assert (first.name, first.revision) == (None, 0)
    assert priors.inline(pets, {"target": {"lynx": 3, "dog": 2, "cat": 1}}) is first
    assert priors.inline(pets, {"target": {"cat": 2, "dog": 2, "lynx": 3}}).key != first.key


def nested(depth):
    value = 1.0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        3,
        "default",
        {"target": nested(900)},
        {"target": nested(5000)},
        {"target": [2**70, -1, 1]},
        {"x": 1},
        {"note": "\ud800"},
    ],
)
def test_an_inline_prior_that_is_no_prior_is_refused(pets, body):
    with pytest.raises(InvalidPrior):
        Priors().inline(pets, body)


def test_references_are_parsed():
    assert parse_prior_reference("winter").name == "winter"
    assert parse_prior_reference("winter@7").at == 7
    assert parse_prior_reference("winter@>=8").at_least == 8
    for wrong in (
        "",
        "@",
        "a@",
        "a@x",
        "a@-1",
        "a@>8",
        "A",
        "a@1@2",
        "a b",
        "a@9999999999999999",
        "é",
        "a" * 65,
        "a@>=",
        "a\n",
    ):
        with pytest.raises(InvalidReference):
            parse_prior_reference(wrong)


def test_writing_without_a_store_is_refused_and_reading_is_not(pets):
    async def scenario():
        priors = Priors()
        await priors.start()
        with pytest.raises(StoreUnavailable):
            await priors.put(pets, "default", COUNTS, by="me")
        assert priors.store_state.kind == "none"
        assert priors.select(pets).revision == 0

    run(scenario())


@pytest.mark.parametrize("hours", [1, -1])
def test_a_replica_whose_clock_is_wrong_is_seen_and_sees_the_others(postgres, hours, monkeypatch):
    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours)

    url = postgres.new_schema()
    right, wrong = open_store(url), open_store(url)
    right.open()
    wrong.open()
    try:
        right.report(WorkerReport("right", "pod-1", 1, 0, scraped_at="pod-1:9000"))
        for module in ("store", "orders", "reports"):
            monkeypatch.setattr(f"service.priors.store.{module}.datetime", Wrong)
        wrong.report(WorkerReport("wrong", "pod-2", 1, 0, scraped_at="pod-2:9000"))
        for _clock in range(2):
            assert [each.worker for each in wrong.served("pets", "default")] == ["right", "wrong"]
            assert [each.worker for each in wrong.worker_models("pets")] == ["right", "wrong"]
            assert wrong.scrape_targets() == ["pod-1:9000", "pod-2:9000"]
            monkeypatch.undo()
    finally:
        right.close()
        wrong.close()


def test_each_worker_tells_what_it_serves(pets, store_url):
    async def scenario():
        async with following(store_url) as one, following(store_url) as other:
            await one.put(pets, "default", COUNTS, by="me")
            deadline = asyncio.get_running_loop().time() + 10
            while [served.revision for served in await other.served("pets", "default")] != [1, 1]:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)

    run(scenario())


def test_what_was_stored_is_there_after_a_restart(pets, store_url):
    async def scenario():
        async with following(store_url) as priors:
            await priors.put(pets, "default", COUNTS, by="me")
            before = priors.select(pets)
        async with following(store_url) as priors:
            after = priors.select(pets)
            assert after.revision == 1
            assert np.array_equal(after.offset, before.offset)

    run(scenario())


def test_a_poll_of_a_file_that_nobody_has_written_to_runs_no_statement(pets, sqlite_url):
    store, statements = open_store(sqlite_url), []
    store.open()
    event.listen(
        store.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )

    async def change_elsewhere(target):
        async with following(sqlite_url) as priors:
            await priors.put(pets, "default", target, by="me")

    try:
        for number, target in enumerate([COUNTS, OTHER], 1):
            run(change_elsewhere(target))
            assert [entry.revision for entry in store.since(number - 1).entries] == [number]
            statements.clear()
            for change, entries in ((number, 0), (number + 1, 0), (number - 1, 1)):
                found = store.since(change)
                assert (found.number, len(found.entries)) == (number, entries)
                assert len(statements) == 2 * entries  # one for priors, one for orders
    finally:
        store.close()


ENTRIES = [
    StoredRevision(
        "pets",
        "default",
        revision,
        None if deleted else COUNTS,
        "" if deleted else digest,
        EPOCH,
        "me",
        "",
        deleted=deleted,
    )
    for revision, (digest, deleted) in enumerate(
        [
            ("a", False),
            ("a", False),
            ("b", False),
            ("", True),
            ("b", False),
            ("a", False),
            ("b", False),
        ],
        1,
    )
]


@given(st.permutations(ENTRIES), st.lists(st.integers(0, 6)))
def test_the_snapshot_is_the_same_in_whatever_order_entries_arrive_and_never_goes_back(
    order, again
):
    snapshot, newest = EMPTY, 0
    for entry in [*order, *(ENTRIES[i] for i in again)]:
        snapshot = advance(snapshot, [entry])
        revision = snapshot["pets", "default"].newest.revision
        assert revision >= newest
        newest = revision
    assert snapshot == advance(EMPTY, ENTRIES)
    assert {
        digest: entry.revision for digest, entry in snapshot["pets", "default"].fitting.items()
    } == {"a": 6, "b": 7}


@given(st.permutations(ENTRIES[:4]))
def test_a_deletion_ends_the_use_of_everything_before_it(order):
    held = advance(EMPTY, order)["pets", "default"]
    assert held.newest.deleted
    assert held.fitting == {}


def test_priors_whose_start_never_came_to_the_store_can_be_stopped(tmp_path):
    async def scenario():
        await Priors(open_store(f"sqlite:///{tmp_path}/p.db")).stop()

    run(scenario())
