"""Memory of one serving process, and the time from its start until it is ready.

    python -m benchmarks.speed.footprint [--starts 5] [--out runs/benchmarks/footprint.json]

One process with one intra-op thread and a new store serves the three models of bench_models (TINY,
WIDE, CONV), then the models that the project ships. The time runs from just before the process is
created to the first 200 of /health/ready, which is polled every 5 ms. Resident memory is read at
that moment, and again after requests to each model. `own` is the private part, which no other
process could share because it was written to. Figures are medians over the starts, with the largest
in brackets. The exit status is 1 when the three models take more than 140 MiB or 2 s.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.rig.processes import ROOT

LIMIT_MIB, LIMIT_SECONDS = 140.0, 2.0
REQUESTS = 200
COMPILED = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""The environment of a service whose modules were compiled before."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="priordial-footprint-") as name:
        three = Path(name) / "models"
        for model in MODELS:
            model.publish(three)
        bodies = {m.name: orjson.dumps({"instances": m.inputs(1).tolist()}) for m in MODELS}
        for what, models, asked in (
            ("tiny, wide, conv", three, bodies),
            ("shipped models", ROOT / "models", {}),
        ):
            start(models, {})  # compiles the modules, and is not counted
            starts = [start(models, asked) for _ in range(given.starts)]
            found[what] = {
                key: {
                    "median": statistics.median(s[key] for s in starts),
                    "largest": max(s[key] for s in starts),
                }
                for key in starts[0]
            }
    print(f"{'':18s}{'ready, s':>16s}{'MiB at ready':>16s}{'own':>16s}{'MiB after requests':>20s}")
    for what, figures in found.items():
        cells = [f"{f['median']:.2f} ({f['largest']:.2f})" for f in figures.values()]
        print(f"{what:18s}{cells[0]:>16s}{cells[1]:>16s}{cells[2]:>16s}{cells[3]:>20s}")
    print(f"median (largest) of {given.starts} starts; {os.cpu_count()} processors")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"python": platform.python_version(), "processors": os.cpu_count(), **found}
        given.out.write_text(json.dumps({"starts": given.starts, **record}, indent=2) + "\n")
    judged = found["tiny, wide, conv"]
    too_large = judged["mib_after_requests"]["median"] > LIMIT_MIB
    return int(too_large or judged["ready_seconds"]["median"] > LIMIT_SECONDS)


def start(models: Path, bodies: dict[str, bytes]) -> dict[str, float]:
    """Start the service once, send requests to each model, and measure time and memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="priordial-footprint-") as folder:
        command = [
            sys.executable,
            "-m",
            "service",
            "serve",
            "--models",
            str(models),
            "--port",
            str(port),
            "--store",
            f"sqlite:///{folder}/priors.db",
            "--provider",
            "cpu",
            "--intra-op-threads",
            "1",
        ]
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=COMPILED)
        try:
            while not _ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"{command} ended with status {process.returncode}")
                time.sleep(0.005)
            seconds = time.perf_counter() - begun
            at_ready, own = memory_mib(process.pid)
            for name, body in bodies.items():
                for _ in range(REQUESTS):
                    _ask(f"{url}/models/{name}/predict?top_k=5", body)
            return {
                "ready_seconds": seconds,
                "mib_at_ready": at_ready,
                "own_mib": own,
                "mib_after_requests": memory_mib(process.pid)[0],
            }
        finally:
            process.terminate()
            process.wait(60)


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory in MiB, and the part of it that is private to the process.

    Clean pages of libraries are not private: all processes that map them share them.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["Rss"] / 1024, kib["Private_Dirty"] / 1024


def _ready(url: str) -> bool:
    with contextlib.suppress(OSError, urllib.error.HTTPError):
        return urllib.request.urlopen(f"{url}/health/ready", timeout=1).status == 200
    return False


def _ask(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


if __name__ == "__main__":
    sys.exit(main())
