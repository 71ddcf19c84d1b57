"""CPU time of a request on 1, 2 and 4 replicas behind HAProxy, on one PostgreSQL.

    python -m benchmarks.speed.replicas [--seconds 4 --rounds 5 --connections 8]
    python -m benchmarks.speed.replicas --rate 200    # requests/s in all, on 1 and on 4 replicas

On a machine with few processors, replicas share them, and each gets fewer requests than one alone
would. So the replicas are loaded in two alternating ways: together behind one proxy, and apart,
each behind a proxy of its own. The ratio of both, by rounds, is the cost of sharing the load.

With --rate, one replica and four get the same rate of requests, in turn. The CPU time of idle
replicas is measured in between and reported apart: it grows with replicas, not with requests.
With --bare too, the replicas are a bare ASGI application: its ratio is the machine's own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.rig.open_loop import Crowd
from benchmarks.rig.processes import ROOT, wrk
from tests.support.postgres import servers
from tests.support.proxied import haproxy
from tests.support.server import READY, Server, command, starting

MODEL = ROOT / "models"
COUNTS = (1, 2, 4)
BODY = json.dumps({"instances": [[0.5] * 64]}).encode()


def cpu(pids: list[int]) -> float:
    """User and system time of processes."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


@contextlib.contextmanager
def bare() -> Iterator[Server]:
    """A bare ASGI application, to show what the machine itself asks for more processes."""
    server = Server(command(["benchmarks.rig.bare_asgi"], dict(os.environ)))
    try:
        yield server
    finally:
        server.process.kill()
        server.exit()


@contextlib.contextmanager
def replicas(*, of_bare: bool = False) -> Iterator[tuple[list[int], list[int]]]:
    """The ports and the processes of the most replicas, on one store."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(servers())().new_database()
        started = [
            stack.enter_context(
                bare() if of_bare else starting(MODEL, store=store, default_model="digits")
            )
            for _ in range(max(COUNTS))
        ]
        ports = [int(each.wait_for(READY, seconds=120)[1].rsplit(":", 1)[1]) for each in started]
        yield ports, [each.process.pid for each in started]


def measure(seconds: float, rounds: int, connections: int) -> list[dict[str, Any]]:
    """Measure each number of replicas in turn, so that a disturbance affects all alike."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    with contextlib.ExitStack() as stack:
        ports, pids = stack.enter_context(replicas())
        groups = {
            count: [stack.enter_context(haproxy(ports[:count]))] for count in COUNTS if count > 1
        }
        alone = [stack.enter_context(haproxy([port])) for port in ports]
        for url in (*alone, *(url for (url,) in groups.values())):
            load([url], 1.0, connections)
        for _ in range(rounds):
            for count in COUNTS:
                used = {}
                for way, urls in (("apart", alone[:count]), ("together", groups.get(count, []))):
                    if urls:
                        before = cpu(pids[:count])
                        answered = load(urls, seconds, connections * count // len(urls))
                        used[way] = 1e6 * (cpu(pids[:count]) - before) / answered
                        used[f"{way}_requests_per_second"] = answered / seconds
                found[count].append(used)
        memory = max(psutil.Process(pid).memory_info().rss for pid in pids)
    return [
        {
            "replicas": count,
            "connections": connections * count,
            **{name: round(median(each[name] for each in took), 1) for name in took[0]},
            "together_of_apart": [
                round(each["together"] / each["apart"], 3) for each in took if "together" in each
            ],
            "largest_replica_mib": round(memory / 2**20),
        }
        for count, took in found.items()
    ]


def measure_rate(
    rate: float, seconds: float, rounds: int, *, of_bare: bool
) -> list[dict[str, Any]]:
    """One replica and the most of them in turn, at the same rate in all."""
    found: dict[int, list[dict[str, float]]] = {1: [], max(COUNTS): []}
    with replicas(of_bare=of_bare) as (ports, pids), contextlib.ExitStack() as stack:
        urls = {count: stack.enter_context(haproxy(ports[:count])) for count in found}
        for url in urls.values():
            asyncio.run(offer(url, rate, 1.0))
        for number in range(rounds):
            for count in sorted(found, reverse=bool(number % 2)):
                before = cpu(pids[:count])
                time.sleep(seconds)
                idle = cpu(pids[:count]) - before
                before = cpu(pids[:count])
                begun = time.monotonic()
                answered = asyncio.run(offer(urls[count], rate, seconds))
                busy, took = cpu(pids[:count]) - before, time.monotonic() - begun
                found[count].append(
                    {
                        "request_us": 1e6 * (busy - idle * took / seconds) / answered,
                        "with_idle_us": 1e6 * busy / answered,
                        "idle_us_per_second_and_replica": 1e6 * idle / seconds / count,
                        "requests_per_second": answered / took,
                    }
                )
    one, most = ([each["request_us"] for each in found[count]] for count in (1, max(COUNTS)))
    lines: list[dict[str, Any]] = [
        {"replicas": count, **{n: round(median(e[n] for e in took), 1) for n in took[0]}}
        for count, took in found.items()
    ]
    return [*lines, {"ratios": [round(b / a, 3) for a, b in zip(one, most, strict=True)]}]


async def offer(url: str, rate: float, seconds: float) -> int:
    """Send requests at an even rate. Returns how many were answered with 200."""
    port = int(url.rsplit(":", 1)[1])
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    crowd = Crowd("127.0.0.1", port, head.encode() + BODY)
    await crowd.open(8)
    arrivals = await crowd.arrive(per_second=rate, seconds=seconds)
    crowd.close()
    return arrivals.count(200)


class Proxy:
    """The URL that wrk loads, in the form of a `Process`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def cpu_seconds(self) -> float:
        """Not measured here."""
        return 0.0


def load(urls: list[str], seconds: float, connections: int) -> int:
    """Requests that were answered by all URLs, loaded at the same time."""

    def one(url: str) -> int:
        headers = {"content-type": "application/json"}
        with tempfile.TemporaryDirectory() as folder:
            found = wrk(
                Proxy(url),  # type: ignore[arg-type]
                "/predict",
                BODY,
                headers,
                seconds=seconds,
                connections=connections,
                folder=Path(folder),
            )
        return int(found["requests"])

    with ThreadPoolExecutor(len(urls)) as pool:
        return sum(pool.map(one, urls))


def main(arguments: list[str]) -> int:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8, help="connections to each replica")
    parser.add_argument(
        "--rate", type=float, help="requests/s in total, equal for one replica and for four"
    )
    parser.add_argument(
        "--bare", action="store_true", help="with --rate: measure a bare ASGI application instead"
    )
    options = parser.parse_args(arguments)
    found = (
        measure_rate(options.rate, options.seconds, options.rounds, of_bare=options.bare)
        if options.rate
        else measure(options.seconds, options.rounds, options.connections)
    )
    for each in found:
        print(json.dumps(each))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
