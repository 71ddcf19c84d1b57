"""CPU time of a request on 1, 2 and 4 replicas behind HAProxy, on one PostgreSQL.

    python -m benchmarks.speed.replicas [--seconds 4 --rounds 5 --connections 8]

On a machine with few processors, replicas share them, and each gets fewer requests than one alone
would. So a number of replicas is loaded in two ways, in turn: together behind one proxy, and apart,
each behind a proxy of its own. The ratio, by rounds, is what sharing the load costs a request.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.rig.processes import ROOT, wrk
from tests.support.postgres import servers
from tests.support.proxied import haproxy
from tests.support.server import READY, starting

MODEL = ROOT / "models"
COUNTS = (1, 2, 4)
BODY = json.dumps({"instances": [[0.5] * 64]}).encode()


def cpu(pids: list[int]) -> float:
    """User and system time of processes."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def measure(seconds: float, rounds: int, connections: int) -> list[dict[str, Any]]:
    """Each number of replicas in turn, so that a disturbance meets all of them."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(servers())().new_database()
        started = [
            stack.enter_context(starting(MODEL, store=store, default_model="digits"))
            for _ in range(max(COUNTS))
        ]
        ports = [int(each.wait_for(READY, seconds=120)[1].rsplit(":", 1)[1]) for each in started]
        pids = [each.process.pid for each in started]
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


class Proxy:
    """What wrk drives."""

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
    parser.add_argument("--connections", type=int, default=8, help="for each replica")
    options = parser.parse_args(arguments)
    for each in measure(options.seconds, options.rounds, options.connections):
        print(json.dumps(each))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
