"""`training score --engine ray` writes the file that one process writes, whatever was killed."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.small_models import FEATURES, publish_model
from training.run.scoring.score_rows import score_rows
from training.run.scoring.scorer import Scoring

pytest.importorskip("ray", reason="Ray is not installed: pip install 'priordial[ray]'")

ROOT = Path(__file__).parents[2]
ROWS, BLOCK = 120_000, 200


def family(process):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def kill(processes):
    for each in processes:
        with contextlib.suppress(psutil.Error):
            each.send_signal(signal.SIGKILL)


def test_rows_scored_on_ray_are_those_of_one_process_though_a_worker_and_the_run_were_killed(
    tmp_path,
):
    publish_model(tmp_path / "models")
    data, model = tmp_path / "rows.npy", tmp_path / "models/linear/1"
    np.save(data, np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype(np.float32))
    parts = tmp_path / "ray.parquet.parts"
    command = [
        *(sys.executable, "-m", "training", "score", str(data), "--model", str(model)),
        *("--out", str(tmp_path / "ray.parquet"), "--engine", "ray", "--workers", "2"),
        *("--block-rows", str(BLOCK), "--threads", "1"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def finished(at_least):
        return len(list(parts.glob("*.parquet"))) >= at_least

    def workers(process):
        found = []
        for each in family(process):
            with contextlib.suppress(psutil.Error):
                if "MapWorker" in " ".join(each.cmdline()):
                    found.append(each)
        return found

    first = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: finished(10), seconds=90)
        kill(workers(first)[:1])
        before = len(list(parts.glob("*.parquet")))
        eventually(lambda: finished(before + 20) or first.poll() is not None, seconds=90)
    finally:
        rest = family(first)
        first.kill()
        first.wait()
        kill(rest)
    assert parts.exists(), "the run was killed before its end"
    again = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    score_rows(str(data), tmp_path / "one.parquet", Scoring(model, threads=1), block_rows=BLOCK)
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not parts.exists()
