"""The cost of scrapes for predictions at 10,000 classes: the ratio of p99 with and without them.

    python benchmarks/speed/scrapes.py [--seconds 3] [--rounds 10] [--connections 4]
        [--port-of-its-own] [--elsewhere] [--nice 19]

Each round has one phase with a scrape every second and one phase without; they take turns in going
first. The result is the median of the ratios of each round, with quartiles. The limit is 1.1.

The scraper stands for a Prometheus on another machine, so it runs at a low priority and takes only
processor time that the others leave (--nice 0 gives it the same priority). --elsewhere adds a third
phase, which scrapes the same bytes from a process that does nothing else. It shows what the scraper
itself takes from a machine that it shares with client and service.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.server import running
from tests.support.small_models import FEATURES, linear_model, publish_model

CLASSES, BODIES, LIMIT = 10_000, 64, 1.1
SCRAPER = """
import os, sys, time, urllib.request
os.nice(int(sys.argv[2]))
while True:
    begun = time.monotonic()
    body = urllib.request.urlopen(sys.argv[1]).read()
    print(len(body), time.monotonic() - begun, flush=True)
    time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
"""
HOLDER = """
import http.server, pathlib, sys
body = pathlib.Path(sys.argv[1]).read_bytes()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def requests(host):
    """Raw requests with four rows each, so that many classes are predicted."""
    rng = np.random.default_rng(0)
    for _ in range(BODIES):
        rows = rng.normal(0, 3, (4, FEATURES)).round(4).tolist()
        body = json.dumps({"instances": rows, "parameters": {"top_k": 1}}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: "
            f"application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield head.encode() + body


async def load(url, seconds, connections):
    """Latencies in seconds, measured by closed-loop connections."""
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


def phase(url, scraped, options):
    """(p99 in ms, requests per second, scrapes) of one phase, with or without a scraper."""
    scraper = None
    if scraped:
        command = [sys.executable, "-c", SCRAPER, scraped, str(options.nice)]
        scraper = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert scraper.stdout is not None
        # The start of the scraper is not measured: it costs more than all scrapes together.
        scraper.stdout.readline()
    try:
        latencies = asyncio.run(load(url, options.seconds, options.connections))
    finally:
        if scraper is not None:
            scraper.kill()
    scrapes = scraper.communicate()[0].decode().splitlines() if scraper is not None else []
    return 1e3 * float(np.quantile(latencies, 0.99)), len(latencies) / options.seconds, scrapes


@contextlib.contextmanager
def held(body):
    """The address of a process that answers with these bytes and does nothing else."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [sys.executable, "-c", HOLDER, file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            try:
                yield f"http://127.0.0.1:{int(holder.stdout.readline())}/metrics"
            finally:
                holder.kill()


def rounds(server, targets, options):
    """p99 in ms by target, one figure per round; and the number of scrapes of the service."""
    found = {name: [] for name in targets}
    scrapes = []
    for number in range(options.rounds):
        for name in list(targets)[:: 1 if number % 2 else -1]:
            p99, rate, seen = phase(server.url, targets[name], options)
            found[name].append(p99)
            if name == "with":
                scrapes += seen
            print(f"{name:>9}: p99 {p99:6.2f} ms, {rate:6.0f} requests/s", flush=True)
    return found, scrapes


def ratios(found, over):
    """The quartiles of the ratios of the rounds."""
    pairs = zip(found[over], found["without"], strict=True)
    low, middle, high = statistics.quantiles([on / off for on, off in pairs], n=4)
    return {"quartile": low, "median": middle, "third_quartile": high}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--port-of-its-own", action="store_true")
    parser.add_argument("--elsewhere", action="store_true")
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "models"
        publish_model(
            models,
            model=linear_model(classes=CLASSES),
            classes=CLASSES,
            class_counts=np.linspace(9000, 1, CLASSES).tolist(),
        )
        settings = {"max_class_series": CLASSES, "log_format": "json", "recent_rows": 0}
        if options.port_of_its_own:
            with socket.create_server(("127.0.0.1", 0)) as free:
                settings["metrics_port"] = free.getsockname()[1]
        server = stack.enter_context(running(models, **settings))
        port = settings.get("metrics_port")
        scraped = (f"http://127.0.0.1:{port}" if port else server.url) + "/metrics"
        asyncio.run(load(server.url, 2, options.connections))
        body = httpx.get(scraped).content
        targets = {"without": None, "with": scraped}
        if options.elsewhere:
            targets["elsewhere"] = stack.enter_context(held(body))
        found, scrapes = rounds(server, targets, options)
    sizes, times = zip(*(map(float, line.split()) for line in scrapes), strict=True)
    result = {
        "series": sum(not line.startswith(b"#") for line in body.splitlines()),
        "scrape_bytes": max(sizes),
        "scrapes": len(scrapes),
        "scrape_ms_median": 1e3 * statistics.median(times),
        "p99_ms": {name: statistics.median(all_p99) for name, all_p99 in found.items()},
        "ratio": {name: ratios(found, name) for name in found if name != "without"},
        "limit": LIMIT,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["ratio"]["with"]["median"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
