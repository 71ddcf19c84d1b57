"""Work in the pool is bounded, ends for its caller at the deadline, and shows when it hangs."""

import asyncio
import threading
import time

import pytest

from service.batching.pool import Pool
from service.batching.work import NO_DEADLINE, Abandoned, Deadline, DeadlinePassed, Overloaded

FAR = NO_DEADLINE


class Gone:
    """A caller that has left."""

    def __init__(self):
        self.connection, self.disconnected = self, True


@pytest.fixture
def gate():
    found = threading.Event()
    yield found
    found.set()


def run(pool, call, *, size=10, deadline=FAR, **more):
    return asyncio.ensure_future(pool.run(call, size=size, deadline=deadline, **more))


def test_a_call_gives_its_result_or_raises_what_it_raises():
    async def go():
        pool = Pool(2, max_waiting_bytes=100)
        assert await run(pool, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await run(pool, lambda: 1 // 0)
        assert (pool.waiting_bytes, pool.busy_since) == (0, None)
        pool.close()

    asyncio.run(go())


def test_more_than_the_limit_is_refused_at_once_but_one_large_call_is_taken_when_nothing_waits(
    gate,
):
    async def go():
        pool = Pool(1, max_waiting_bytes=100)
        large = run(pool, gate.wait, size=1000)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await run(pool, gate.wait, size=1)
        gate.set()
        assert await large
        assert await run(pool, gate.wait, size=1)
        pool.close()

    asyncio.run(go())


def test_a_deadline_ends_the_wait_while_the_call_runs_and_what_queues_behind_it_is_not_begun(gate):
    async def go():
        pool, begun = Pool(1, max_waiting_bytes=100), []
        soon = Deadline(time.monotonic() + 0.05)
        hangs = run(pool, gate.wait, deadline=soon)
        behind = run(pool, lambda: begun.append(1), deadline=soon)
        for late in (hangs, behind):
            with pytest.raises(DeadlinePassed):
                await late
        with pytest.raises(DeadlinePassed):
            await run(pool, lambda: begun.append(1), deadline=soon)
        gate.set()
        await run(pool, lambda: None)
        assert begun == []
        pool.close()

    asyncio.run(go())


def test_work_whose_caller_left_is_not_begun():
    async def go():
        pool = Pool(1, max_waiting_bytes=100)
        with pytest.raises(Abandoned):
            await run(pool, lambda: 1, caller=Gone())
        pool.close()

    asyncio.run(go())


def test_the_longest_of_the_running_calls_is_seen(gate):
    async def go():
        pool = Pool(2, max_waiting_bytes=100)
        before = time.monotonic()
        entered = threading.Event()

        def hang():
            entered.set()
            gate.wait()

        hangs = run(pool, hang)
        await asyncio.to_thread(entered.wait)
        after = time.monotonic()
        await run(pool, lambda: None)
        assert before <= pool.busy_since <= after
        gate.set()
        await hangs
        assert pool.busy_since is None
        pool.close()

    asyncio.run(go())
