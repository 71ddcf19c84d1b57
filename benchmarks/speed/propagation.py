"""Measures how long an acknowledged PUT takes to reach the last of several workers. Run by hand:

    python -m benchmarks.speed.propagation [--engine sqlite|postgresql|both] [--workers 4]
        [--puts 100]

One client per worker keeps a connection, requests predictions without pause, and notes when it
first sees each revision. The limits are 1 s for the median and 2 s for the maximum. The exit status
is 1 when one is exceeded.
"""

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.postgres import servers
from tests.support.server import running
from tests.support.small_models import CLASSES, inputs, publish_model

BODY = json.dumps({"instances": inputs(1).tolist()})
HEADERS = {"Content-Type": "application/json"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--puts", type=int, default=100)
    given = parser.parse_args()
    late = False
    for engine in ("sqlite", "postgresql") if given.engine == "both" else (given.engine,):
        with (
            tempfile.TemporaryDirectory(prefix="priordial-propagation-") as name,
            contextlib.ExitStack() as stack,
        ):
            folder = Path(name)
            publish_model(folder / "models")
            store = f"sqlite:///{folder}/priors.db"
            if engine == "postgresql":
                store = stack.enter_context(servers())().new_database()
            # One process per worker, each on its own port, so that every worker can be queried.
            urls = [
                stack.enter_context(running(folder / "models", store=store)).url
                for _ in range(given.workers)
            ]
            seconds = measure(urls, given.puts)
        median, worst = float(np.median(seconds)), max(seconds)
        late |= median > 1 or worst > 2
        print(
            f"{engine}: {given.workers} workers, {given.puts} PUTs: median {1e3 * median:.0f} ms, "
            f"p99 {1e3 * np.quantile(seconds, 0.99):.0f} ms, maximum {1e3 * worst:.0f} ms"
        )
    return int(late)


def measure(urls: list[str], puts: int) -> list[float]:
    """Seconds from each acknowledgement to the last worker's first answer with that revision."""
    first: list[dict[int, float]] = [{} for _ in urls]
    finished = threading.Event()
    threads = [
        threading.Thread(target=watch, args=(url, seen, finished))
        for url, seen in zip(urls, first, strict=True)
    ]
    for thread in threads:
        thread.start()
    seconds = []
    rng = np.random.default_rng(0)
    with httpx.Client(base_url=urls[0], timeout=30) as client:
        for i in range(puts):
            target = rng.integers(1, 1000, CLASSES).tolist()
            revision = client.put("/priors", json={"target": target, "note": str(i)}).json()[
                "revision"
            ]
            acknowledged = time.perf_counter()
            while not all(revision in seen for seen in first):
                time.sleep(0.001)
            seconds.append(max(0.0, max(seen[revision] for seen in first) - acknowledged))
            time.sleep(
                float(rng.uniform(0, 0.15))
            )  # at random, so as not to be in step with the polling
    finished.set()
    for thread in threads:
        thread.join()
    return seconds


def watch(url: str, seen: dict[int, float], finished: threading.Event) -> None:
    """Note when this worker first answers with each revision."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    while not finished.is_set():
        connection.request("POST", "/predict", BODY, HEADERS)
        revision = json.loads(connection.getresponse().read())["prior"]["revision"]
        seen.setdefault(revision, time.perf_counter())
        time.sleep(0.002)
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
