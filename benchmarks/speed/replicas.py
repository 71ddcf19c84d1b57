"""CPU time of a request on 1, 2 and 4 replicas behind HAProxy, on one PostgreSQL.

    python -m benchmarks.speed.replicas [--seconds 8]

On a machine with few processors, requests a second say little. The CPU time of a request, over the
replicas, is what a larger machine would divide by.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rig.processes import ROOT, wrk
from tests.support.postgres import servers
from tests.support.proxied import haproxy
from tests.support.server import READY, starting

MODEL = ROOT / "models"
BODY = json.dumps({"instances": [[0.5] * 64]}).encode()


def cpu(pids: list[int]) -> float:
    """User and system time of processes."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def measure(count: int, store: str, seconds: float) -> dict[str, Any]:
    """One number of replicas."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(starting(MODEL, store=store, default_model="digits"))
            for _ in range(count)
        ]
        ports = [int(each.wait_for(READY)[1].rsplit(":", 1)[1]) for each in started]
        url = stack.enter_context(haproxy(ports))
        pids = [each.process.pid for each in started]
        proxies = [child.pid for child in psutil.Process().children() if "haproxy" in child.name()]
        load(url, 2.0)
        before, proxy_before = cpu(pids), cpu(proxies)
        answered = load(url, seconds)
        used, proxy_used = cpu(pids) - before, cpu(proxies) - proxy_before
        memory = max(psutil.Process(pid).memory_info().rss for pid in pids)
    return {
        "replicas": count,
        "requests_per_second": round(answered / seconds),
        "replica_cpu_us_a_request": round(1e6 * used / answered, 1),
        "proxy_cpu_us_a_request": round(1e6 * proxy_used / answered, 1),
        "largest_replica_mib": round(memory / 2**20),
    }


class Proxy:
    """What wrk drives."""

    def __init__(self, url: str) -> None:
        self.url = url

    def cpu_seconds(self) -> float:
        """Not measured here."""
        return 0.0


def load(url: str, seconds: float) -> int:
    """Requests that were answered."""
    headers = {"content-type": "application/json"}
    with tempfile.TemporaryDirectory() as folder:
        found = wrk(
            Proxy(url),  # type: ignore[arg-type]
            "/predict",
            BODY,
            headers,
            seconds=seconds,
            connections=32,
            folder=Path(folder),
        )
    return int(found["requests"])


def main(arguments: list[str]) -> int:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args(arguments)
    with servers() as make:
        store = make().new_database()
        for count in (1, 2, 4):
            print(json.dumps(measure(count, store, options.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
