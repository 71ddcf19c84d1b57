"""Blocking calls outside the event loop are bounded; a caller can stop waiting, and a hung call is
given up.
"""

import asyncio
import threading
import time

import pytest

from service.process.threads import GivenUp, Threads, TooManyWait, any_running, current_job
from tests.support.eventually import eventually_async

LONG = 3600.0


@pytest.fixture
def gate():
    """Set at the end, so that no thread of a test outlives it."""
    event = threading.Event()
    yield event
    event.set()


def test_calls_run_in_the_order_in_which_they_came_and_at_most_count_at_once():
    order, at_once, most, lock = [], 0, 0, threading.Lock()

    def call(number):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            order.append(number)
        threading.Event().wait(0.001)
        with lock:
            at_once -= 1
        return number

    async def go(count):
        threads = Threads("test", count=count)
        calls = (threads.run(lambda n=n: call(n), seconds=LONG) for n in range(20))
        assert await asyncio.gather(*calls) == list(range(20))
        threads.close(wait_seconds=LONG)

    asyncio.run(go(1))
    assert (order, most) == (list(range(20)), 1)
    asyncio.run(go(3))
    assert most == 3


def test_a_thread_is_reused_when_its_call_has_ended():
    async def go():
        threads = Threads("test", count=5)
        seen = {await threads.run(threading.get_ident, seconds=LONG) for _ in range(20)}
        threads.close(wait_seconds=LONG)
        return seen

    assert len(asyncio.run(go())) == 1


def test_an_error_of_the_call_is_raised_even_a_timeout_error():
    def late():
        raise TimeoutError("mine")

    async def go():
        threads = Threads("test", count=1)
        with pytest.raises(TimeoutError, match="mine"):
            await threads.run(late, seconds=LONG)
        threads.close(wait_seconds=LONG)

    asyncio.run(go())


def test_a_caller_that_gives_up_is_told_whether_its_call_had_begun_and_one_that_had_not_never_will(
    gate,
):
    begun = []

    async def go():
        threads = Threads("test", count=1)
        first = asyncio.create_task(threads.run(gate.wait, seconds=0.05))
        behind = asyncio.create_task(threads.run(lambda: begun.append(1), seconds=0.05))
        for task, started in ((first, True), (behind, False)):
            with pytest.raises(GivenUp) as given_up:
                await task
            assert given_up.value.started is started
        gate.set()
        await threads.run(lambda: None, seconds=LONG)
        threads.close(wait_seconds=LONG)

    asyncio.run(go())
    assert begun == []


def test_a_cancelled_caller_takes_its_waiting_call_with_it(gate):
    begun = []

    async def go():
        threads = Threads("test", count=1, max_bytes=100)
        first = asyncio.create_task(threads.run(gate.wait, seconds=LONG))
        behind = asyncio.create_task(threads.run(lambda: begun.append(1), seconds=LONG, size=7))
        await asyncio.sleep(0)
        behind.cancel()
        with pytest.raises(asyncio.CancelledError):
            await behind
        assert threads.bytes == 0
        gate.set()
        await first
        threads.close(wait_seconds=LONG)

    asyncio.run(go())
    assert begun == []


def test_calls_beyond_a_limit_are_refused_and_bytes_count_until_the_call_has_ended(gate):
    async def go():
        threads = Threads("test", count=1, max_calls=1, max_bytes=100)
        running = asyncio.create_task(threads.run(gate.wait, seconds=0.05, size=1000))
        await eventually_async(lambda: threads.busy_since is not None)
        with pytest.raises(TooManyWait, match="1000 bytes"):
            threads.submit(gate.wait, size=1)
        with pytest.raises(GivenUp):
            await running
        assert threads.bytes == 1000  # the thread still holds them
        gate.set()
        await eventually_async(lambda: threads.bytes == 0)
        threads.close(wait_seconds=LONG)

    asyncio.run(go())


def test_a_written_off_call_makes_room_for_another_thread_and_its_own_ends_when_it_returns(gate):
    async def go():
        threads = Threads("test-off", count=1)
        ended = []
        hanging = threads.submit(gate.wait, ended=lambda: ended.append(1))
        await eventually_async(lambda: hanging.started)
        assert "in wait" in hanging.stack()
        threads.write_off(hanging)
        assert await threads.run(lambda: "another", seconds=LONG) == "another"
        assert any_running()
        gate.set()
        await eventually_async(lambda: ended)
        threads.close(wait_seconds=LONG)

    asyncio.run(go())
    assert not [thread for thread in threading.enumerate() if thread.name == "test-off"]


def test_a_paused_call_is_not_busy():
    async def go():
        threads = Threads("test", count=1)
        paused, resume = threading.Event(), threading.Event()

        def call():
            current_job().pause()
            paused.set()
            resume.wait()
            current_job().resume()
            return current_job().working_since

        before = time.monotonic()
        answer = asyncio.create_task(threads.run(call, seconds=LONG))
        await asyncio.to_thread(paused.wait)
        assert threads.busy_since is None
        resume.set()
        assert await answer >= before
        assert current_job() is None
        threads.close(wait_seconds=LONG)

    asyncio.run(go())


def test_closing_runs_what_waits_unless_it_is_dropped(gate):
    async def go(*, drop):
        threads, done = Threads("test", count=1), []
        gate.clear()
        first = threads.submit(gate.wait)
        second = threads.submit(lambda: done.append(1))
        await eventually_async(lambda: first.started)
        threads.close(drop=drop)
        gate.set()
        await asyncio.wait({first.answer, second.answer})
        assert second.answer.cancelled() is drop
        return done

    assert asyncio.run(go(drop=False)) == [1]
    assert asyncio.run(go(drop=True)) == []


@pytest.fixture
def no_thread_starts():
    """No machine has room for a stack of 64 TiB."""
    before = threading.stack_size(2**46)
    yield lambda: threading.stack_size(before)
    threading.stack_size(before)


def test_a_call_for_which_no_thread_can_be_started_is_refused_and_leaves_nothing(no_thread_starts):
    async def scenario():
        threads = Threads("few", count=2, max_bytes=10)
        with pytest.raises(TooManyWait, match="no thread can be started for it"):
            await threads.run(int, seconds=30, size=8)
        assert threads.bytes == 0
        no_thread_starts()
        assert await threads.run(int, seconds=30, size=8) == 0
        threading.stack_size(2**46)  # the thread that there is does the work of both
        assert await asyncio.gather(*(threads.run(int, seconds=30) for _ in range(4))) == [0] * 4
        threads.close()

    asyncio.run(scenario())
