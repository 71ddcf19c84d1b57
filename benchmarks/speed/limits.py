"""Compares the service with its two limits, bare HTTP and the bare graph, in one interleaved run.

    python benchmarks/speed/limits.py [--rounds 3] [--seconds 2]
        [--out runs/benchmarks/serving.json]

The benchmark measures for each model, kind of body and number of connections:

* the HTTP limit: bare ASGI on uvicorn, which reads the same body
* the compute limit: session.run of the plain graph at its best batch size
* the service with its defaults and one body
* the service with many different rows, first with one tau and prior for all requests, then with
  another tau and prior for each request
* for WIDE, the service without a head

One worker runs with one intra-op thread, metrics and validation on. Figures are medians over the
rounds. Ratios are medians of the ratios of each round, so a machine whose speed drifts does not
distort them. The smaller of the two limits is the one that applies.
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import CONV, MODELS, TINY, WIDE, BenchModel
from benchmarks.rig.processes import Process, npy_bytes, process, service, wrk

CONNECTIONS = (1, 16, 64)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PRIORS = tuple(f"place-{i}" for i in range(8))


def bodies(
    model: BenchModel, row: np.ndarray | None = None
) -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """(path, body, headers) of a request with one row, by the kind of the body."""
    row = model.inputs(1) if row is None else row
    path = f"/models/{model.name}/predict"
    return {
        "npy": (path, npy_bytes(row), {"content-type": "application/x-npy"}),
        "json": (
            path,
            orjson.dumps({"instances": row.tolist()}),
            {"content-type": "application/json"},
        ),
        "oip": _oip(model, row),
        "oip-json": _oip_json(model, row),
    }


def many_bodies(model: BenchModel, kind: str) -> list[bytes]:
    """Bodies with different rows: at most 20,000, and at most 16 MB of numbers."""
    count = min(20_000, 2**24 // model.inputs(1).nbytes)
    rows = model.inputs(count)
    return [bodies(model, rows[i : i + 1])[kind][1] for i in range(count)]


def _oip(model: BenchModel, row: np.ndarray) -> tuple[str, bytes, dict[str, str]]:
    data = row.tobytes()
    header = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": list(row.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "outputs": [{"name": n} for n in ("class_index", "class_probability")],
        }
    )
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(header)),
    }
    return f"/v2/models/{model.name}/infer", header + data, headers


def _oip_json(model: BenchModel, row: np.ndarray) -> tuple[str, bytes, dict[str, str]]:
    tensor = {"name": "x", "shape": list(row.shape), "datatype": "FP32", "data": row.ravel()}
    outputs = [{"name": name} for name in ("class_index", "class_probability")]
    body = orjson.dumps({"inputs": [tensor], "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return f"/v2/models/{model.name}/infer", body, {"content-type": "application/json"}


def compute_limit(session: ort.InferenceSession, model: BenchModel, seconds: float) -> float:
    """Rows per second of the plain graph at its best batch size."""
    best = 0.0
    for rows in BATCHES:
        x = model.inputs(rows)
        session.run(None, {"x": x})
        calls, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds / len(BATCHES):
            session.run(None, {"x": x})
            calls += 1
        best = max(best, calls * rows / passed)
    return best


def put_priors(server: Process, model: BenchModel) -> None:
    rng = np.random.default_rng(0)
    for name in PRIORS:
        target = (rng.random(model.classes) + 0.1).tolist()
        httpx.put(
            f"{server.url}/models/{model.name}/priors/{name}", json={"target": target}, timeout=30
        ).raise_for_status()


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    models = folder / "models"
    paths = {model.name: model.publish(models) for model in MODELS}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(process("benchmarks/rig/bare_asgi.py"))
        served = stack.enter_context(service(models, "--max-batch-rows", "64"))
        plain = stack.enter_context(
            service(models, "--max-batch-rows", "64", script=("benchmarks/rig/plain_service.py",))
        )
        rows = []
        for model in [m for m in MODELS if m.name in arguments.models]:
            put_priors(served, model)
            session = ort.InferenceSession(str(paths[model.name] / "model.onnx"), options)
            for kind in arguments.bodies:
                path, body, headers = bodies(model)[kind]
                rows_of_own = many_bodies(model, kind)
                if not _is_there(served, path, body, headers):
                    continue
                if model is WIDE and not _is_there(plain, path, body, headers):
                    raise SystemExit(f"the plain service does not answer {path} ({kind})")
                for connections in arguments.connections:
                    common = {
                        "connections": connections,
                        "seconds": arguments.seconds,
                        "folder": folder,
                    }
                    rounds = []
                    for _ in range(arguments.rounds):
                        found = {
                            "http": wrk(bare, path, body, headers, **common),
                            "service": wrk(served, path, body, headers, **common),
                            "compute_per_second": compute_limit(session, model, arguments.seconds),
                        }
                        if not kind.startswith("oip"):
                            found |= _with_settings(served, path, rows_of_own, headers, common)
                        if model is WIDE:
                            found["plain"] = wrk(plain, path, body, headers, **common)
                        rounds.append(found)
                    rows.append(
                        {
                            "model": model.name,
                            "body": kind,
                            "connections": connections,
                            "rounds": rounds,
                        }
                        | summary(rounds)
                    )
                    print(_line(rows[-1]), flush=True)
    return rows


def _with_settings(
    server: Process, path: str, rows: list[bytes], headers: dict[str, str], common: dict[str, Any]
) -> dict[str, Any]:
    """Load the service with different rows: with one setting for all, and with mixed settings."""
    return {
        name: wrk(server, path, rows, headers, settings=f"{name}:{priors}", **common)
        for name, priors in (("one", PRIORS[0]), ("mixed", ",".join(PRIORS)))
    }


def _is_there(server: Process, path: str, body: bytes, headers: dict[str, str]) -> bool:
    answer = httpx.post(server.url + path, content=body, headers=headers, timeout=30)
    return answer.status_code == 200


def summary(rounds: list[dict]) -> dict[str, float]:
    """Medians over the rounds, and medians of the rounds' ratios."""

    def median(of) -> float:
        return statistics.median(of(found) for found in rounds)

    result = {
        "per_second": median(lambda r: r["service"]["per_second"]),
        "p50_ms": median(lambda r: r["service"]["p50_ms"]),
        "p99_ms": median(lambda r: r["service"]["p99_ms"]),
        "cpu_us": median(lambda r: r["service"]["cpu_us"]),
        "http_per_second": median(lambda r: r["http"]["per_second"]),
        "http_cpu_us": median(lambda r: r["http"]["cpu_us"]),
        "compute_per_second": median(lambda r: r["compute_per_second"]),
        "of_http": median(lambda r: r["service"]["per_second"] / r["http"]["per_second"]),
        "of_compute": median(lambda r: r["service"]["per_second"] / r["compute_per_second"]),
        "refused": sum(r["service"]["refused"] + r["service"]["errors"] for r in rounds),
    }
    if "mixed" in rounds[0]:
        result["mixed_cost"] = median(lambda r: r["one"]["per_second"] / r["mixed"]["per_second"])
        result["mixed_cpu_cost"] = median(lambda r: r["mixed"]["cpu_us"] / r["one"]["cpu_us"])
        result["asked_cost"] = median(
            lambda r: r["service"]["per_second"] / r["mixed"]["per_second"]
        )
    if "plain" in rounds[0]:
        result["of_plain"] = median(lambda r: r["service"]["per_second"] / r["plain"]["per_second"])
    return result


