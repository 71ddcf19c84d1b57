"""Automatic steps take the path of manual writes: stored, audited, announced, refused."""

import asyncio
import logging
from datetime import UTC, datetime

import numpy as np
import pytest

from service.api.priors import automatic as of_automatic
from service.api.priors.automatic import AutomaticSteps
from service.contract.automatic import AUTHOR, AutoAdopt, Step
from service.contract.members.body import parse_prior
from service.contract.shift.label_shift import PriorEstimate
from service.contract.shift.verdict import Assessment, Gain
from service.priors.recent import LogitReservoir
from service.priors.shift.watch import Automatic
from tests.support.priors import following

WANTED = np.array([0.1, 0.2, 0.7])
BODY = parse_prior({"target": "training", "note": "mine", "auto_adopt": {"mode": "on"}})


def automatic(revision):
    estimate = PriorEstimate(WANTED, WANTED, WANTED, 2000, 1500.0, np.zeros((3, 3)))
    found = Assessment(
        estimate, WANTED, "usable", "fine", 0.8, None, 0.05, None, Gain(0.1, 0.08), calibrated=True
    )
    step = Step("adopt", "fine", WANTED, 0.4, shortened=True)
    return Automatic(
        "default", AutoAdopt(mode="on"), step, datetime.now(UTC), BODY, revision, found
    )


def scenario(url, pets, function, *, max_flip_share=1.0, logits=None):
    async def main():
        reservoir = LogitReservoir(3)
        if logits is not None:
            reservoir.add(logits)
        announced = []
        async with following(url) as priors:
            await priors.put(pets, "default", BODY, by="anna")
            steps = AutomaticSteps(
                priors,
                find_reservoir=lambda _: reservoir,
                max_flip_share=max_flip_share,
                announce=announced.append,
            )
            await function(priors, steps, announced)

    asyncio.run(main())


def test_a_step_is_stored_with_its_evidence_audited_and_announced(sqlite_url, pets, caplog):
    caplog.set_level(logging.INFO, "service.audit")

    async def run(priors, steps, announced):
        await asyncio.to_thread(steps.take, pets, automatic(1))
        entry = priors.newest("pets", "default")
        assert (entry.revision, entry.by) == (2, AUTHOR)
        assert entry.body.target == pytest.approx(dict(zip(pets.class_names, WANTED, strict=True)))
        assert entry.body.auto_adopt == BODY.auto_adopt
        for words in ("2000 rows", "verdict usable", "self-test 0.05", "shortened to 0.400 nats"):
            assert words in entry.note
        (changed,) = announced
        assert changed.document()["action"] == "auto-adopt"
        assert changed.document()["by"] == AUTHOR
        (line,) = [r for r in caplog.records if r.name == "service.audit"]
        assert line.audit["action"] == "auto-adopt"
        assert line.audit["revision"] == 2

    scenario(sqlite_url, pets, run)


def test_a_step_from_an_older_revision_is_not_taken(sqlite_url, pets):
    async def run(priors, steps, announced):
        await asyncio.to_thread(steps.take, pets, automatic(0))
        assert priors.newest("pets", "default").revision == 1
        assert announced == []

    scenario(sqlite_url, pets, run)


def test_a_step_that_would_flip_too_many_answers_is_refused_and_logged(sqlite_url, pets, caplog):
    logits = np.tile(np.array([1.0, 0.9, 0.0], np.float32), (500, 1))

    async def run(priors, steps, announced):
        await asyncio.to_thread(steps.take, pets, automatic(1))
        assert priors.newest("pets", "default").revision == 1
        assert announced == []
        assert "was refused" in caplog.text

    scenario(sqlite_url, pets, run, max_flip_share=0.1, logits=logits)


def test_a_step_that_takes_too_long_is_given_up_and_not_stored_later(
    sqlite_url, pets, caplog, monkeypatch
):
    monkeypatch.setattr(of_automatic, "STEP_SECONDS", 0)

    async def run(priors, steps, announced):
        async with steps._insight._flipping.turn():  # the step must wait
            await asyncio.to_thread(steps.take, pets, automatic(1))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)
        assert priors.newest("pets", "default").revision == 1
        assert announced == []
        assert "did not end within 0 s and is given up" in caplog.text

    scenario(sqlite_url, pets, run, logits=np.zeros((9, 3), np.float32))
