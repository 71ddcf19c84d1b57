"""ModelInfer over gRPC under load, compared with a grpc.aio server that parses the same message.

    python -m benchmarks.speed.grpc_load [--clients 64] [--calls 20000] [--rounds 3]
        [--mlserver PYTHON] [--pytriton PYTHON]

h2load (Debian: nghttp2-client) sends one row of the model tiny from each of many connections. The
echo parses each ModelInferRequest and answers with a ModelInferResponse of the same size, so it
shows what grpc.aio itself costs. `--mlserver` and `--pytriton` are Python interpreters that have
these servers, onnxruntime and NumPy; the project does not install them. All run in turns, each in
a process of its own. The CPU time of a call counts every process of a server.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import TINY
from benchmarks.rig.processes import ROOT, Process, process
from service.api.rpc import open_inference_pb2 as pb

METHOD = "inference.GRPCInferenceService/ModelInfer"


def message(model) -> bytes:
    """One row of a model, as Triton's client writes it."""
    rows = model.inputs(1)
    made = pb.ModelInferRequest(model_name=model.name)
    made.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    made.raw_input_contents.append(rows.tobytes())
    return made.SerializeToString()


async def echo(port: int, answer: bytes) -> None:
    """Parse each request and answer with the same message."""
    answered = pb.ModelInferResponse.FromString(answer)

    async def infer(request: pb.ModelInferRequest, _context: object) -> pb.ModelInferResponse:
        assert len(request.raw_input_contents) == 1
        return answered

    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    service, method = METHOD.split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"ready on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


def call(port: int, request: bytes) -> bytes:
    """The serialized answer of one call."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return channel.unary_unary(f"/{METHOD}")(request)


def load(port: int, body: Path, *, clients: int, calls: int) -> float:
    """Calls a second. Raises RuntimeError when one is not answered."""
    command = [
        "h2load", "-c", str(clients), "-n", str(calls), "-m", "1", "-d", str(body),
        "-H", "content-type: application/grpc", "-H", "te: trailers",
        f"http://127.0.0.1:{port}/{METHOD}",
    ]  # fmt: skip
    reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f"{calls} succeeded" not in reported:
        raise RuntimeError(reported)
    return float(re.search(r"([\d.]+) req/s", reported)[1])


def mean_batch_rows(url: str) -> float:
    """Rows of the service's graph calls so far, on average."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    totals = [
        sum(
            map(
                float, re.findall(rf"^priordial_batch_rows_{part}{{.*}} (\S+)$", text, re.MULTILINE)
            )
        )
        for part in ("sum", "count")
    ]
    return totals[0] / totals[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def foreign(command: list[str], port: int, model: Path, log: Path) -> Iterator[Process]:
    """Run another project's gRPC server of a model; yield once it answers calls."""
    with log.open("w") as output:
        popen = subprocess.Popen(
            command,
            env={**os.environ, "MODEL": str(model), "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        request = message(TINY)
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(grpc.RpcError):
                call(port, request)
                break
            if popen.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Process(popen, "")
    finally:
        popen.terminate()
        popen.wait(60)


def mlserver(python: str, home: Path) -> tuple[list[str], int]:
    """The command that starts MLServer, and its gRPC port. `home` gets its settings."""
    folder, ports = home / "mlserver", [free_port() for _ in range(3)]
    folder.mkdir()
    settings = {
        "host": "127.0.0.1",
        "parallel_workers": 0,  # in its own process, which is faster for so small a model
        **dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)),
    }
    served = {
        "name": "tiny",
        "implementation": "benchmarks.rig.mlserver_model.Classifier",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(served))
    return [str(Path(python).parent / "mlserver"), "start", str(folder)], ports[1]


def pytriton(python: str) -> tuple[list[str], int]:
    """The command that starts PyTriton, and its gRPC port."""
    ports = [free_port() for _ in range(3)]
    return [python, str(ROOT / "benchmarks/rig/pytriton_service.py"), *map(str, ports)], ports[1]


def main() -> None:
    """Load all servers in turns; print calls a second and the CPU time of a call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mlserver", help="a Python interpreter that has MLServer")
    parser.add_argument("--pytriton", help="a Python interpreter that has PyTriton")
    parser.add_argument("--echo", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        port, answer = options.echo.split(",")
        asyncio.run(echo(int(port), bytes.fromhex(answer)))
        return
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as home:
        measure(options, Path(home))


def measure(options: argparse.Namespace, home: Path) -> None:
    """Start the servers, load them in turns, and print what was found."""
    request, body = message(TINY), home / "body"
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    model = TINY.publish(home / "models") / "model.onnx"
    ports = {"service": free_port(), "echo": free_port()}
    serve = ("-m", "service", "serve", "--models", str(home / "models"), "--port", "0")
    own = ("--store", f"sqlite:///{home}/priors.db", "--intra-op-threads", "1")
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(process(*serve, *own, "--grpc-port", str(ports["service"])))
        answer = call(ports["service"], request)
        servers = {
            "service": served,
            "echo": stack.enter_context(
                process(__file__, "--echo", f"{ports['echo']},{answer.hex()}")
            ),
        }
        assert len(call(ports["echo"], request)) == len(answer)
        for name, found in (
            ("mlserver", options.mlserver and mlserver(options.mlserver, home)),
            ("pytriton", options.pytriton and pytriton(options.pytriton)),
        ):
            if found:
                command, ports[name] = found
                log = home / f"{name}.log"
                servers[name] = stack.enter_context(foreign(command, ports[name], model, log))
            else:
                print(f"left out: {name} (no --{name})")
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, server in servers.items():
                before = server.cpu_seconds()
                rates[name].append(
                    load(ports[name], body, clients=options.clients, calls=options.calls)
                )
                costs[name].append(1e6 * (server.cpu_seconds() - before) / options.calls)
        for name, each in rates.items():
            times = statistics.median(
                ours / theirs for ours, theirs in zip(rates["service"], each, strict=True)
            )
            print(
                f"{name:8} {statistics.median(each):>8,.0f} calls/s  "
                f"{statistics.median(costs[name]):>6,.0f} us of CPU a call   "
                f"service: {times:.2f} of its rate   ({', '.join(f'{rate:,.0f}' for rate in each)})"
            )
        print(f"rows of a graph call: {mean_batch_rows(served.url):.1f}")


if __name__ == "__main__":
    main()
