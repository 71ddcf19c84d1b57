"""`training compare --jobs`: several runs at the same time, each in a process of its own."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.eventually import eventually
from tests.support.members import CONTEXT
from training.commands.cli import main
from training.data.image_files import ImageFiles
from training.faults import RunFailed, WrongUse
from training.loop.processes import Processes
from training.run.prepare import prepare_data
from training.run.recipe import Recipe
from training.studies import report as comparison_report
from training.studies import side_by_side
from training.studies.compare import compare
from training.studies.methods import choose
from training.studies.side_by_side import Shares, shares_of, train_side_by_side

HERE = Processes(torch.device("cpu"))
RECIPE = Recipe(data="digits", network="mlp", steps=60, lr=0.05)
FLAGS = ("--data", "digits", "--network", "mlp", "--methods", "erm,focal,ldam", "--seeds", "1")


def outcomes(out):
    return {
        path.name: {name: array for name, array in np.load(path).items() if name != "facts"}
        for path in sorted((out / "runs").glob("*.npz"))
    }


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, arrays in expected.items():
        assert list(found[name]) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[name][key], array, err_msg=f"{name} {key}")


def in_order(out, recipe=RECIPE, methods="erm,focal,ldam", **more):
    said = []
    compare(
        recipe, methods=choose(methods), seeds=range(1), out=out, processes=HERE,
        say=said.append, threads=1, **more,
    )  # fmt: skip
    return said


@pytest.fixture(scope="module", autouse=True)
def _unreported():
    """Draw no figures: that takes seconds, and no test here is about the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_report, "write", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one-by-one")
    in_order(out, jobs=1)
    return outcomes(out)


def test_the_weights_do_not_depend_on_how_many_runs_are_trained_at_the_same_time(
    tmp_path, one_by_one
):
    said = in_order(tmp_path, jobs=2)
    assert said[0] == "3 runs to train, 2 at a time"
    assert sorted(line.split("]")[0] for line in said[1:4]) == ["[1/3", "[2/3", "[3/3"]
    assert_equal(outcomes(tmp_path), one_by_one)
    assert not list((tmp_path / "runs").glob("*.pt"))


LONG = ("--steps", "400", "--lr", "0.05", "--methods", "erm,focal", "--threads", "1")


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def is_alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_signal_stops_all_runs_with_their_checkpoints_from_which_the_command_resumes(tmp_path):
    long = Recipe(data="digits", network="mlp", steps=400, lr=0.05)
    in_order(tmp_path / "undisturbed", recipe=long, methods="erm,focal", jobs=1)
    out = tmp_path / "stopped"
    arguments = ["compare", *FLAGS, *LONG, "--out", str(out), "--jobs"]
    first = subprocess.Popen(
        [sys.executable, "-m", "training", *arguments, "2"], stderr=subprocess.PIPE, text=True
    )
    # the lock of a run is there once it is about to train
    assert eventually(lambda: len(list((out / "runs").glob("*.lock"))) == 2, seconds=60)
    pids = workers_of(first)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "the same command resumes" in said
    assert "Traceback" not in said
    assert not any(is_alive(pid) for pid in pids)
    assert main([*arguments, "1"]) == 0
    assert_equal(outcomes(out), outcomes(tmp_path / "undisturbed"))


def test_when_the_first_process_is_killed_the_others_end(tmp_path):
    tasks = [Ends("run 0", tmp_path / "0")]
    first = CONTEXT.Process(target=trained, args=(tasks,))
    first.start()
    assert eventually(lambda: workers_of(first), seconds=60)
    pids = workers_of(first)
    first.kill()
    first.join()
    assert eventually(lambda: not any(is_alive(pid) for pid in pids), seconds=60)


