"""The cost of a request inside the service: CPU time without HTTP, or the Python calls it makes.

    python benchmarks/speed/hot_path.py [--model tiny] [--clients 64] [--body npy|json|oip|oip-json]
    python benchmarks/speed/hot_path.py --calls [--model tiny] [--body json] [--query tau=0.5]

CPU time varies least on a busy machine: use it to compare two versions of the code.

`--calls` sends one request over a real connection: the tenth of that connection, when its header
block is known and all caches are warm. `sys.setprofile` on the event loop's thread counts every
Python function called from the connection's `data_received` until the request is finished. That
includes parsing, access, choice of the prior, queue, encoding, metrics, log line and the write of
the response. It includes the graph call where the model runs on the loop, as tiny does.

C functions are not counted. Comprehensions are, since each is a function in Python 3.11. The totals
hold the functions and modules of `service/`; Python code of NumPy, onnxruntime and the loop is
listed only. Modules that record the batch and the request (`service/observe`, the sample of recent
logits) are counted separately from those that the request passes through.
"""

import argparse
import asyncio
import cProfile
import dataclasses
import pstats
import socket
import sys
import tempfile
import time
from pathlib import Path

import uvicorn
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.speed.limits import PRIORS, bodies
from service.api.edge.known_headers import Head
from service.api.edge.protocol import ScoringProtocol
from service.observe import log as request_log
from service.observe.run_folder import RunFolder
from service.server.assembly.service import Service
from service.server.serving import tune_interpreter
from service.settings import Settings

ROOT = Path(__file__).parents[2]
RECORDING = ("service/observe/", "service/priors/recent.py", "service/repository/record.py")


class Connection:
    """A connection whose client never leaves."""

    disconnected = False


async def clients(
    service: Service, kind: str, model, *, clients: int, requests: int, mixed: bool
) -> None:
    """Send requests as ScoringProtocol does; a client sends its next one when it is answered."""
    path, body, headers = bodies(model)[kind]
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    raw += [(b"host", b"127.0.0.1:8000"), (b"content-length", b"%d" % len(body))]
    head = Head(raw, len(body))
    lane, loop = service.asgi.lane, asyncio.get_running_loop()
    match = lane.match(path)
    left, all_done = requests, loop.create_future()

    def send() -> None:
        query = (
            b"tau=%.4f&prior=%s" % (left % 9973 / 4000, PRIORS[left % 8].encode()) if mixed else b""
        )
        lane.begin(match, head, query=query, body=body, connection=Connection, send=done)

    def done(response) -> None:
        nonlocal left
        assert response[0] == 200, response
        left -= 1
        if left >= clients:
            loop.call_soon(send)
        elif left == 0:
            all_done.set_result(None)

    for _ in range(clients):
        send()
    await all_done


class Walk:
    """A profile function that notes the Python calls of its thread, from `data_received` on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._began = False

    def __call__(self, frame, event, _argument) -> None:
        """Note one event; sys.setprofile calls this for every call and return."""
        if event != "call":
            return
        code = frame.f_code
        file, name = code.co_filename, code.co_name
        if name == "data_received" and not self._began:
            self._began = True
        if self._began and "/concurrent/futures/" not in file and "/asyncio/futures.py" not in file:
            self.calls.append((file.removeprefix(f"{ROOT}/"), name))


async def walk(service: Service, model, kind: str, query: str) -> Walk:
    """Send one request over a real connection and note its calls."""
    config = uvicorn.Config(
        service.asgi, lifespan="off", log_config=None, proxy_headers=False, interface="asgi3"
    )
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ScoringProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    path, body, headers = bodies(model)[kind]
    lines = [f"POST {path}{query and '?' + query} HTTP/1.1", "host: x"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "", ""]
    request = "\r\n".join(lines).encode() + body
    client = socket.create_connection(server.sockets[0].getsockname())

    def ask() -> bytes:
        client.sendall(request)
        answer = client.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return answer

    for _ in range(9):
        await asyncio.to_thread(ask)
    await asyncio.sleep(0.2)  # the log has been written
    found = Walk()
    answered = loop.run_in_executor(None, ask)
    sys.setprofile(found)
    try:
        await answered
    finally:
        sys.setprofile(None)
    client.close()
    server.close()
    return found


def print_walk(found: Walk) -> None:
    """Print the calls by module, in the order in which the request first entered them."""
    modules: dict[str, list[str]] = {}
    for file, name in found.calls:
        modules.setdefault(file, []).append(name)
    own = {file: names for file, names in modules.items() if file.startswith("service/")}
    recording = {file for file in own if file.startswith(RECORDING)}
    for file, names in modules.items():
        where = "record" if file in recording else "way" if file in own else "library"
        print(f"{where:8}{len(names):4}  {file}: {', '.join(names)}")
    order = list(own)
    down = [
        file for file in order[: order.index("service/batching/run.py")] if file not in recording
    ]
    way = [file for file in order if file not in recording]
    calls = sum(map(len, own.values()))
    recorded = sum(len(own[file]) for file in recording)
    print(
        f"{calls} calls of functions of the service, {recorded} of which record the request\n"
        f"{len(down)} modules from HTTP to the graph, {len(way)} to the graph and back, "
        f"{len(recording)} that record the request"
    )


async def measure(arguments: argparse.Namespace, folder: Path) -> None:
    model = next(m for m in MODELS if m.name == arguments.model)
    model.publish(folder / "models")
    request_log.configure("json")
    settings = Settings(
        models=folder / "models",
        store=f"sqlite:///{folder}/priors.db",
        intra_op_threads=1,
        log_format="json",
    )
    if arguments.calls:  # calls in the graph's thread are not seen, where a busy machine runs it
        settings = dataclasses.replace(settings, inline_us=100_000)
    service = Service(settings, RunFolder(folder / "run"))
    await service.start()
    if arguments.calls:
        print_walk(await walk(service, model, arguments.body, arguments.query))
        await service.stop()
        return
    from service.contract.members.body import PriorBody

    for name in PRIORS:
        target = dict.fromkeys(service.repository.find(model.name).bundle.class_names, 1.0)
        target[next(iter(target))] = 1.0 + int(name[-1])
        body = PriorBody(target=target)
        await service.priors.put(service.repository.find(model.name).bundle, name, body, by="bench")
    tune_interpreter()
    for mixed in (False, True):
        common = {"clients": arguments.clients, "mixed": mixed}
        await clients(service, arguments.body, model, requests=2000, **common)
        best = float("inf")
        for _ in range(1 if arguments.profile else 7):
            profile = cProfile.Profile()
            if arguments.profile:
                profile.enable()
            begun = time.process_time()
            await clients(service, arguments.body, model, requests=arguments.requests, **common)
            best = min(best, time.process_time() - begun)
            profile.disable()
        print(
            f"{'mixed' if mixed else 'one tau'}: {1e6 * best / arguments.requests:.1f} µs a request"
        )
        if arguments.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    await service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument(
        "--body", help="npy, json, oip or oip-json (default npy; with --calls json)"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--calls", action="store_true", help="count the calls of one request")
    parser.add_argument("--query", default="tau=0.5", help="query string of that request")
    arguments = parser.parse_args()
    arguments.body = arguments.body or ("json" if arguments.calls else "npy")
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        uvloop.run(measure(arguments, Path(folder)))


if __name__ == "__main__":
    main()
