"""`service.server.connections`: workers that share a socket accept evenly."""

import asyncio
import contextlib

import pytest
import uvicorn

from service.process import connection_counts
from service.process.connection_counts import ConnectionCounts
from service.process.listener import bind, listen
from service.server.connections import FairServer
from tests.support.eventually import eventually_async


class Clock:
    """A clock that stands still until a test moves it."""

    now = 1_000_000_000_000

    def monotonic_ns(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connection_counts, "time", clock)
    return clock


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def sharing(counts, slots):
    """Servers of these slots in this event loop, on one port."""
    listener = bind("127.0.0.1", 0)
    listen(listener, 100)
    sockets = [listener.dup() for _ in slots]
    servers = []
    for slot, shared in zip(slots, sockets, strict=True):
        config = uvicorn.Config(answer, lifespan="off", log_level="error")
        config.load()
        server = FairServer(config, counts, slot)
        server.lifespan = config.lifespan_class(config)
        await server.startup([shared])
        server.appear()
        servers.append(server)
    try:
        yield servers, listener.getsockname()
    finally:
        for server in servers:
            await server.shutdown()
        for each in (listener, *sockets):
            each.close()


def sizes(servers):
    return [len(server.server_state.connections) for server in servers]


def test_a_burst_is_shared_evenly_also_after_the_burst_before_has_closed(tmp_path):
    async def run():
        counts = ConnectionCounts(tmp_path, 2)
        async with sharing(counts, [0, 1]) as (servers, address):
            for burst in (8, 3, 9):
                clients = await asyncio.gather(
                    *(asyncio.open_connection(*address) for _ in range(burst))
                )
                await eventually_async(lambda burst=burst: sum(sizes(servers)) == burst)
                assert max(sizes(servers)) - min(sizes(servers)) <= 1
                for _, writer in clients:
                    writer.close()
                await eventually_async(lambda: sum(sizes(servers)) == 0)
                assert counts.fewest() == 0  # published at once, not at the next tick

    asyncio.run(run())


def test_a_worker_accepts_what_one_with_fewer_connections_leaves(tmp_path):
    async def run():
        counts = ConnectionCounts(tmp_path, 2)
        counts.set(1, 0)  # serves, and accepts nothing
        async with sharing(counts, [0]) as (servers, address):
            clients = [await asyncio.open_connection(*address) for _ in range(3)]
            await eventually_async(lambda: sizes(servers) == [3])
            for _, writer in clients:
                writer.close()

    asyncio.run(run())


def test_a_worker_that_publishes_nothing_for_half_a_second_does_not_count(tmp_path, clock):
    counts = ConnectionCounts(tmp_path, 3)
    counts.set(0, 7)
    counts.set(1, 2)
    counts.absent(2)
    assert counts.fewest() == 2
    clock.now += 400_000_000
    counts.set(0, 7)
    clock.now += 200_000_000
    assert counts.fewest() == 7
    clock.now += 10_000_000_000
    assert counts.fewest() > 1_000_000_000


def test_a_worker_that_shuts_down_stays_absent_while_its_connections_end(tmp_path):
    async def run():
        counts = ConnectionCounts(tmp_path, 1)
        async with sharing(counts, [0]) as (servers, address):
            reader, writer = await asyncio.open_connection(*address)
            await eventually_async(lambda: sizes(servers) == [1])
            await servers[0].shutdown()
            assert await reader.read() == b""
            writer.close()
            assert counts.fewest() > 1_000_000_000

    asyncio.run(run())
