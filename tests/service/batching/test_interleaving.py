"""Whatever is asked at the same time, each request gets the answer that it gets alone."""

import asyncio
import dataclasses
import itertools
import json

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.endurance.answers import fault_of
from benchmarks.endurance.client import LEFT, Connection, drive
from benchmarks.endurance.subjects import publish_models, put_priors
from benchmarks.endurance.traffic import asks, draw
from tests.support.server import running


@pytest.fixture(scope="module", params=[100, 0], ids=["on the loop", "in the thread"])
def url(tmp_path_factory, request):
    """Where the graphs of cheap models run."""
    models = tmp_path_factory.mktemp("models")
    publish_models(models)
    with running(models, inline_us=request.param) as server:
        put_priors(server.url)
        yield server.url
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert server.terminate() == 0


async def answered(connection, ask):
    """The status, headers and body of one request's answer."""
    (found,) = [each async for each in connection.send([ask])]
    return found


def test_two_thousand_mixed_requests_at_once_are_answered_as_if_each_were_alone(url):
    driven = asyncio.run(drive(url, itertools.islice(asks(seed=1), 2000), connections=64))
    assert driven.faults == []
    assert driven.statuses.total() == 2000
    assert driven.statuses[200] > 1600
    assert driven.statuses[LEFT] > 50
    assert {422, 404, 400} < set(driven.statuses)


@settings(max_examples=100, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=24),
    connections=st.integers(1, 24),
)
def test_any_handful_of_requests_at_once_is_answered_as_if_each_were_alone(url, seeds, connections):
    some = [draw(np.random.default_rng(seed)) for seed in seeds]
    assert asyncio.run(drive(url, some, connections=connections)).faults == []


def test_answers_at_once_are_those_of_the_same_requests_one_by_one(url):
    some = [
        ask
        for ask in itertools.islice(asks(seed=2), 600)
        if ask.statuses == (200,) and ask.leaves is None and not ask.outputs
    ]

    async def go():
        alone = Connection(url)
        one_by_one = [await answered(alone, ask) for ask in some]
        many = [Connection(url) for _ in some]
        calls = (answered(each, ask) for each, ask in zip(many, some, strict=True))
        together = await asyncio.gather(*calls)
        await asyncio.gather(*(each.close() for each in [alone, *many]))
        return one_by_one, together

    for (_, _, alone), (_, _, together) in zip(*asyncio.run(go()), strict=True):
        words, numbers = flat(json.loads(alone))
        words_too, numbers_too = flat(json.loads(together))
        assert words == words_too
        np.testing.assert_allclose(numbers, numbers_too, rtol=0, atol=1e-5)


def flat(document):
    """(everything but fractions, fractions) of a JSON document, in order."""
    words, numbers, rest = [], [], [document]
    while rest:
        value = rest.pop()
        if isinstance(value, (dict, list)):
            rest += value.values() if isinstance(value, dict) else value
        else:
            (numbers if isinstance(value, float) else words).append(value)
    return words, numbers


def test_the_comparison_sees_what_is_wrong(url):
    """A test of the test: the answer to another request, or with another tau, is a fault."""

    async def go():
        connection = Connection(url)
        first = itertools.islice(asks(seed=3), 200)
        some = [ask for ask in first if ask.scores is not None and ask.leaves is None]
        answers = [await answered(connection, ask) for ask in some]
        await connection.close()
        return some, answers

    some, answers = asyncio.run(go())
    for ask, answer in zip(some, answers, strict=True):
        if answer[0] != 200:
            continue
        assert fault_of(ask, *answer) is None
        assert fault_of(ask, 422, *answer[1:]) is not None
        assert ask.scores is not None
        shifted = {name: getattr(ask.scores, name) + 0.01 for name in vars(ask.scores)}
        other = dataclasses.replace(ask, scores=dataclasses.replace(ask.scores, **shifted))
        if set(ask.outputs) <= {"class_index", "class_name"} and ask.outputs:
            continue  # there is no number in such an answer
        assert fault_of(other, *answer) is not None
