"""`python -m tests.on_ray.cluster CONFIG.yaml FOLDER`: Ray Serve on loopback until SIGTERM.

It writes the base URL once the application runs.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def main(config_file: str, folder: str) -> int:
    """Start a cluster of this machine and the application of a configuration file."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(config_file).read_text()))
    ray.init(
        num_cpus=8,  # as Ray counts them: the replicas of a test share what there is
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="warning",
        log_to_driver=False,
        _temp_dir=folder,
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    from ray.serve._private.api import _get_global_client  # there is no public way

    client = _get_global_client()
    client.deploy_apps(config, _blocking=True)
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    over.wait()
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(main(*sys.argv[1:]))
