"""An interrupted run resumes with the result of an uninterrupted one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def arguments(npz, tmp_path, name, *flags):
    return [
        sys.executable,
        "-m",
        "training",
        "fit",
        "--data",
        f"npz:{npz}",
        "--network",
        "mlp",
        "--steps",
        "400",
        "--lr",
        "0.05",
        "--batch",
        "16",
        "--threads",
        "1",
        "--name",
        name,
        "--models",
        str(tmp_path / "models"),
        "--runs",
        str(tmp_path / "runs"),
        "--checkpoint-steps",
        "50",
        "--json",
        *flags,
    ]


def stop_at(line_count, npz, tmp_path, name, number):
    """Start a run, send it a signal once its log has so many lines, and return its exit code."""
    log = tmp_path / "runs" / name / "steps.jsonl"
    with subprocess.Popen(
        arguments(npz, tmp_path, name),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as run:
        while run.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= line_count:
                os.kill(run.pid, number)
                break
        return run.wait()


def finish(npz, tmp_path, name, *flags):
    subprocess.run(
        arguments(npz, tmp_path, name, *flags), cwd=ROOT, check=True, capture_output=True
    )
    return (tmp_path / "models" / name / "1" / "model.onnx").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(own_npz, tmp_path, number):
    whole = finish(
        own_npz, tmp_path, "whole", "--resume"
    )  # there is no checkpoint: it starts afresh
    code = stop_at(120, own_npz, tmp_path, "parted", number)
    assert code == (1 if number == signal.SIGINT else -number)
    assert not (tmp_path / "models" / "parted").exists()
    assert (tmp_path / "runs" / "parted" / "checkpoint.pt").exists()
    assert finish(own_npz, tmp_path, "parted", "--resume") == whole
    logs = [(tmp_path / "runs" / name / "steps.jsonl").read_text() for name in ("whole", "parted")]
    assert logs[0] == logs[1]


def test_a_checkpoint_of_other_settings_is_refused_by_name(command, own_npz, tmp_path):
    stop_at(60, own_npz, tmp_path, "other", signal.SIGKILL)
    code, _, err = command(*arguments(own_npz, tmp_path, "other", "--resume", "--lr", "0.5")[3:])
    assert code == 2
    assert "lr was 0.05 and is 0.5" in err


def test_a_damaged_checkpoint_is_named(command, own_npz, tmp_path):
    checkpoint = tmp_path / "runs" / "torn" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"PK\x03\x04")
    code, _, err = command(*arguments(own_npz, tmp_path, "torn", "--resume")[3:])
    assert code == 1
    assert "checkpoint.pt" in err
