"""CPU time of a request inside the service, without HTTP: for comparing two states of the code on a machine that is not quiet.

python benchmarks/speed/hot_path.py [--model tiny] [--clients 64] [--body npy|json] [--profile]
"""

import argparse
import asyncio
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rig.bench_models import MODELS
from benchmarks.speed.limits import PRIORS, bodies
from service.api.edge.known_headers import Head
from service.api.edge.request import HotRequest
from service.observe import log as request_log
from service.observe.run_folder import RunFolder
from service.server.app import Service
from service.server.serving import tune_interpreter
from service.settings import Settings


async def clients(
    service: Service, kind: str, model, *, clients: int, requests: int, mixed: bool
) -> None:
    """As HotProtocol has them answered: each client sends its next request when it has its answer."""
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
        request = HotRequest(
            "POST", query, head, body, is_abandoned=lambda: False, begun=time.perf_counter()
        )
        lane.begin(match, request, done)

    def done(response, error) -> None:
        nonlocal left
        assert error is None, error
        assert response[0] == 200, response
        left -= 1
        if left >= clients:
            loop.call_soon(send)
        elif left == 0:
            all_done.set_result(None)

    for _ in range(clients):
        send()
    await all_done


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
    service = Service(settings, RunFolder(folder / "run"))
    await service.start()
    from service.contract.prior import PriorBody

    for name in PRIORS:
        target = dict.fromkeys(
            service.repository.repository.find(model.name).bundle.class_names, 1.0
        )
        target[next(iter(target))] = 1.0 + int(name[-1])
        body = PriorBody(target=target)
        await service.priors.priors.put(
            service.repository.repository.find(model.name).bundle, name, body, by="bench"
        )
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
    parser.add_argument("--body", default="npy")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        uvloop.run(measure(arguments, Path(folder)))


if __name__ == "__main__":
    main()
