"""A hang ends the process; for a process that was itself paused, the limit starts again."""

import asyncio

import pytest

from service.process import stderr
from service.process.exit_codes import HUNG
from service.server.assembly.watchdog import Watchdog
from tests.support.eventually import eventually, eventually_async


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    """Makes a watchdog with a limit of 10 s over one kind of work; both share the clock."""

    def make(since=None):
        return Watchdog(lambda: [("a graph call", since)], hang_seconds=10, clock=clock)

    return make


def pass_time(watchdog, clock, seconds):
    """Let time pass while the watchdog looks every second and the loop does not run."""
    found = None
    for _ in range(seconds):
        clock.now += 1
        found = watchdog.look() or found
    return found


def test_a_loop_that_does_not_beat_is_seen(watch, clock):
    assert "the event loop has made no progress for" in pass_time(watch(), clock, 13)


def test_work_that_takes_too_long_is_seen_by_its_name(watch, clock):
    watchdog = watch(since=clock.now)
    assert pass_time(watchdog, clock, 10) is None
    clock.now += 1
    watchdog._beat = clock.now
    assert watchdog.look() == "a graph call has run for 11.0 s"


@pytest.mark.parametrize("stopped", [12, 300, 10**6])
def test_a_process_that_was_stopped_gets_its_time_anew(watch, clock, stopped):
    watchdog = watch(since=clock.now)
    assert pass_time(watchdog, clock, 5) is None
    clock.now += stopped
    assert watchdog.look() is None
    assert pass_time(watchdog, clock, 9) is None


def test_a_hang_that_outlives_a_stop_is_still_seen(watch, clock):
    watchdog = watch(since=clock.now)
    clock.now += 300
    assert watchdog.look() is None
    assert pass_time(watchdog, clock, 13) is not None


def test_stops_in_a_row_do_not_add_up(watch, clock):
    watchdog = watch(since=clock.now)
    for _ in range(20):
        clock.now += 8
        assert watchdog.look() is None


def watched(busy, *, end):
    """Run a watchdog with a limit of a fifth of a second on a loop that lives; its `hung` at
    last.
    """

    async def go():
        watchdog = Watchdog(busy, hang_seconds=0.2, end=end)
        watchdog.start()
        try:
            await asyncio.to_thread(eventually, lambda: watchdog.hung)
            yield_to = watchdog.hung
            return watchdog, yield_to
        finally:
            watchdog.stop()

    return asyncio.run(go())


def test_where_the_process_belongs_to_others_a_hang_turns_liveness_red_and_ends_nothing(capfd):
    watchdog, hung = watched(lambda: [("a graph call", 0.0)], end=None)
    assert "a graph call has run for" in hung
    stderr.flush(60)  # a thread writes them
    assert "Thread" in capfd.readouterr().err, "the stacks are logged all the same"
    assert watchdog.hung is not None


def test_a_hang_ends_the_process_after_its_grace():
    ended = []

    async def go():
        watchdog = Watchdog(lambda: [("a call", 0.0)], hang_seconds=0.2, end=ended.append)
        watchdog.start()
        await asyncio.to_thread(eventually, lambda: ended)
        watchdog.stop()

    asyncio.run(go())
    assert ended == [HUNG]


def test_work_that_ends_within_the_grace_ends_nothing():
    ended, since = [], [0.0]

    async def go():
        watchdog = Watchdog(lambda: [("a call", since[0])], hang_seconds=0.2, end=ended.append)
        watchdog.start()
        await asyncio.to_thread(eventually, lambda: watchdog.hung)
        since[0] = None
        await asyncio.to_thread(eventually, lambda: watchdog.hung is None)
        watchdog.stop()

    asyncio.run(go())
    assert ended == []


def test_what_is_lost_ends_the_process_though_everything_moves(clock):
    lost, ended = [], []
    watchdog = Watchdog(
        list, hang_seconds=10, clock=clock, lost=lambda: lost[0] if lost else None,
        end=ended.append,
    )  # fmt: skip
    assert watchdog.look() is None
    lost.append("linear version 1 cannot score any request: CUDA failure 700")

    async def go():
        watchdog.start()
        await eventually_async(lambda: ended)
        watchdog.stop()

    asyncio.run(go())
    assert ended == [HUNG]
    assert watchdog.hung == lost[0]
