"""Many replicas follow one PostgreSQL: their load on it, and how soon each has a new prior.

    python -m benchmarks.speed.followers [--followers 200] [--writes 10]

Each follower is the part of a replica that follows the store: a thread that listens, and one
connection. They share a few processes, so that PostgreSQL is measured and not two hundred
interpreters.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from typing import Any

import numpy as np
import psutil
import psycopg

from service.contract.members.body import parse_prior
from service.priors.priors import Priors
from service.priors.store import open_store
from tests.support.postgres import servers
from tests.support.priors import make_bundle

PROCESSES = 4
IDLE_SECONDS = 20.0
PETS = make_bundle()


async def _follow(url: str, count: int, pipe: Any) -> None:
    arrived: list[tuple[int, float]] = []

    class Timed(Priors):
        """Notes when entries arrive."""

        def _apply(self, entries: Any) -> None:
            super()._apply(entries)
            arrived.extend((entry.revision, time.monotonic()) for entry in entries)

    followers = [Timed(open_store(url)) for _ in range(count)]
    for each in followers:
        await each.start(seconds=60.0)
    pipe.send("ready")
    await asyncio.to_thread(pipe.poll, None)
    process = psutil.Process()
    pipe.send((arrived, sum(process.cpu_times()[:2])))
    for each in followers:
        await each.stop()


def follow(url: str, count: int, pipe: Any) -> None:
    """Run a process with `count` followers until the pipe says to end."""
    asyncio.run(_follow(url, count, pipe))


def cpu_seconds(server: Any) -> float:
    """User and system time of PostgreSQL and all its backends."""
    total = 0.0
    process = psutil.Process(server.process.pid)
    for each in [process, *process.children(recursive=True)]:
        try:
            total += sum(each.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def transactions(server: Any) -> int:
    """Committed so far, in all databases."""
    with psycopg.connect(server.url("postgres")) as connection:
        found = connection.execute("SELECT sum(xact_commit) FROM pg_stat_database").fetchone()
    assert found is not None
    return int(found[0])


async def _write(url: str, writes: int) -> list[float]:
    """Times at which each write was acknowledged."""
    writer, at = Priors(open_store(url)), []
    await writer.start()
    for number in range(writes):
        body = parse_prior({"target": {"cat": 1, "dog": 2, "lynx": 3 + number}})
        await writer.put(PETS, "default", body, by="bench")
        at.append(time.monotonic())
        await asyncio.sleep(1.0)
    await writer.stop()
    return at


def main(arguments: list[str]) -> int:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--writes", type=int, default=10)
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    with servers() as make:
        server = make()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET max_connections = {options.followers * 2 + 50}")
        server.stop()
        server.start()
        url = server.url("postgres")
        opened = open_store(url)
        opened.open()
        opened.close()
        share, pipes, processes = options.followers // PROCESSES, [], []
        for _ in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=follow, args=(url, share, theirs))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()
        time.sleep(8)  # first reports are over
        before = cpu_seconds(server), transactions(server), time.monotonic()
        time.sleep(IDLE_SECONDS)
        seconds = time.monotonic() - before[2]
        idle_cpu = (cpu_seconds(server) - before[0]) / seconds
        per_second = (transactions(server) - before[1]) / seconds
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'priordial'"
            ).fetchone()
        at = asyncio.run(_write(url, options.writes))
        arrived = []
        for pipe in pipes:
            pipe.send("end")
            arrived += pipe.recv()[0]
        for process in processes:
            process.join()
    late = np.array([when - at[revision - 1] for revision, when in arrived])
    result = {
        "followers": share * PROCESSES,
        "connections": found[0] if found else None,
        "idle_transactions_per_second": round(per_second, 1),
        "idle_postgresql_cores": round(idle_cpu, 3),
        "writes": options.writes,
        "arrivals": len(late),
        "milliseconds_after_acknowledgement": {
            name: round(1e3 * float(np.percentile(late, percent)), 1)
            for name, percent in (("p50", 50), ("p99", 99), ("most", 100))
        },
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
