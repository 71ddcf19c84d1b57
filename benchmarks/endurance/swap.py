"""Swaps a model many times under load: no request may fail, no answer may mix versions, and memory
must stay flat.

    python -m benchmarks.endurance.swap [--swaps 100] [--connections 8] [--out FILE.json]

Each version has other weights. While connections send requests without pause, one version after
another is published (written beside the others, then renamed) and loaded, alternately through POST
/v2/repository/models/…/load and by SIGHUP. Older folders are deleted. Each answer is compared with
NumPy's result for the version that it names, and on one connection versions may only increase.

Memory counts as flat when the median in the last fifth of the swaps is at most 8 MiB above that in
the second fifth. `--recent-rows 0` turns off the sample of recent logits, which takes up to 16 MiB
per version and varies with the load. The exit status is 1 when a promise was broken.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.endurance.client import Connection
from benchmarks.rig.processes import Process, service
from service.contract.adjustment import softmax
from tests.support.small_models import linear_model, publish_model, weights

FEATURES, CLASSES = 64, 2000
FLAT_MIB = 8.0
ROW = np.random.default_rng(0).normal(size=(1, FEATURES)).astype(np.float32)
NAME = "swapped"


@dataclass
class Seen:
    """The answers that the clients got."""

    answers: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    back: int = 0
    newest: int = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--recent-rows", type=int, default=4096, help="the service's --recent-rows")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-swap-") as name:
        models = Path(name) / "models"
        publish(models, 1)
        with service(models, "--recent-rows", str(given.recent_rows)) as server:
            found = uvloop.run(run(server, models, given))
    print(
        f"{found['swaps']} swaps in {found['seconds']:.0f} s, {found['answers']} answers: "
        f"{found['failed']} failed, "
        f"{found['wrong']} not of the version that they name, {found['back']} of an older version "
        "than the one before"
    )
    print(
        f"a swap takes {found['swap_ms']:.0f} ms (median, until an answer names the version); "
        f"memory {found['early_mib']:.1f} MiB in "
        f"the second fifth, {found['late_mib']:.1f} in the last"
    )
    print("\n".join(found["failures"]))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    grown = found["late_mib"] - found["early_mib"] > FLAT_MIB
    return int(bool(found["failed"] or found["wrong"] or found["back"]) or grown)


def publish(models: Path, version: int) -> None:
    """Publish the next version, with other weights."""
    folder = publish_model(
        models,
        NAME,
        model=linear_model(features=FEATURES, classes=CLASSES, seed=version),
        classes=CLASSES,
        class_counts=[1.0] * CLASSES,
        input={"name": "x", "kind": "tensor", "shape": [None, FEATURES], "dtype": "float32"},
    )
    assert folder.name == str(version)


def best_of(version: int) -> tuple[int, float]:
    """The best class of a version and its probability, computed with NumPy."""
    w, b = weights(FEATURES, CLASSES, version)
    chances = softmax(ROW[0].astype(np.float64) @ w + b)
    return int(chances.argmax()), float(chances.max())


async def run(server: Process, models: Path, given: argparse.Namespace) -> dict:
    """Run all swaps while clients send requests."""
    seen, wanted, ended = Seen(), {1: best_of(1)}, asyncio.Event()
    askers = [
        asyncio.ensure_future(ask(server.url, seen, wanted, ended))
        for _ in range(given.connections)
    ]
    memory, times, begun = [], [], time.perf_counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for version in range(2, given.swaps + 2):
            wanted[version] = best_of(version)
            await asyncio.to_thread(publish, models, version)
            started = time.perf_counter()
            if version % 2:
                os.kill(server.popen.pid, signal.SIGHUP)
            else:
                answer = await client.post(f"/v2/repository/models/{NAME}/load")
                answer.raise_for_status()
            while seen.newest < version and time.perf_counter() < started + 30:  # noqa: ASYNC110 - polling every 2 ms is exact enough
                await asyncio.sleep(0.002)
            times.append(time.perf_counter() - started)
            if version > 3:
                shutil.rmtree(models / NAME / str(version - 3))
            memory.append(server.rss_mib())
    ended.set()
    await asyncio.gather(*askers)
    fifth = max(1, len(memory) // 5)
    return {
        "swaps": given.swaps,
        "seconds": time.perf_counter() - begun,
        "answers": seen.answers,
        "failed": len(seen.failed),
        "failures": seen.failed[:10],
        "wrong": seen.wrong,
        "back": seen.back,
        "swap_ms": 1e3 * statistics.median(times),
        "memory_mib": memory,
        "early_mib": statistics.median(memory[fifth : 2 * fifth] or memory),
        "late_mib": statistics.median(memory[-fifth:]),
    }


async def ask(
    url: str, seen: Seen, wanted: dict[int, tuple[int, float]], ended: asyncio.Event
) -> None:
    """Send one request after another on one connection, and check the answers."""
    body = orjson.dumps({"instances": ROW.tolist()})
    question = SimpleNamespace(
        path=f"/models/{NAME}/predict", headers={"content-type": "application/json"}, body=body
    )
    connection, last = Connection(url), 0
    while not ended.is_set():
        try:
            ((status, _, answered),) = [each async for each in connection.send([question])]
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.failed.append(repr(error))
            await connection.close()
            continue
        if status != 200:
            seen.failed.append(f"{status} {answered[:200]!r}")
            continue
        seen.answers += 1
        answer = orjson.loads(answered)
        version, first = answer["version"], answer["predictions"][0]
        index, chance = wanted[version]
        seen.wrong += first["index"] != index or abs(first["probability"] - chance) > 1e-5
        seen.back += version < last
        last = version
        seen.newest = max(seen.newest, version)
    await connection.close()


if __name__ == "__main__":
    sys.exit(main())
