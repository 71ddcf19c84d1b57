"""ModelInfer over gRPC under load, compared with a grpc.aio server that parses the same message.

    python -m benchmarks.speed.grpc_load [--clients 64] [--calls 20000] [--rounds 3]

h2load (Debian: nghttp2-client) sends one row of the model tiny from each of many connections. The
echo parses each ModelInferRequest and answers with a ModelInferResponse of the same size, so it
shows what grpc.aio itself costs. Both run in turns, each in a process of its own.
"""

import argparse
import asyncio
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.rig.processes import process
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


def main() -> None:
    """Load both servers in turns and print calls a second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--echo", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        port, answer = options.echo.split(",")
        asyncio.run(echo(int(port), bytes.fromhex(answer)))
        return
    model = next(each for each in MODELS if each.name == "tiny")
    request = message(model)
    with tempfile.TemporaryDirectory() as home:
        body = Path(home) / "body"
        body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
        models, ours, theirs = Path(home) / "models", free_port(), free_port()
        model.publish(models)
        serve = ("-m", "service", "serve", "--models", str(models), "--port", "0")
        store = f"sqlite:///{home}/priors.db"
        with process(*serve, "--store", store, "--grpc-port", str(ours)) as served:
            answer = call(ours, request)
            with process(__file__, "--echo", f"{theirs},{answer.hex()}"):
                assert len(call(theirs, request)) == len(answer)
                found = {"service": [], "echo": []}
                for _ in range(options.rounds):
                    for name, port in (("service", ours), ("echo", theirs)):
                        found[name].append(
                            load(port, body, clients=options.clients, calls=options.calls)
                        )
                for name, rates in found.items():
                    shown = ", ".join(f"{rate:,.0f}" for rate in rates)
                    print(f"{name:8} {statistics.median(rates):>8,.0f} calls/s  ({shown})")
                share = statistics.median(found["service"]) / statistics.median(found["echo"])
                print(f"share of the echo: {share:.2f}")
                print(f"rows of a graph call: {mean_batch_rows(served.url):.1f}")


if __name__ == "__main__":
    main()
