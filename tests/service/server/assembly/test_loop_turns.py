"""The longest time in which the loop served nobody else is measured; an idle loop shows none."""

import asyncio
import time

import httpx

from service.server.assembly.loop_turns import LoopTurns
from tests.support.eventually import eventually_async
from tests.support.server import metric, running
from tests.support.small_models import publish_model


def test_a_callback_that_holds_the_loop_is_measured():
    async def main():
        turns = LoopTurns()
        turns.start(delay_seconds=0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        await eventually_async(lambda: turns.longest_seconds > 0.1)
        assert [name for name, _, _ in turns.gauges()] == ["priordial_loop_turn_seconds"]

    asyncio.run(main())


def test_the_metric_is_there_where_it_is_asked_for_and_only_there(tmp_path):
    publish_model(tmp_path)
    name = "priordial_loop_turn_seconds"
    with running(tmp_path, measure_loop_turns=True) as server:
        text = httpx.get(f"{server.url}/metrics").text
        assert f"{name} " in text
        assert metric(text, name) >= 0
    with running(tmp_path) as server:
        assert f"{name} " not in httpx.get(f"{server.url}/metrics").text.replace(
            f"# TYPE {name} ", ""
        ).replace(f"# HELP {name} ", "")
