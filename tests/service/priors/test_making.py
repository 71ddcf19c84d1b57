"""Long priors are made in a few threads, which refuse what would wait too long."""

import asyncio
import threading

import pytest

from service.priors.making import LONG_VALUES, MAX_WAITING, Making, is_long
from service.priors.revisions import PriorsBusy

MANY = LONG_VALUES + 1


def test_more_priors_than_may_wait_are_refused_and_the_others_are_made():
    async def scenario():
        making, release, loop_thread = Making(), threading.Event(), threading.get_ident()

        def make():
            release.wait(60)
            return threading.get_ident()

        asked = [asyncio.ensure_future(making.made(make)) for _ in range(3 * MAX_WAITING)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        assert all(isinstance(each.exception(), PriorsBusy) for each in done)
        release.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        made = {each for each in found if not isinstance(each, PriorsBusy)}
        assert sum(isinstance(each, int) for each in found) >= MAX_WAITING
        assert loop_thread not in made
        making.close()

    asyncio.run(scenario())


def test_a_fault_reaches_everybody_who_waits_for_the_same_prior():
    async def scenario():
        making = Making()

        def fails():
            raise ValueError("wrong")

        both = [making.once("a", fails, print) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [str(each) for each in found] == ["wrong", "wrong"]
        making.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        {"target": [1.0] * MANY},
        {"label_frequencies": dict.fromkeys(map(str, range(MANY)), 1.0)},
        {"costs": {"pairs": [["a", "b", 1.0]] * MANY}},
        {"costs": {"matrix": [[1.0] * 50] * 50}},
        {"context": {"site": dict.fromkeys(map(str, range(MANY)), "winter")}},
        dict.fromkeys(map(str, range(MANY)), 1),
    ],
    ids=lambda body: next(iter(body)),
)
def test_values_count_wherever_they_stand_in_an_inline_prior(body):
    assert is_long(body)
    assert not is_long({"target": [1.0] * 1000, "costs": {"miss": {"a": 3}, "matrix": [[1, 2]]}})
