"""Two agents of torchrun, as on two machines: losing a worker does not change the result."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.proxied import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 600
"""Seconds: a restart imports PyTorch twice more, which a loaded machine does slowly."""


def agents(home, port):
    """Both agents; a group of one would begin only after a minute without the other."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"),
        *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "x"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", "last_call_timeout=60"),
        *("--max-restarts", "5", "--local-addr", "127.0.0.1", "-m", "training", "fit"),
        *("--name", "run", "--data", "digits", "--network", "mlp", "--batch", "64"),
        *("--steps", "300", "--checkpoint-steps", "8", "--threads", "1", "--quiet", "--resume"),
        *("--models", str(home / "models"), "--runs", str(home / "runs")),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(command, cwd=ROOT, env=environment, **quiet) for _ in range(2)]


def trained(home, *, lose_worker):
    """Log and graph of a run, from which one worker may be killed on the way."""
    home.mkdir()
    log = home / "runs" / "run" / "steps.jsonl"
    started = agents(home, free_port())
    try:
        if lose_worker:
            eventually(
                lambda: log.exists() and log.read_bytes().count(b"\n") >= 40, seconds=PATIENCE
            )
            pid = started[1].pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        assert [each.wait(PATIENCE) for each in started] == [0, 0]
    finally:
        for each in started:
            with contextlib.suppress(psutil.Error):  # workers outlive an agent that is killed
                for worker in psutil.Process(each.pid).children(recursive=True):
                    worker.kill()
            each.kill()
            each.wait()
    return log.read_text(), (home / "models/run/1/model.onnx").read_bytes()


@pytest.mark.timeout(2 * PATIENCE)
def test_a_worker_lost_on_one_of_two_machines_changes_nothing_of_the_result(tmp_path):
    whole = trained(tmp_path / "whole", lose_worker=False)
    assert trained(tmp_path / "parted", lose_worker=True) == whole
