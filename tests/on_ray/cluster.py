"""`python -m tests.on_ray.cluster CONFIG.yaml FOLDER`: Ray Serve on loopback until SIGTERM.

It writes the base URL once the application runs. On SIGHUP it deploys the configuration file again,
as `serve deploy` does.
"""

import contextlib
import os
import queue
import signal
import sys
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from tests.support.eventually import eventually
from tests.support.proxied import free_port

START_SECONDS = 240
"""Ray itself waits 60 s for its proxy and 60 s for an application; a loaded machine needs more."""


def running() -> bool:
    """Whether every application runs, and every proxy serves."""
    status = serve.status()
    return (
        bool(status.applications)
        and all(each.status == "RUNNING" for each in status.applications.values())
        and all(each == "HEALTHY" for each in status.proxies.values())
    )


def main(config_file: str, folder: str) -> int:
    """Start a cluster of this machine and the application of a configuration file."""
    orders: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: orders.put(number))
    ray.init(
        num_cpus=8,  # as Ray counts them: the replicas of a test share what there is
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="warning",
        log_to_driver=False,
        _temp_dir=folder,
    )
    port = free_port()
    with contextlib.suppress(TimeoutError):  # the proxy goes on starting
        serve.start(http_options={"host": "127.0.0.1", "port": port})
    from ray.serve._private.api import _get_global_client  # there is no public way

    def deploy() -> None:
        config = ServeDeploySchema.model_validate(yaml.safe_load(Path(config_file).read_text()))
        _get_global_client().deploy_apps(config)

    deploy()
    eventually(running, seconds=START_SECONDS)
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    while orders.get() == signal.SIGHUP:
        deploy()
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(main(*sys.argv[1:]))
