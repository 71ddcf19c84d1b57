"""The longest time in which the loop served nobody else is measured; an idle loop shows none."""

import asyncio
import gc
import re
import threading
import time
import weakref

import httpx

from service.server.assembly.loop_turns import LoopTurns
from tests.support.eventually import eventually_async
from tests.support.server import metric, running
from tests.support.small_models import publish_model


def held(hold):
    """The turns of a loop in which `hold(turns)` ran once, as soon as a long one was measured."""

    async def main():
        turns = LoopTurns()
        turns.start(delay_seconds=0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hold(turns)
        await eventually_async(lambda: turns.longest_seconds > 0.1)
        turns.stop()
        return turns

    return asyncio.run(main())


def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_nothing_is_measured_after_the_end_even_where_the_loop_goes_on():
    async def main():
        for turns_until_the_end in (0, 3):
            turns = LoopTurns()
            turns.start(delay_seconds=0)
            for _ in range(turns_until_the_end):
                await asyncio.sleep(0)
            turns.stop()
            gone = weakref.ref(turns)
            del turns
            await eventually_async(lambda gone=gone: gone() is None)

    asyncio.run(main())


def test_a_callback_that_holds_the_loop_is_measured_as_its_own_work_and_named(caplog):
    def held_by_a_callback(_):
        compute(0.3)

    turns = held(held_by_a_callback)
    assert turns.longest_work_seconds > 0.1
    names = ["priordial_loop_turn_seconds", "priordial_loop_work_seconds"]
    assert [name for name, _, _ in turns.gauges()] == names
    assert "seen: the loop worked for " in caplog.text
    assert "held_by_a_callback" in caplog.text


def test_time_of_the_garbage_collector_is_told(caplog):
    def collect(_):
        alive = [[] for _ in range(100_000)]
        compute(0.2)
        gc.collect()
        assert alive

    before = list(gc.callbacks)
    held(collect)
    collected = re.findall(r"garbage was collected for (\d+) ms", caplog.text)
    assert max(map(int, collected)) >= 1  # a busy machine may hold another turn, too
    assert gc.callbacks == before


def length_of_a_sum(seconds):
    """How many numbers one call of `sum` adds in this processor time, on any machine."""
    numbers, begun = 1_000_000, time.thread_time()
    sum(range(numbers))
    return int(numbers * seconds / (time.thread_time() - begun))


def test_a_thread_that_keeps_the_interpreter_is_told_from_work_of_the_loop(caplog):
    numbers = length_of_a_sum(0.4)
    begun, may_end = threading.Event(), threading.Event()

    def held_by_a_thread():
        begun.set()
        sum(range(numbers))  # one call, which does not release the interpreter
        may_end.wait(30)  # a thread that has ended has no stack and no name

    def wait_for_it(_):
        thread = threading.Thread(target=held_by_a_thread, name="a long call")
        thread.start()
        begun.wait()

    turns = held(wait_for_it)
    may_end.set()
    assert turns.longest_work_seconds < turns.longest_seconds / 2
    assert "a long call worked for " in caplog.text


def test_looking_at_the_stacks_keeps_nothing_of_other_threads():
    class Large:
        """Stands for a body in memory."""

    inside, may_end, gone = threading.Event(), threading.Event(), threading.Event()

    def work():
        large = Large()
        weakref.finalize(large, gone.set)
        inside.set()
        may_end.wait(30)

    async def main():
        turns = LoopTurns()
        turns.start(delay_seconds=0)
        await asyncio.sleep(0.01)
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(30)
        gc.disable()
        try:
            turns._stacks_now()
            may_end.set()
            thread.join(30)
            assert gone.wait(10)
        finally:
            gc.enable()
        turns.stop()

    asyncio.run(main())


def test_the_metric_is_there_where_it_is_asked_for_and_only_there(tmp_path):
    publish_model(tmp_path)
    name = "priordial_loop_turn_seconds"
    with running(tmp_path, measure_loop_turns=True) as server:
        text = httpx.get(f"{server.url}/metrics").text
        assert f"{name} " in text
        assert "priordial_loop_work_seconds " in text
        assert metric(text, name) >= 0
    with running(tmp_path) as server:
        assert f"{name} " not in httpx.get(f"{server.url}/metrics").text.replace(
            f"# TYPE {name} ", ""
        ).replace(f"# HELP {name} ", "")
