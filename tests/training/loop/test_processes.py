"""Several processes are one run, and the pieces of a batch are the batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.members import CONTEXT, open_store, start_member
from tests.support.train_only import train_only
from training.loop.processes import Processes

ROOT = Path(__file__).parents[3]
STEPS = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Small colour pictures of three classes, as arrays."""
    rng = np.random.default_rng(0)
    labels = {"train": np.repeat([0, 1, 2], [60, 30, 12]), "test": np.repeat([0, 1, 2], 6)}
    arrays = {}
    for split, y in labels.items():
        noise = rng.integers(0, 160, (len(y), 12, 12, 3))
        noise[np.arange(len(y)), :, :, y] += 60
        arrays |= {f"x_{split}": noise.astype(np.uint8), f"y_{split}": y}
    path = tmp_path_factory.mktemp("pictures") / "own.npz"
    np.savez(path, **arrays)
    return path


def on_two(*arguments):
    """The command that runs a module of Python on two processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    return [sys.executable, *launcher, *map(str, arguments)]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def finished(arguments):
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def losses(log):
    return np.array([json.loads(line)["loss"] for line in log.read_text().splitlines()])


def all_well(members):
    for member in members:
        member.join(timeout=280)
    assert [member.exitcode for member in members] == [0] * len(members)


def average(connection):
    """Say so and join; then send the mean of 2 * rank over the processes."""
    connection.send("joins")
    processes = Processes.join("cpu")
    connection.send(processes.mean(torch.tensor([processes.rank * 2.0])).item())
    # ends as a process that was killed: it does not leave the group


@pytest.mark.parametrize("late", [0, 1])
def test_a_second_attempt_with_the_store_of_the_first_does_not_look_for_its_processes(late):
    store = open_store()
    for _ in range(2):
        members, ends = {}, {}
        for rank in (1 - late, late):  # the late one comes once the other one tries to join
            ends[rank], other = CONTEXT.Pipe()
            members[rank] = start_member(store, rank, average, other)
            other.close()
            assert ends[rank].recv() == "joins"
        assert [ends[rank].recv() for rank in range(2)] == [1.0, 1.0]
        all_well(members.values())


@pytest.fixture(scope="module")
def both(pictures, own_npz, tmp_path_factory):
    """Losses by run and number of processes: the same settings on one process and on two."""
    shared = {"batch": 32, "steps": STEPS, "warmup": 0.0}
    hidden = "tests.support.odd_networks:plain"  # dropout would be drawn by each process
    mlp = {"data": f"npz:{own_npz}", "network": hidden, **shared}
    cnn = {"data": f"npz:{pictures}", "network": "cnn", "augment": "crop-flip", "pad": 2, **shared}
    runs = {
        "mlp fp32": mlp,
        "mlp fp64": mlp | {"precision": "fp64"},
        "mlp in pieces": mlp | {"precision": "fp64", "accumulate": 4},
        "linear fp32": mlp | {"network": "linear", "loss": "logit-adjusted"},
        "cnn fp32": cnn,
        "cnn fp64": cnn | {"precision": "fp64"},
    }
    home = tmp_path_factory.mktemp("logs")
    train_only(home / "1", runs)
    store = open_store()
    all_well([start_member(store, rank, train_only, home / "2", runs) for rank in range(2)])
    return {(name, n): losses(home / str(n) / f"{name}.jsonl") for name in runs for n in (1, 2)}


@pytest.mark.parametrize(
    ("name", "steps", "within"),
    [
        ("mlp fp32", STEPS, 1e-6),
        ("linear fp32", STEPS, 1e-6),
        ("mlp in pieces", STEPS, 1e-12),
        # batch normalisation makes the rounding of a sum in two halves a few times larger at each
        # step
        ("cnn fp32", 3, 1e-6),
        ("cnn fp64", STEPS, 1e-11),
    ],
)
def test_two_processes_have_the_losses_of_one(both, name, steps, within):
    one, two = both[name, 1], both[name, 2]
    assert len(one) == len(two) == STEPS
    assert np.abs(one - two)[:steps].max() < within
    assert one[-1] < one[0]


def test_a_batch_in_pieces_has_the_losses_of_the_whole(both):
    assert np.abs(both["mlp in pieces", 1] - both["mlp fp64", 1]).max() < 1e-12


def fit(home, name, npz, *flags):
    places = ("--models", home / "models", "--runs", home / "runs", "--checkpoint-steps", 8)
    learnt = (
        "--network",
        "tests.training.loop.test_processes:wavering",
        "--batch",
        16,
        "--steps",
        300,
    )
    fixed = ("--name", name, "--data", f"npz:{npz}", "--threads", 1, "--quiet")
    return on_two("training", "fit", *fixed, *learnt, *places, *flags)


def kill_after(lines, home, name, npz):
    """Start a run and kill its processes, and torchrun, once the log has so many lines."""
    log = home / "runs" / name / "steps.jsonl"
    with subprocess.Popen(
        fit(home, name, npz),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as run:  # fmt: skip
        while run.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= lines:
                workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
                for pid in (run.pid, *map(int, workers)):
                    os.kill(pid, signal.SIGKILL)
                break
        assert run.wait() == -signal.SIGKILL


def test_two_processes_that_were_killed_go_on_as_if_nothing_had_happened(own_npz, tmp_path):
    finished(fit(tmp_path, "whole", own_npz))
    kill_after(40, tmp_path, "parted", own_npz)
    logs = [tmp_path / "runs" / name / "steps.jsonl" for name in ("whole", "parted")]
    assert not (tmp_path / "models" / "parted").exists()
    assert len(losses(logs[1])) < 300
    finished(fit(tmp_path, "parted", own_npz, "--resume"))
    assert logs[0].read_text() == logs[1].read_text()
    models = [tmp_path / "models" / name / "1" / "model.onnx" for name in ("whole", "parted")]
    assert models[0].read_bytes() == models[1].read_bytes()


def wavering(num_classes):
    """A network with dropout: a resumed run needs the generator of every process."""
    from torch import nn

    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, num_classes))


def test_a_batch_that_cannot_be_parted_is_refused(own_npz, command, tmp_path):
    code, _, err = command(
        "fit", "--data", f"npz:{own_npz}", "--network", "mlp", "--steps", 2,
        "--batch", 16, "--accumulate", 3,
        "--models", tmp_path / "models", "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert code == 2
    assert "--batch 16 cannot be divided" in err
    assert not list(tmp_path.iterdir())  # before anything is tried or written