@dataclass(frozen=True)
class Ends:
    """A run that ends its process, fails, or writes a file."""

    name: str
    path: Path
    how: str = "well"

    def finish(self, processes, *, quiet, label):
        assert label == self.name
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "fails":
            raise RunFailed(f"{self.name}: the loss is nan")
        if self.how == "wrong":
            raise KeyError("no such key")
        self.path.write_text(f"{torch.get_num_threads()} {processes.device} {quiet}")
        return 0.5


def trained(tasks, *, jobs=2):
    done = []
    train_side_by_side(
        tasks, shares=Shares(jobs, 1), device=torch.device("cpu"), quiet=True,
        done=lambda name, seconds: done.append((name, seconds)),
    )  # fmt: skip
    return done


@pytest.fixture
def forked(monkeypatch):
    """Fork the processes of the runs from one that has imported torch: how they start is not what
    the test is about.
    """
    monkeypatch.setattr(side_by_side.multiprocessing, "get_context", lambda _: CONTEXT)


@pytest.mark.usefixtures("forked")
def test_every_process_trains_with_its_share_of_the_threads(tmp_path):
    tasks = [Ends(f"run {number}", tmp_path / str(number)) for number in range(3)]
    assert sorted(trained(tasks)) == [(task.name, 0.5) for task in tasks]
    assert {task.path.read_text() for task in tasks} == {"1 cpu True"}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "run 1: its process ended by SIGKILL; the finished runs are kept"),
        ("fails", "run 1: the loss is nan"),
        ("wrong", "run 1: KeyError: 'no such key'.*; the finished runs are kept"),
    ],
)
def test_a_run_that_fails_is_named_and_those_before_it_are_kept(tmp_path, how, message):
    tasks = [Ends("run 0", tmp_path / "0"), Ends("run 1", tmp_path / "1", how)]
    with pytest.raises(RunFailed, match=message):
        trained(tasks, jobs=1)
    assert (tmp_path / "0").exists()


@pytest.fixture(scope="module")
def digits():
    return prepare_data(RECIPE)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Shares(4, 1)),
        ({"threads": 2}, Shares(2, 2)),
        ({"threads": 8}, Shares(1, 8)),
        ({"jobs": 2}, Shares(2, 2)),
        ({"jobs": 9}, Shares(9, 1)),
        ({"jobs": 1}, Shares(1, 3)),  # torch's number of threads
        ({"runs": 2}, Shares(2, 2)),
        ({"processes": Processes(torch.device("cuda"))}, Shares(1, None)),
        ({"processes": Processes(torch.device("cpu"), world=2)}, Shares(1, 3)),
    ],
)
def test_the_processors_are_divided_among_the_runs(digits, monkeypatch, asked, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(side_by_side, "available_threads", lambda: 4)
    assert shares_of(digits, **{"runs": 51, "processes": HERE} | asked) == expected


def test_runs_that_do_not_fit_the_memory_together_are_not_trained_together(digits, monkeypatch):
    monkeypatch.setattr(side_by_side, "available_threads", lambda: 4)
    monkeypatch.setattr(side_by_side, "PROCESS_BYTES", 2**50)
    assert shares_of(digits, runs=51, processes=HERE).jobs == 1


def test_a_single_job_has_no_more_threads_than_the_control_group_allows(digits, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(side_by_side, "available_threads", lambda: 2)
    assert shares_of(digits, runs=51, processes=HERE, jobs=1) == Shares(1, 2)


def test_runs_on_image_files_are_trained_one_after_another(monkeypatch):
    monkeypatch.setattr(side_by_side, "available_threads", lambda: 4)
    files = SimpleNamespace(train=SimpleNamespace(inputs=ImageFiles.__new__(ImageFiles)))
    assert shares_of(files, runs=51, processes=HERE).jobs == 1


def test_several_jobs_under_torchrun_are_refused(digits):
    two = Processes(torch.device("cpu"), world=2)
    with pytest.raises(WrongUse, match=r"--jobs 2: torchrun has started 2 processes"):
        shares_of(digits, runs=51, processes=two, jobs=2)
