"""What a scrape costs predictions at 10,000 classes: p99 with a scrape every second over p99 without, in one run.

    python benchmarks/metrics.py [--seconds 5] [--rounds 6] [--connections 4] [--port-of-its-own] [--json FILE]

Phases with and without scrapes alternate; each phase has its own p99, and the ratio is that of their medians. The limit is 1.1.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.service.server import running
from tests.service.small_models import FEATURES, linear_model, publish_model

CLASSES, BODIES, LIMIT = 10_000, 64, 1.1
SCRAPER = """
import sys, time, urllib.request
while True:
    begun = time.monotonic()
    body = urllib.request.urlopen(sys.argv[1]).read()
    print(len(body), time.monotonic() - begun, flush=True)
    time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
"""


def requests(host):
    """Raw requests with one row each, so that many classes are predicted."""
    rng = np.random.default_rng(0)
    for _ in range(BODIES):
        rows = rng.normal(0, 3, (4, FEATURES)).round(4).tolist()
        body = json.dumps({"instances": rows, "parameters": {"top_k": 1}}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        yield head.encode() + body


async def load(url, seconds, connections):
    """Latencies in seconds of closed-loop connections."""
    host, port = url.removeprefix("http://").split(":")
    sent = list(requests(host))
    until = time.perf_counter() + seconds
    latencies = []

    async def one(number):
        reader, writer = await asyncio.open_connection(host, int(port))
        at = number
        while (begun := time.perf_counter()) < until:
            writer.write(sent[at % BODIES])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            assert b" 200 " in head[:15], head
            latencies.append(time.perf_counter() - begun)
            at += 1
        writer.close()

    await asyncio.gather(*(one(i) for i in range(connections)))
    return latencies


def phase(url, scraped, seconds, connections):
    """(p99 in ms, requests a second, scrapes) with or without a scraper beside."""
    scraper = None
    if scraped:
        scraper = subprocess.Popen([sys.executable, "-c", SCRAPER, scraped], stdout=subprocess.PIPE)
        assert scraper.stdout is not None
        scraper.stdout.readline()  # its own start is no scrape: it would cost the phase more than all of them
    try:
        latencies = asyncio.run(load(url, seconds, connections))
    finally:
        if scraper is not None:
            scraper.kill()
    scrapes = scraper.communicate()[0].decode().splitlines() if scraper is not None else []
    return 1e3 * float(np.quantile(latencies, 0.99)), len(latencies) / seconds, scrapes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--port-of-its-own", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        publish_model(
            models,
            model=linear_model(classes=CLASSES),
            classes=CLASSES,
            class_counts=np.linspace(9000, 1, CLASSES).tolist(),
        )
        settings = {"max_class_series": CLASSES, "log_format": "json", "recent_rows": 0}
        if options.port_of_its_own:
            import socket

            with socket.create_server(("127.0.0.1", 0)) as free:
                settings["metrics_port"] = free.getsockname()[1]
        with running(models, **settings) as server:
            port = settings.get("metrics_port")
            scraped = (f"http://127.0.0.1:{port}" if port else server.url) + "/metrics"
            asyncio.run(load(server.url, 2, options.connections))
            found = {False: [], True: []}
            scrapes = []
            for number in range(2 * options.rounds):
                on = number % 2 == 1
                p99, rate, seen = phase(
                    server.url, scraped if on else None, options.seconds, options.connections
                )
                found[on].append(p99)
                scrapes += seen
                print(
                    f"{'with' if on else 'without':>8} scrapes: p99 {p99:6.2f} ms, {rate:6.0f} requests/s"
                )
            series = sum(not line.startswith("#") for line in httpx.get(scraped).text.splitlines())
    without, with_scrapes = (statistics.median(found[on]) for on in (False, True))
    ratio = with_scrapes / without
    sizes, times = zip(*(map(float, line.split()) for line in scrapes), strict=True)
    result = {
        "series": series,
        "p99_ms_without": without,
        "p99_ms_with": with_scrapes,
        "ratio": ratio,
        "limit": LIMIT,
        "scrapes": len(scrapes),
        "scrape_ms_median": 1e3 * statistics.median(times),
        "scrape_bytes": max(sizes),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
