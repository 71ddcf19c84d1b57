"""A soak test with mixed traffic: every answer is compared with the formula, and memory must stay
flat.

    python -m benchmarks.endurance.soak [--requests 200000] [--connections 16] [--seed 1]
        [--leak] [--out FILE.json]

One process gets requests of every kind (traffic.py: models, bodies, tau, priors, top_k, sizes,
deadlines, clients that hang up, faults), every fourth time several in one write. Twice a second, a
prior that no request names gets a new revision, and the service scans the models' folder again
(SIGHUP). Each answer is compared with the formula in float64; a request without an answer for 20 s
is wrong, too.

Memory is read 50 times, at equal intervals. It counts as flat when the median of the last ten
readings is at most 8 MiB above that of readings 10 to 20; by then every cache and sample is full.
With --leak the service keeps a copy of every request body, and the check must fail: this shows that
it can. After Ctrl-C or SIGTERM the script reports the results so far. The exit status is 1 when an
answer was wrong or memory did not do what was expected.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.endurance.client import drive
from benchmarks.endurance.subjects import publish_models, put_priors
from benchmarks.endurance.traffic import asks
from benchmarks.rig.processes import Process, service

PIECES = 50
FLAT_MIB = 8.0
CHANGE_SECONDS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-soak-") as name:
        models = Path(name) / "models"
        publish_models(models)
        script = ("-m", "benchmarks.rig.leaking_service") if given.leak else ("-m", "service")
        with service(models, script=script) as server:
            put_priors(server.url)
            found = uvloop.run(run(server, given))
    print(report(found))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    return int(found["wrong"] > 0 or found["flat"] is given.leak)


async def run(server: Process, given: argparse.Namespace) -> dict:
    """Send all requests, with changes of priors and models in between."""
    changing = asyncio.ensure_future(change(server))
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    wrong, lost, longest, memory = 0, 0, 0.0, [server.rss_mib()]
    begun, traffic = time.perf_counter(), asks(given.seed)
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    for _ in range(PIECES):
        if signalled.is_set():
            break
        piece = itertools.islice(traffic, given.requests // PIECES)
        driven = await drive(server.url, piece, connections=given.connections)
        statuses += driven.statuses
        wrong += driven.faulty
        lost += driven.lost
        longest = max(longest, driven.longest_seconds)
        faults += driven.faults[:5]
        memory.append(server.rss_mib())
    seconds = time.perf_counter() - begun
    changing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await changing
    early = statistics.median(memory[11:21] or memory)
    late = statistics.median(memory[-10:])
    return {
        "requests": sum(statuses.values()),
        "seconds": seconds,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "wrong": wrong,
        "lost": lost,
        "longest_seconds": longest,
        "faults": faults[:20],
        "changes": dict(CHANGES),
        "memory_mib": memory,
        "early_mib": early,
        "late_mib": late,
        "flat": late - early <= FLAT_MIB,
    }


CHANGES: Counter[str] = Counter()


async def change(server: Process) -> None:
    """Change priors and models until cancelled."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        for turn in itertools.count():
            target = [1.0 + (turn + i) % 7 for i in range(5)]
            answer = await client.put("/models/linear/priors/busy", json={"target": target})
            CHANGES["revisions"] += answer.is_success
            os.kill(server.popen.pid, signal.SIGHUP)
            CHANGES["reloads"] += 1
            if turn % 10 == 9:
                answer = await client.get("/metrics")
                CHANGES["scrapes"] += answer.is_success
            await asyncio.sleep(CHANGE_SECONDS)


def report(found: dict) -> str:
    """Print the results."""
    memory = found["memory_mib"]
    statuses = ", ".join(f"{status}: {count}" for status, count in found["statuses"].items())
    lines = [
        (f"{found['requests']} requests in {found['seconds']:.0f} s ({statuses}; 0: the client "
        f"left), {found['wrong']} wrong, {found['lost']} of them without an answer; longest wait "
        f"{found['longest_seconds']:.2f} s"),
        f"meanwhile: {', '.join(f'{count} {what}' for what, count in found['changes'].items())}",
        (f"memory: {memory[0]:.1f} MiB at the start, {found['early_mib']:.1f} in the second fifth, "
        f"{found['late_mib']:.1f} in the last"),
        "flat" if found["flat"] else "not flat",
    ]  # fmt: skip
    return "\n".join(lines + found["faults"])


if __name__ == "__main__":
    sys.exit(main())
