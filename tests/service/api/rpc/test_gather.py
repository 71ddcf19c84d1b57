"""Calls of concurrent clients start together, and a single client waits for nobody."""

import asyncio

from service.api.rpc.gather import PROBE_EVERY, Gather


async def clients(gather, count, *, calls):
    """Clients that each make their next call when they are answered: the sizes of the groups."""
    loop = asyncio.get_running_loop()
    sizes = []
    group = []

    async def client():
        for _ in range(calls):
            started = loop.create_future()

            def start(started=started):
                if not group:
                    loop.call_soon(ended)
                group.append(started)

            gather.add(start)
            await started

    def ended():
        sizes.append(len(group))
        for started in group:
            started.set_result(None)
        group.clear()

    await asyncio.gather(*(client() for _ in range(count)))
    return sizes


def test_calls_of_concurrent_clients_come_to_start_in_whole_groups():
    sizes = asyncio.run(clients(Gather(), 24, calls=80))
    assert sum(sizes) == 24 * 80
    assert max(sizes) == 24


def test_a_client_alone_starts_at_once_but_for_the_probes():
    async def alone():
        gather = Gather()
        at_once = 0
        for _ in range(PROBE_EVERY * 4):
            started = asyncio.Event()
            gather.add(started.set)
            at_once += started.is_set()
            await asyncio.wait_for(started.wait(), 30)
        return at_once

    assert asyncio.run(alone()) >= PROBE_EVERY * 4 - 8


def test_clients_that_leave_do_not_hold_up_those_that_stay():
    async def both():
        gather = Gather()
        await clients(gather, 32, calls=60)
        return await clients(gather, 2, calls=200)

    assert sum(asyncio.run(both())) == 400
