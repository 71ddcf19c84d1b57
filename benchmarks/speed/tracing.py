"""The cost of traces: CPU time of a request inside the service with and without them, in one run.

    python benchmarks/speed/tracing.py [--model tiny] [--clients 64] [--rounds 60] [--json FILE]

Four services in one process take turns. Their requests are measured without HTTP, as in
benchmarks/speed/hot_path.py:

* `off` is the default, without traces; * `cut out` is `off` with the checks for a tracer removed
from the queue's source, which shows what these checks cost; * `on` traces every request, and sends
the traces to a collector in another process; * `sampled` traces one request in a hundred.

A result is the median of the ratios of each round to `off`, with quartiles. The time of the
exporter's thread is included, up to the last span.
"""

import argparse
import contextlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import uvloop
from hot_path import clients

from benchmarks.rig.bench_models import MODELS
from service.batching import batcher
from service.observe import log as request_log
from service.observe.run_folder import RunFolder
from service.repository import loading
from service.server.assembly.service import Service
from service.server.serving import tune_interpreter
from service.settings import Settings

ASKED = "if self._tracer is not None:"
COLLECTOR = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def collector():
    """The address of a process that accepts every span and discards it."""
    command = [sys.executable, "-c", COLLECTOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def batcher_without_comparisons():
    """The `Batcher` class, compiled from its source without the checks for a tracer."""
    source = inspect.getsource(batcher)
    assert source.count(ASKED) == 1, "the queue checks for its tracer differently now: change ASKED"
    module = types.ModuleType("batcher_without_tracer")
    sys.modules[module.__name__] = module  # dataclasses look up their module
    exec(compile(source.replace(ASKED, "if False:"), batcher.__file__, "exec"), module.__dict__)
    return module.Batcher


async def started(folder, name, endpoint):
    """A started service in this process."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    if name == "sampled":
        environment |= {
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
    settings = Settings(
        models=folder / "models",
        store=f"sqlite:///{folder}/{name}.db",
        intra_op_threads=1,
        log_format="json",
        traces=name in ("on", "sampled"),
    )
    queue = batcher_without_comparisons() if name == "cut out" else batcher.Batcher
    with mock.patch.dict(os.environ, environment), mock.patch.object(loading, "Batcher", queue):
        service = Service(settings, RunFolder(folder / f"run-{name}"))
        await service.start()
    return service


async def measure(options, folder, endpoint):
    """µs per request by kind of service, one figure per round."""
    model = next(m for m in MODELS if m.name == options.model)
    model.publish(folder / "models")
    request_log.configure("json")
    names = ("off", "cut out", "on", "sampled")
    services = {name: await started(folder, name, endpoint) for name in names}
    tune_interpreter()
    found = {name: [] for name in names}
    load = {"clients": options.clients, "mixed": False, "requests": options.requests}
    for number in range(options.rounds + 1):
        for name in names[:: 1 if number % 2 else -1]:
            service = services[name]
            begun = time.process_time()
            await clients(service, "npy", model, **load)
            if service.traces is not None:  # unsent spans would burden the next service
                service.traces._processor.force_flush()  # noqa: SLF001 - there is no public way to wait for it
            seconds = time.process_time() - begun
            if number:  # the first round is a warm-up
                found[name].append(1e6 * seconds / options.requests)
    for service in services.values():
        await service.stop()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder, collector() as endpoint:
        found = uvloop.run(measure(options, Path(folder), endpoint))
    result = {"model": options.model, "clients": options.clients}
    for name, all_us in found.items():
        ratios = [us / off for us, off in zip(all_us, found["off"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "us_a_request": round(statistics.median(all_us), 1),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
