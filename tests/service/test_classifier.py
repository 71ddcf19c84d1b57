"""The classifier follows the clock that a schedule names."""

import asyncio
import threading
import time
from datetime import datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from service.api.edge.errors import problem_of
from service.batching.work import Deadline, DeadlinePassed, Overloaded
from service.classifier import Classifier, RowSettings
from service.contract.members.body import parse_prior
from service.graph.prior_table import PriorTable
from service.priors.making import LONG_VALUES
from service.priors.priors import Priors
from service.priors.revisions import RevisionNotInMemory
from service.wire.faults import TooLarge
from service.wire.parameters import NO_PARAMETERS
from tests.support.priors import following, make_bundle

WEEKEND = {
    "target": "training",
    "schedule": {
        "time_zone": "Asia/Tokyo",
        "rules": [{"weekdays": ["sat", "sun"], "prior": "uniform"}],
    },
}


def test_the_same_prior_leads_elsewhere_when_the_day_changes_at_its_place():
    bundle, priors = make_bundle(), Priors()
    now = [datetime(2026, 11, 28, 0, 0, tzinfo=ZoneInfo("Asia/Tokyo")).timestamp()]  # a Saturday
    classifier = Classifier(priors, tau_cap=10, clock=lambda: now[0])
    revision = priors.inline(bundle, WEEKEND)
    used = classifier.in_context(bundle, revision, None)
    assert used.name == "uniform"
    assert used.key == priors.select(bundle, "uniform").key
    now[0] -= 1  # still Friday in Tokyo
    used = classifier.in_context(bundle, revision, None)
    assert (used.name, used.prior) == (None, revision.prior)
    assert used.chosen_by is not None
    assert used.chosen_by.fallback == "no_rule"


SITES = {"site": {"north": "a", "south": "nobody", "east": "uniform"}, "else": "b"}
LEADS = {
    "context": {"context": SITES},
    "schedule": {"schedule": {"time_zone": "UTC", "rules": [{"hours": [0, 24], "prior": "a"}]}},
}


@pytest.mark.parametrize("kind", LEADS)
@pytest.mark.parametrize(
    ("site", "expected"), [("north", "a"), ("south", "b"), ("east", "uniform"), (None, "b")]
)
def test_a_long_prior_that_another_leads_to_is_made_off_the_loop(
    tmp_path, monkeypatch, *, kind, site, expected
):
    """The cache holds one prior here, so that each is made anew; no poll makes one meanwhile."""
    classes = LONG_VALUES + 1
    many = make_bundle(class_names=[f"c{n}" for n in range(classes)], class_counts=[1.0] * classes)
    context = None if site is None else {"site": site}
    expected = "a" if kind == "schedule" else expected
    threads, in_force = set(), Priors.in_force

    def seen(self, bundle, name):
        found = in_force(self, bundle, name)  # raises at once for a name that is not stored
        threads.add(threading.get_ident())
        return found

    async def scenario():
        url = f"sqlite:///{tmp_path}/p.db"
        async with following(url, cache_bytes=1, poll_seconds=3600) as priors:
            for name in "ab":
                target = [ord(name) + n for n in range(classes)]
                await priors.put(many, name, parse_prior({"target": target}), by="me")
            await priors.put(many, "leads", parse_prior(LEADS[kind]), by="me")
            classifier = Classifier(priors, tau_cap=10)
            leads = await priors.requested(many, "leads")
            with pytest.raises(RevisionNotInMemory):
                classifier.in_context(many, leads, context)
            monkeypatch.setattr(Priors, "in_force", seen)
            found = await classifier.revision_for(many, "leads", context)
            assert threads
            assert threading.get_ident() not in threads
            assert found.name == expected
            assert found.chosen_by is not None
            assert found.chosen_by.name == "leads"
            assert classifier.in_context(many, leads, context) == found
            assert np.array_equal(found.offset, in_force(priors, many, expected).offset)

    asyncio.run(scenario())


def test_a_request_does_not_wait_for_a_prior_beyond_its_deadline(pets, monkeypatch):
    async def scenario():
        classifier, never = Classifier(Priors(), tau_cap=10), asyncio.Event()

        async def away(*_):
            await never.wait()

        monkeypatch.setattr(classifier, "_requested", away)
        with pytest.raises(DeadlinePassed, match="deadline passed"):
            await classifier.revision_for(pets, "a@1", None, deadline=Deadline(time.monotonic()))

    asyncio.run(scenario())


def test_a_request_of_more_priors_than_ever_fit_is_too_large_and_one_that_must_wait_is_refused():
    bundle = make_bundle()
    priors = Priors()
    classifier = Classifier(priors, tau_cap=10)
    classes = len(bundle.class_names)
    table = PriorTable(classes, capacity=2, max_bytes=4 * 4 * classes)
    counted = []
    batcher = SimpleNamespace(refused=counted.append)
    model = SimpleNamespace(bundle=bundle, table=table, batcher=batcher)

    def admitted(numbers):
        targets = [[1.0 + number, *[1.0] * (classes - 1)] for number in numbers]
        revisions = tuple(priors.inline(bundle, {"target": target}) for target in targets)
        settings = RowSettings(1.0, revisions, np.arange(len(revisions)))
        inputs = np.zeros((len(revisions), 2), np.float32)
        return classifier.admit_rows(model, inputs, settings, top_k=1, values_a_row=1)

    with pytest.raises(TooLarge, match="4 different priors; at most 3"):
        admitted(range(4))
    first = admitted(range(2))
    with pytest.raises(Overloaded) as refused:
        admitted(range(2, 4))
    assert counted == [refused.value]
    problem = problem_of(refused.value)
    assert (problem.status, problem.headers) == (429, {"Retry-After": "1"})
    third = admitted([2])  # the last row of the table
    alone = priors.inline(bundle, {"target": [9.0] + [1.0] * (classes - 1)})
    with pytest.raises(Overloaded) as alone_refused:
        classifier.admit(model, np.zeros((1, 2), np.float32), NO_PARAMETERS, alone)
    assert counted == [refused.value, alone_refused.value]
    for slot in (*first.held_slots, *third.held_slots):
        table.release(slot)
    assert len(admitted(range(2, 5)).held_slots) == 3
