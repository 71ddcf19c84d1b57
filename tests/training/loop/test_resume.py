"""An interrupted run resumes with the result of an uninterrupted one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.commands.cli import main

ROOT = Path(__file__).parents[3]


def flags(npz, home, name, *more):
    return [
        "fit",
        *("--data", f"npz:{npz}", "--network", "mlp", "--lr", "0.05", "--batch", "16"),
        *("--steps", "400", "--threads", "1", "--name", name, "--checkpoint-steps", "50"),
        *("--models", str(home / "models"), "--runs", str(home / "runs"), "--quiet", *more),
    ]


def stop_at(line_count, npz, home, name, number):
    """Start a run, send it a signal once its log has so many lines, and return its exit code."""
    log = home / "runs" / name / "steps.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "training", *flags(npz, home, name)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as run:
        while run.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= line_count:
                os.kill(run.pid, number)
                break
        return run.wait()


def finish(npz, home, name):
    """Fit in this process with --resume; return the model and the log."""
    assert main(flags(npz, home, name, "--resume")) == 0
    model = home / "models" / name / "1" / "model.onnx"
    return model.read_bytes(), (home / "runs" / name / "steps.jsonl").read_text()


@pytest.fixture(scope="module")
def undisturbed(own_npz, tmp_path_factory):
    """The model and the log of a run that was not stopped; --resume without a checkpoint."""
    return finish(own_npz, tmp_path_factory.mktemp("whole"), "whole")


@pytest.fixture(scope="module")
def stopped(own_npz, tmp_path_factory):
    """Return a function that copies, to a folder, a run that a signal has stopped."""
    homes = {}

    def copy(number, home):
        if number not in homes:
            homes[number] = tmp_path_factory.mktemp("stopped")
            code = stop_at(120, own_npz, homes[number], "parted", number)
            assert code == (1 if number == signal.SIGINT else -number)
        shutil.copytree(homes[number], home, dirs_exist_ok=True)

    return copy


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    own_npz, tmp_path, undisturbed, stopped, number
):
    stopped(number, tmp_path)
    assert not (tmp_path / "models" / "parted").exists()
    assert (tmp_path / "runs" / "parted" / "checkpoint.pt").exists()
    assert finish(own_npz, tmp_path, "parted") == undisturbed


def test_a_checkpoint_of_other_settings_is_refused_by_name(command, own_npz, tmp_path, stopped):
    stopped(signal.SIGKILL, tmp_path)
    code, _, err = command(*flags(own_npz, tmp_path, "parted", "--resume", "--lr", "0.5"))
    assert code == 2
    assert "lr was 0.05 and is 0.5" in err


def test_a_damaged_checkpoint_is_named(command, own_npz, tmp_path):
    checkpoint = tmp_path / "runs" / "torn" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"PK\x03\x04")
    code, _, err = command(*flags(own_npz, tmp_path, "torn", "--resume"))
    assert code == 1
    assert "checkpoint.pt" in err
