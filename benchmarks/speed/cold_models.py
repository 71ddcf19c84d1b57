"""Serves more models than --max-loaded-mib allows: memory, and the first answer of a cold model.

    python -m benchmarks.speed.cold_models [--models 200] [--room 160] [--requests 600] [--out FILE]

One process with one intra-op thread serves copies of a model of bench_models (CONV), each under its
own name. Requests of one row name models at random. Every tenth request that finds its model cold
is followed by an unload and a load order of the same model, so that both times come from one run.
Figures: resident memory in MiB at the start and after each tenth of the requests, the number of
loaded models, and medians in ms of a cold first answer, of a load order and of a warm answer. The
exit status is 1 when memory grows by more than 10 % over the second half, or when the median first
answer takes 50 ms longer than the median load order.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.rig.processes import Process, service

ALLOWED_GROWTH, ALLOWED_SECONDS = 1.1, 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--room", type=int, default=160, help="the service's --max-loaded-mib")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = next(each for each in MODELS if each.name == "conv")
    names = [f"model-{number}" for number in range(given.models)]
    with tempfile.TemporaryDirectory(prefix="priordial-cold-") as folder:
        for name in names:
            dataclasses.replace(model, name=name).publish(Path(folder))
        flags = ("--max-loaded-mib", str(given.room), "--default-model", names[0])
        with (
            service(Path(folder), *flags) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            body = {"instances": model.inputs(1).tolist()}
            found = measured(server, client, names, body, requests=given.requests)
    for key, value in found.items():
        print(f"{key:16s}{value}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    second_half = found["resident_mib"][len(found["resident_mib"]) // 2 :]
    grows = second_half[-1] > ALLOWED_GROWTH * second_half[0]
    return int(grows or found["cold_ms"] > found["load_ms"] + 1e3 * ALLOWED_SECONDS)


def measured(
    server: Process, client: httpx.Client, names: list[str], body: object, *, requests: int
) -> dict[str, list[float] | list[int] | float]:
    """Send the requests and return the figures."""
    choose = random.Random(0)
    cold: list[float] = []
    warm: list[float] = []
    loads: list[float] = []
    memory, loaded = [round(server.rss_mib(), 1)], [1]
    for number in range(requests):
        name = choose.choice(names)
        now = {each["name"] for each in client.get("/models").json()["models"]}
        seconds = timed(client, f"/models/{name}/predict", body)
        (warm if name in now else cold).append(seconds)
        if name not in now and len(cold) % 10 == 0:
            timed(client, f"/v2/repository/models/{name}/unload", None)
            loads.append(timed(client, f"/v2/repository/models/{name}/load", None))
        if (number + 1) % (requests // 10) == 0:
            memory.append(round(server.rss_mib(), 1))
            loaded.append(len(client.get("/models").json()["models"]))
    return {
        "resident_mib": memory,
        "loaded": loaded,
        "cold_ms": round(1e3 * statistics.median(cold), 1),
        "load_ms": round(1e3 * statistics.median(loads), 1),
        "warm_ms": round(1e3 * statistics.median(warm), 2),
    }


def timed(client: httpx.Client, path: str, body: object) -> float:
    """The seconds until a POST is answered."""
    begun = time.perf_counter()
    client.post(path, json=body).raise_for_status()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
