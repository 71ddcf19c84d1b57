"""Compares the service with mosec and with the cheapest HTTP servers of this machine, interleaved.

    python benchmarks/speed/peers.py [--rounds 5] [--seconds 2] [--connections 1 16 64]
        [--peers PYTHON] [--out runs/benchmarks/peers.json]

TINY with JSON bodies, one worker, one intra-op thread. `--peers` is a Python interpreter that has
mosec, granian, uvicorn, uvloop, onnxruntime, NumPy and orjson; the project does not install them.
mosec waits 1 ms or 10 ms for a batch. Three servers show how fast HTTP itself is: bare ASGI on
uvicorn, bare ASGI on granian, and nginx that answers `{}` without reading the body into a program.
A server that is not installed is named and left out.

Requests per second depend on the machine's load. CPU time per request, which counts every process
of a server, hardly does. Figures are medians over the rounds, ratios are medians of the rounds'
ratios.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import TINY
from benchmarks.rig.processes import ROOT, Process, process, service, wrk
from benchmarks.speed.limits import bodies

RIG = ROOT / "benchmarks" / "rig"
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}; keepalive_requests 100000000;
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{{}}"; }} }}
}}
"""


@contextlib.contextmanager
def foreign(command: list[str], port: int, environment: dict[str, str]) -> Iterator[Process]:
    """Run another project's server; yield once its port on 127.0.0.1 accepts connections."""
    popen = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if popen.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command} does not accept connections on port {port}")
            time.sleep(0.1)
        time.sleep(2)  # its workers load the model after the port is open
        yield Process(popen, f"http://127.0.0.1:{port}")
    finally:
        popen.terminate()
        popen.wait(60)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def started(
    stack: contextlib.ExitStack, arguments: argparse.Namespace, folder: Path
) -> dict[str, Process]:
    """Start every server that is installed on this machine."""
    path = TINY.publish(folder / "models")
    servers = {
        "service": stack.enter_context(service(folder / "models", "--max-batch-rows", "64")),
        "uvicorn": stack.enter_context(process(str(RIG / "bare_asgi.py"))),
    }

    def add(name: str, command: list[str], port: int, **environment: str) -> None:
        servers[name] = stack.enter_context(foreign(command, port, environment))

    peers = arguments.peers
    if peers:
        for wait in ("1", "10"):
            port = free_port()
            command = [peers, str(RIG / "mosec_service.py"), "--address", "127.0.0.1"]
            model = str(path / "model.onnx")
            add(
                f"mosec {wait} ms", [*command, "--port", str(port)], port, MODEL=model, WAIT_MS=wait
            )
        port = free_port()
        granian = [peers, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1"]
        application = ["--port", str(port), "--no-ws", "benchmarks.rig.bare_asgi:app"]
        add("granian", [*granian, *application], port, PYTHONPATH=str(ROOT))
    else:
        print("left out: mosec and granian (no --peers)")
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx:
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port))
        add("nginx", [nginx, "-p", str(folder), "-c", str(config)], port)
    else:
        print("left out: nginx (not installed)")
    return servers


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """One row for each number of connections, with the rounds of every server."""
    rows: list[dict[str, object]] = []
    path, body, headers = bodies(TINY)["json"]
    with contextlib.ExitStack() as stack:
        servers = started(stack, arguments, folder)
        for connections in arguments.connections:
            rounds = [
                {
                    name: wrk(
                        server,
                        path,
                        body,
                        headers,
                        connections=connections,
                        seconds=arguments.seconds,
                        folder=folder,
                    )
                    for name, server in servers.items()
                }
                for _ in range(arguments.rounds)
            ]
            rows.append({"connections": connections, "rounds": rounds})
            print_row(connections, rounds)
    return rows


def print_row(connections: int, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the servers' medians, and the service's rate as a multiple of each."""
    for name in rounds[0]:

        def median(key: str, name: str = name) -> float:
            return statistics.median(found[name][key] for found in rounds)

        def times(key: str, name: str = name) -> float:
            return statistics.median(found["service"][key] / found[name][key] for found in rounds)

        errors = sum(found[name]["refused"] + found[name]["errors"] for found in rounds)
        print(
            f"{connections:4} connections  {name:11} {median('per_second'):8.0f} requests/s  "
            f"p50 {median('p50_ms'):6.2f} ms  p99 {median('p99_ms'):6.2f} ms  "
            f"{median('cpu_us'):6.1f} us of CPU   service: {times('per_second'):5.2f} of its rate, "
            f"{times('cpu_us'):5.2f} of its CPU  errors {errors:.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="whole seconds, as wrk takes them")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--peers", help="a Python interpreter that has the other servers")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        rows = measure(arguments, Path(folder))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
