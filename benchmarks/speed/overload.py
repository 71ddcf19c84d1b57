"""The effect of an overload of ten times the capacity on accepted requests and on memory.

    python -m benchmarks.speed.overload [--times 10] [--seconds 60] [--model conv] [--rows 4]
        [--flag=--max-queued-rows=64] [--out FILE.json]

The service has one process with one intra-op thread. One process on the same machine sends the load
in four phases:

* capacity: 16 clients, each of which waits for its answers
* calm: requests at an even rate, at 0.8 of the capacity, whether or not others were answered
* crowd: the same at `times` the capacity
* recovery: the same at 0.8 of the capacity again

A latency is measured from the time at which its request was due. A generator that falls behind
therefore makes the figures worse, never better, and its delay is printed. The service has recovered
at the first tenth of a second after the crowd that has no refusal and a p90 within the calm p99.
Memory is read 5 s into the crowd and at its end. The exit status is 1 when a request got neither an
answer nor a refusal with Retry-After, or when recovery took more than a second.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.rig.open_loop import Arrivals, Crowd
from benchmarks.rig.processes import Process, npy_bytes, service

CALM = 0.8
WINDOW = 0.1
MEMORY_AFTER_SECONDS = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--calm-seconds", type=float, default=10)
    parser.add_argument("--model", default="conv", choices=[m.name for m in MODELS])
    parser.add_argument("--rows", type=int, default=4, help="rows of each request")
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        help="a flag of the service, as --flag=--NAME=VALUE; may be repeated",
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = next(m for m in MODELS if m.name == given.model)
    with tempfile.TemporaryDirectory(prefix="priordial-overload-") as name:
        model.publish(Path(name) / "models")
        body = npy_bytes(model.inputs(given.rows))
        flags = [part for flag in given.flag for part in flag.split("=", 1)]
        with service(Path(name) / "models", *flags) as server:
            found = uvloop.run(measure(server, f"/models/{model.name}/predict", body, given))
    print(table(found))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    crowd = found["stretches"]["crowd"]
    lost = sum(s["broken"] + s["other"] for s in found["stretches"].values())
    return int(lost + crowd["without_retry_after"] > 0 or not found["recovered_seconds"] <= 1)


async def measure(server: Process, path: str, body: bytes, given: argparse.Namespace) -> dict:
    """Run the four phases, one after the other."""
    url = urlsplit(server.url)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: "
        f"application/x-npy\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    crowd = Crowd(url.hostname, url.port, head.encode() + body)
    await crowd.open(64)
    await crowd.hold(clients=16, seconds=1)
    capacity = await crowd.hold(clients=16, seconds=4)
    calm = await crowd.arrive(per_second=CALM * capacity, seconds=given.calm_seconds)
    await crowd.open(600)
    memory: list[float] = []

    async def watch() -> None:
        await asyncio.sleep(MEMORY_AFTER_SECONDS)
        while True:
            memory.append(server.rss_mib())
            await asyncio.sleep(1)

    watching = asyncio.ensure_future(watch())
    many = await crowd.arrive(per_second=given.times * capacity, seconds=given.seconds)
    watching.cancel()
    after = await crowd.arrive(per_second=CALM * capacity, seconds=given.calm_seconds)
    crowd.close()
    stretches = {"calm": calm, "crowd": many, "recovery": after}
    return {
        "capacity_per_second": capacity,
        "seconds": given.seconds,
        "stretches": {name: figures(each) for name, each in stretches.items()},
        "p99_ratio": many.milliseconds(99) / calm.milliseconds(99),
        "recovered_seconds": recovered(after, within_ms=calm.milliseconds(99)),
        "memory_mib": {"after 5 s": memory[0], "end": memory[-1], "largest": max(memory)},
    }


def figures(found: Arrivals) -> dict[str, float]:
    """The figures of one phase."""
    passed = max(d + s for d, s in zip(found.due, found.seconds, strict=True)) - min(found.due)
    accepted, refused = found.count(200), found.count(429)
    return {
        "arrived_per_second": len(found.late) / passed,
        "accepted": accepted,
        "accepted_per_second": accepted / passed,
        "refused": refused,
        "other": len(found.status) - accepted - refused,
        "broken": found.broken,
        "without_retry_after": found.without_retry_after,
        "accepted_p50_ms": found.milliseconds(50),
        "accepted_p99_ms": found.milliseconds(99),
        "refused_p50_ms": found.milliseconds(50, 429),
        "refused_p99_ms": found.milliseconds(99, 429),
        "generator_late_p99_ms": float(1e3 * np.percentile(found.late, 99)),
    }


def recovered(after: Arrivals, *, within_ms: float) -> float:
    """Seconds from the end of the crowd to the start of the first calm window; NaN when none is."""
    due = np.array(after.due) - min(after.due)
    seconds, status = np.array(after.seconds), np.array(after.status)
    for start in np.arange(0, due.max() - WINDOW, WINDOW):
        window = (due >= start) & (due < start + WINDOW)
        calm = window.any() and (status[window] == 200).all()
        if calm and 1e3 * np.percentile(seconds[window], 90) <= within_ms:
            return float(start)
    return float("nan")


def table(found: dict) -> str:
    """Print the figures as a table."""
    columns = {
        "arrived_per_second": "arrived/s",
        "accepted_per_second": "accepted/s",
        "refused": "429",
        "other": "other",
        "broken": "broken",
        "accepted_p50_ms": "p50 ms",
        "accepted_p99_ms": "p99 ms",
        "refused_p50_ms": "429 p50",
        "refused_p99_ms": "429 p99",
        "generator_late_p99_ms": "late p99",
    }
    lines = [f"capacity {found['capacity_per_second']:.0f} requests/s"]
    lines.append(f"{'':10s}" + "".join(f"{title:>12s}" for title in columns.values()))
    for name, each in found["stretches"].items():
        lines.append(f"{name:10s}" + "".join(f"{each[key]:12.1f}" for key in columns))
    memory = ", ".join(f"{name} {mib:.1f} MiB" for name, mib in found["memory_mib"].items())
    lines.append(f"p99 of the accepted, crowd / calm: {found['p99_ratio']:.2f}; memory: {memory}")
    lines.append(f"recovered after {found['recovered_seconds']:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
