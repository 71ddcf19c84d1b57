"""The store and two replicas against a model: a list of revisions; readers never go back."""

import asyncio
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.contract.members.body import PriorBody
from service.contract.prior import resolve_prior
from service.priors.changes import UNCONDITIONAL, Condition
from service.priors.priors import Priors
from service.priors.revisions import PriorConflict, StaleRevision, UnknownPrior
from service.priors.store import open_store
from tests.support.eventually import eventually_async
from tests.support.priors import make_bundle

pytestmark = pytest.mark.usefixtures("patient")

PETS = make_bundle()
NAMES = st.sampled_from(["default", "winter"])
TARGETS = st.tuples(*[st.integers(1, 3)] * 3)
REPLICAS = st.integers(0, 1)


def offset_of(target):
    body = PriorBody(target="uniform" if target is None else [float(count) for count in target])
    prior = resolve_prior(
        body, class_names=PETS.class_names, class_counts=PETS.class_counts, loss_tau=0.0
    )
    return prior.offset.astype(np.float32)


class Replicas(RuleBasedStateMachine):
    """Two replicas of one store. Model: name → targets of its revisions, None if deleted."""

    make_url = staticmethod(lambda: "")

    def __init__(self):
        super().__init__()
        self.url = self.make_url()
        self.runner = asyncio.Runner()
        self.replicas = [self.runner.run(self.join()) for _ in range(2)]
        self.history = {"default": [], "winter": []}
        self.seen = {}
        self.with_note = set()
        """(name, revision) of those that a rollback has given a note, which a put would remove."""

    async def join(self):
        priors = Priors(open_store(self.url), poll_seconds=0.005)
        await priors.start()
        return priors

    def current(self, name):
        """(revision, target) in force; (0, None) when there is none."""
        entries = self.history[name]
        if not entries or entries[-1] is None:
            return 0, None
        return len(entries), entries[-1]

    def write(self, name, coroutine, target, *, puts=False, rolls_back=False):
        """Run a write that is to succeed, and check what it says.

        puts: the write replaces the whole prior, its note included.
        """
        newest, now = self.current(name)
        unchanged = target is not None and now == target
        if puts and (name, newest) in self.with_note:
            unchanged = False
        written = self.runner.run(coroutine)
        if not unchanged:
            self.history[name].append(target)
            if rolls_back:
                self.with_note.add((name, len(self.history[name])))
        if target is not None:
            stored = written.entry.body.target
            assert tuple(stored.values() if isinstance(stored, dict) else stored) == target
            assert written.entry.revision == len(self.history[name])
            assert written.created == (
                not unchanged and (len(self.history[name]) == 1 or self.history[name][-2] is None)
            )

    @rule(
        replica=REPLICAS,
        name=NAMES,
        wanted=TARGETS,
        guard=st.sampled_from(["none", "right", "stale", "create"]),
    )
    def put(self, replica, name, wanted, guard):
        revision, _ = self.current(name)
        condition = {
            "none": UNCONDITIONAL,
            "right": Condition(if_match=frozenset({revision}))
            if revision
            else Condition(if_none_match="*"),
            "stale": Condition(if_match=frozenset({revision + 1, 10**6})),
            "create": Condition(if_none_match="*"),
        }[guard]
        body = PriorBody(target=[float(count) for count in wanted])
        writing = self.replicas[replica].put(PETS, name, body, by="me", condition=condition)
        if guard == "stale" or (guard == "create" and revision):
            with pytest.raises(StaleRevision):
                self.runner.run(writing)
        else:
            self.write(name, writing, wanted, puts=True)

    @rule(replica=REPLICAS, name=NAMES, place=st.integers(0, 2), count=st.integers(0, 2))
    def add(self, replica, name, place, count):
        _, target = self.current(name)
        adding = self.replicas[replica].add(
            PETS, name, {"target": {PETS.class_names[place]: count}}, by="me"
        )
        if target is None:
            with pytest.raises(PriorConflict if name == "default" else UnknownPrior):
                self.runner.run(adding)
        else:
            self.write(name, adding, tuple(v + count * (i == place) for i, v in enumerate(target)))

    @rule(replica=REPLICAS, name=NAMES, back=st.integers(0, 6))
    def rollback(self, replica, name, back):
        entries = self.history[name]
        revision = len(entries) - back
        rolling = self.replicas[replica].rollback(PETS, name, max(revision, 1), by="me")
        if revision < 1:
            if entries:
                rolling.close()
                return
            with pytest.raises(UnknownPrior):
                self.runner.run(rolling)
        elif entries[revision - 1] is None:
            with pytest.raises(PriorConflict):
                self.runner.run(rolling)
        else:
            self.write(name, rolling, entries[revision - 1], rolls_back=True)

    @rule(replica=REPLICAS, name=NAMES)
    def delete(self, replica, name):
        removing = self.replicas[replica].remove(PETS, name, by="me")
        if self.current(name)[0] == 0:
            with pytest.raises(UnknownPrior):
                self.runner.run(removing)
        else:
            self.write(name, removing, None)

    @rule(replica=REPLICAS, name=NAMES)
    def read_what_is_in_force(self, replica, name):
        priors = self.replicas[replica]
        held = priors._in_force.get(("pets", name))
        known = 0 if held is None else held.newest.revision
        assert known >= self.seen.get((replica, name), 0), "a reader went back"
        self.seen[replica, name] = known
        target = None if known == 0 else self.history[name][known - 1]
        if target is None and name != "default":
            with pytest.raises(UnknownPrior):
                priors.select(PETS, name)
            return
        chosen = priors.select(PETS, name)
        assert chosen.revision == (0 if target is None else known)
        assert np.array_equal(chosen.offset, offset_of(target)), (
            "not the vector of the revision that it reports"
        )

    @rule(replica=REPLICAS, name=NAMES, back=st.integers(0, 6))
    def read_a_pinned_revision(self, replica, name, back):
        entries = self.history[name]
        revision = len(entries) - back
        if revision < 1 or entries[-1] is None:
            return
        reading = self.replicas[replica].fetch(PETS, name, revision)
        if entries[revision - 1] is None:
            with pytest.raises(UnknownPrior):
                self.runner.run(reading)
            return
        try:
            found = self.runner.run(reading)
        except UnknownPrior:  # this replica has not heard yet that the name is in use again
            held = self.replicas[replica]._in_force.get(("pets", name))
            assert held is None or held.newest.deleted
            return
        assert found.revision == revision
        assert np.array_equal(found.offset, offset_of(entries[revision - 1]))

    @rule(replica=REPLICAS)
    def restart(self, replica):
        self.runner.run(self.replicas[replica].stop())
        self.replicas[replica] = self.runner.run(self.join())

    @precondition(lambda self: any(self.history.values()))
    @rule(name=NAMES)
    def settle(self, name):
        newest = len(self.history[name])

        def all_have_it():
            held = [priors._in_force.get(("pets", name)) for priors in self.replicas]
            return all((0 if each is None else each.newest.revision) == newest for each in held)

        self.runner.run(eventually_async(all_have_it))

    @invariant()
    def names_in_use_are_names_of_the_model(self):
        for priors in self.replicas:
            assert set(priors.names("pets")) <= set(self.history)

    def teardown(self):
        try:
            self.check_history()
        finally:
            for priors in self.replicas:
                self.runner.run(priors.stop())
            self.runner.close()

    def check_history(self):
        for name, entries in self.history.items():
            stored = self.runner.run(
                self.replicas[0].history("pets", name, before=None, limit=1000)
            )
            assert [entry.revision for entry in reversed(stored)] == list(
                range(1, len(entries) + 1)
            )
            assert [entry.deleted for entry in reversed(stored)] == [
                target is None for target in entries
            ]


def check(make_url, examples):
    machine = type("Machine", (Replicas,), {"make_url": staticmethod(make_url)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_replicas_of_a_sqlite_store_behave_as_the_model_says(tmp_path):
    check(lambda: f"sqlite:///{tempfile.mkdtemp(dir=tmp_path)}/priors.db", examples=25)


def test_replicas_of_a_postgresql_store_behave_as_the_model_says(postgres):
    check(postgres.new_schema, examples=15)
