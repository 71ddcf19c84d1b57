"""A scoring run that ends early loses no finished block, leaves no process behind, and is never
mixed with another one.
"""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.support.eventually import eventually
from tests.support.small_models import inputs, publish_model
from training.faults import RunFailed, WrongUse
from training.loop.interrupt import stopped_by_sigterm
from training.run.scoring.score_rows import score_rows
from training.run.scoring.scorer import Scoring

ROOT = Path(__file__).parents[4]
ENDLESS = """
import os, time
from training.run.scoring.processes import run_in_processes

class Share:
    def run(self, *, report=None):
        open(f"child-{os.getpid()}", "w").close()
        while True:
            time.sleep(0.01)

if __name__ == "__main__":
    run_in_processes([Share(), Share()])
"""


@pytest.fixture
def model(tmp_path):
    return publish_model(tmp_path / "models", name="flowers")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, inputs(2000))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def stopped_by(action, data, out, model, *, workers=1, **settings):
    """Run until two blocks are done, then call `action`."""

    def report(blocks, _rows):
        if blocks >= 2:
            action()

    scoring = Scoring(model=model, **settings)
    return score_rows(str(data), out, scoring, block_rows=50, workers=workers, report=report)


def interrupt():
    raise KeyboardInterrupt


def test_a_killed_process_is_a_line_and_the_same_command_goes_on(model, data, out, tmp_path):
    def kill():
        for child in active_children()[:1]:
            child.kill()

    with pytest.raises(RunFailed, match=r"ended by signal SIGKILL.*the same command goes on"):
        stopped_by(kill, data, out, model, workers=2)
    assert active_children() == []
    parts = names(tmp_path / "out.parquet.parts")
    assert all(name.startswith("000000-") or name in ("lock", "run.json") for name in parts)
    result = score_rows(str(data), out, Scoring(model=model), block_rows=50, workers=2)
    assert result["resumed_blocks"] == len(parts) - 2 >= 2
    whole = tmp_path / "whole.parquet"
    score_rows(str(data), whole, Scoring(model=model), block_rows=50)
    assert parquet.read_table(out).equals(parquet.read_table(whole))
    assert names(tmp_path) == ["models", "out.parquet", "rows.npy", "whole.parquet"]


def test_sigterm_ends_the_processes_and_leaves_whole_blocks_only(model, data, out, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopped_by_sigterm():
        stopped_by(lambda: os.kill(os.getpid(), signal.SIGTERM), data, out, model, workers=2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert active_children() == []
    assert not [n for n in names(tmp_path / "out.parquet.parts") if n.startswith(".")]


def test_no_process_outlives_a_killed_command(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    command = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: len(list(tmp_path.glob("child-*"))) == 2, seconds=120)
    command.kill()
    _, said = command.communicate(timeout=60)  # ends once no process holds the pipe
    assert said == ""


def test_two_runs_never_write_the_same_answers(model, data, out):
    def again():
        score_rows(str(data), out, Scoring(model=model), block_rows=50)

    with pytest.raises(WrongUse, match="another process is writing these answers"):
        stopped_by(again, data, out, model)


def test_a_lock_that_an_ending_run_has_just_deleted_keeps_the_next_run_out(
    model, data, out, monkeypatch
):
    """Between the opening of the lock and its taking, the run that held it ends."""
    real, folder = fcntl.flock, out.with_name("out.parquet.parts")
    taken = []

    def late(file, how):
        taken.append(how)
        if len(taken) == 1:
            shutil.rmtree(folder)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)

    def again():
        score_rows(str(data), out, Scoring(model=model), block_rows=50)

    with pytest.raises(WrongUse, match="another process is writing these answers"):
        stopped_by(again, data, out, model)
    assert len(taken) == 3  # the lost one, the one that counts, and that of the second run


def test_blocks_of_a_half_deleted_run_are_not_taken_for_those_of_a_new_one(model, data, out):
    with pytest.raises(KeyboardInterrupt):
        stopped_by(interrupt, data, out, model, tau=0.3)
    (out.with_name("out.parquet.parts") / "run.json").write_text("")
    result = score_rows(str(data), out, Scoring(model=model, tau=1.0), block_rows=50)
    assert result["resumed_blocks"] == 0


def test_a_file_of_the_user_in_the_folder_of_parts_is_left_alone(model, data, out, tmp_path):
    own = tmp_path / "out.parquet.parts" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    score_rows(str(data), out, Scoring(model=model))
    assert names(own.parent) == ["notes.txt"]


def test_data_that_change_while_they_are_scored_are_told(model, data, out):
    def change():
        np.save(data, inputs(2000, seed=2))

    with pytest.raises(RunFailed, match=r"rows\.npy: files changed while they were scored"):
        stopped_by(change, data, out, model)
    assert not out.exists()


def test_a_run_is_not_continued_with_another_temperature(model, data, out, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stopped_by(interrupt, data, out, model)
    warm = publish_model(tmp_path / "models", name="flowers", temperature=2.0)
    with pytest.raises(WrongUse, match="a stopped run with other model; delete it"):
        score_rows(str(data), out, Scoring(model=warm), block_rows=50)


def test_what_changed_is_told_with_its_value(model, data, out):
    with pytest.raises(KeyboardInterrupt):
        stopped_by(interrupt, data, out, model)
    with pytest.raises(WrongUse, match=r"other block_rows \(50 before, now 60\)"):
        score_rows(str(data), out, Scoring(model=model), block_rows=60)


def test_a_place_without_room_is_a_line_and_keeps_what_is_done(model, data, out, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    longest = 6_000  # a part fits, and the joined file does not

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest, hard))

    try:
        with pytest.raises(RunFailed, match=r"File too large; .*keeps the 40 finished blocks"):
            stopped_by(no_room, data, out, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    parts = tmp_path / "out.parquet.parts"
    assert not [name for name in names(parts) if name.startswith(".")]
    assert json.loads((parts / "run.json").read_text())["block_rows"] == 50
    result = score_rows(str(data), out, Scoring(model=model), block_rows=50)
    assert result["resumed_blocks"] == 40