HEADER = (
    f"{'model':5} {'body':5} {'conns':>5} {'requests/s':>10} {'p50 ms':>7} {'p99 ms':>7} "
    f"{'p99/p50':>7} {'cpu µs':>7} "
    f"{'http/s':>8} {'of http':>7} {'rows/s':>9} {'of comp.':>8} {'mixed ×':>7} {'asked ×':>7} "
    f"{'of plain':>8} {'errors':>6}"
)


def _line(row: dict) -> str:
    def ratio(name: str) -> str:
        return f"{row[name]:.2f}" if name in row else "–"

    return (
        f"{row['model']:5} {row['body']:5} {row['connections']:5} {row['per_second']:10.0f} "
        f"{row['p50_ms']:7.2f} "
        f"{row['p99_ms']:7.2f} {row['p99_ms'] / row['p50_ms']:7.2f} {row['cpu_us']:7.0f} "
        f"{row['http_per_second']:8.0f} "
        f"{ratio('of_http'):>7} {row['compute_per_second']:9.0f} {ratio('of_compute'):>8} "
        f"{ratio('mixed_cost'):>7} "
        f"{ratio('asked_cost'):>7} "
        f"{ratio('of_plain'):>8} {row['refused']:6}"
    )


def goals(rows: list[dict]) -> list[str]:
    """The goals, each with the figure that is compared with it."""
    by = {(r["model"], r["body"], r["connections"]): r for r in rows}
    found = []

    def judge(key, name: str, value, limit: float, *, at_least: bool) -> None:
        if key in by:
            got = value(by[key])
            met = got >= limit if at_least else got <= limit
            found.append(
                f"{'met ' if met else 'MISSED'} {name}: {got:.2f} (goal "
                f"{'≥' if at_least else '≤'} {limit})"
            )

    judge(
        (TINY.name, "npy", 64),
        "TINY of the HTTP limit at 64",
        lambda r: r["of_http"],
        0.60,
        at_least=True,
    )
    judge(
        (TINY.name, "npy", 64),
        "TINY p99 / p50 at 64",
        lambda r: r["p99_ms"] / r["p50_ms"],
        1.5,
        at_least=False,
    )
    judge(
        (CONV.name, "npy", 16),
        "CONV of the compute limit at 16",
        lambda r: r["of_compute"],
        0.92,
        at_least=True,
    )
    judge(
        (WIDE.name, "npy", 16),
        "WIDE of the plain model at 16",
        lambda r: r["of_plain"],
        0.5,
        at_least=True,
    )
    judge(
        (WIDE.name, "npy", 64),
        "WIDE of the plain model at 64",
        lambda r: r["of_plain"],
        0.5,
        at_least=True,
    )
    judge(
        (TINY.name, "npy", 64),
        "mixed tau and priors, TINY at 64",
        lambda r: r["mixed_cost"],
        1.05,
        at_least=False,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--models", nargs="+", default=[m.name for m in MODELS])
    parser.add_argument("--bodies", nargs="+", default=["npy", "json", "oip", "oip-json"])
    parser.add_argument("--connections", nargs="+", type=int, default=list(CONNECTIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/serving.json"))
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        rows = measure(arguments, Path(folder))
    lines = goals(rows)
    print("\n".join(lines))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "machine": platform.machine(),
    }
    arguments.out.write_text(
        json.dumps({"machine": machine, "goals": lines, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
