"""An unfinished run is never lost by accident, and two runs never write to one folder."""

import subprocess
import sys

import pytest
import torch

from training.faults import WrongUse
from training.loop.checkpoint import CheckpointFile, RunState
from training.loop.interrupt import Interrupted
from training.loop.processes import Processes
from training.loop.train import Keeping

CPU = Processes(torch.device("cpu"))


def flags(own_npz, home, *more):
    return (
        "fit", "--name", "own", "--data", f"npz:{own_npz}", "--steps", 20, "--quiet", "--json",
        "--network", "mlp", "--lr", 0.05,
        "--samples", 0, "--models", home / "models", "--runs", home / "runs", *more,
    )  # fmt: skip


@pytest.fixture
def unfinished(own_npz, tmp_path, monkeypatch, command):
    """The checkpoint of a run that was stopped while it published."""

    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("training.run.run.publish", full)
        code, _, err = command(*flags(own_npz, tmp_path))
    assert code == 1
    assert "No space left on device" in err
    return err, tmp_path / "runs" / "own" / "checkpoint.pt"


def test_a_failure_after_the_training_says_how_to_publish_without_training_again(
    unfinished, own_npz, tmp_path, command
):
    err, checkpoint = unfinished
    assert f"kept in {checkpoint}" in err
    assert "with --resume" in err
    code, result, _ = command(*flags(own_npz, tmp_path, "--resume"))
    assert code == 0
    assert result["bundle"].endswith("own/1")
    assert not checkpoint.exists()


def test_ctrl_c_after_the_training_says_how_to_publish_without_training_again(
    own_npz, tmp_path, monkeypatch, command
):
    def stopped(*_arguments, **_keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("training.run.run.publish", stopped)
        code, _, err = command(*flags(own_npz, tmp_path))
    assert code == 1
    checkpoint = tmp_path / "runs" / "own" / "checkpoint.pt"
    assert f"kept in {checkpoint}, --resume continues from it" in err
    code, result, _ = command(*flags(own_npz, tmp_path, "--resume"))
    assert code == 0
    assert result["bundle"].endswith("own/1")


def test_an_error_of_a_library_after_the_training_is_told_and_the_network_kept(
    own_npz, tmp_path, monkeypatch, command
):
    def raising(*_arguments, **_keywords):
        raise ArithmeticError("no such luck")

    monkeypatch.setattr("training.run.run.publish", raising)
    code, _, err = command(*flags(own_npz, tmp_path))
    assert code == 1
    assert "after the training: ArithmeticError: no such luck (test_unfinished.py, line" in err
    assert "with --resume continues after the training" in err


def test_a_run_started_anew_does_not_overwrite_an_unfinished_one(
    unfinished, own_npz, tmp_path, command
):
    _, checkpoint = unfinished
    before = checkpoint.read_bytes()
    code, _, err = command(*flags(own_npz, tmp_path))
    assert code == 2
    assert "holds an unfinished run. Give --resume" in err
    assert "--restart" in err
    assert checkpoint.read_bytes() == before
    assert command(*flags(own_npz, tmp_path, "--restart"))[0] == 0


def test_a_changed_flag_is_named_when_a_run_is_resumed(unfinished, own_npz, tmp_path, command):
    code, _, err = command(*flags(own_npz, tmp_path, "--resume", "--weight-decay", 0.1))
    assert code == 2
    assert "--weight-decay was 0.0005 and is 0.1" in err
    assert "leave out --resume" not in err


def test_a_flag_that_was_not_given_is_said_so_and_a_contradiction_refused(
    unfinished, own_npz, tmp_path, command, capsys
):
    _, _, err = command(*flags(own_npz, tmp_path, "--resume", "--validation-per-class", 1))
    assert "--validation-per-class was not given and is 1" in err
    with pytest.raises(SystemExit, match="2"):
        command(*flags(own_npz, tmp_path, "--resume", "--restart"))
    assert "--restart: not allowed with argument --resume" in capsys.readouterr().err


def test_a_checkpoint_that_was_cut_short_is_told_with_the_way_on(
    unfinished, own_npz, tmp_path, command
):
    _, checkpoint = unfinished
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    code, _, err = command(*flags(own_npz, tmp_path, "--resume"))
    assert code == 1
    assert "is not a whole checkpoint of this command (it was cut short" in err
    assert "--restart discards it" in err
    assert "workbook" not in err


def test_a_checkpoint_of_a_network_that_was_edited_is_refused_with_what_differs(tmp_path):
    file = CheckpointFile(tmp_path / "checkpoint.pt", {"network": "own:net"})

    def state(width):
        network = torch.nn.Linear(3, width)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        return RunState(network, optimiser, torch.amp.GradScaler(enabled=False))

    file.save(state(4), step=1, random_states=[])
    with pytest.raises(WrongUse, match=r"of another network than this own:net: .*size mismatch"):
        file.load(state(5), device=torch.device("cpu"))


def test_a_second_process_cannot_write_the_run_of_the_first(tmp_path):
    path = tmp_path / "own" / "checkpoint.pt"
    code = (
        "import pathlib, sys; from training.loop.checkpoint import CheckpointFile\n"
        "with CheckpointFile(pathlib.Path(sys.argv[1]), {}).locked(): pass"
    )
    held = Keeping(checkpoint=CheckpointFile(path, {}))
    with held.begun(CPU):
        other = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
        assert "is training this run; wait until it has finished" in other.stderr
    with held.begun(CPU):
        pass
    assert not list(path.parent.iterdir())


def test_a_lock_ends_with_the_run_that_fails(tmp_path):
    held = Keeping(checkpoint=CheckpointFile(tmp_path / "own" / "checkpoint.pt", {}))
    with pytest.raises(WrongUse, match="first"), held.begun(CPU):
        raise WrongUse("first")
    with held.begun(CPU):
        pass


def test_a_signal_after_the_last_step_is_not_lost(own_npz, tmp_path, monkeypatch):
    from training.loop import train as loop
    from training.run.prepare import prepare
    from training.run.recipe_file import make
    from training.run.run import fit_network

    class Late(loop.StopSignal):
        def __exit__(self, *details):
            super().__exit__(*details)
            self.requested = True

    monkeypatch.setattr(loop, "StopSignal", Late)
    recipe = make(None, {"data": f"npz:{own_npz}", "network": "mlp", "steps": 3, "batch": 8})
    keeping = Keeping(quiet=True)
    with pytest.raises(Interrupted, match="stopped after 3 of 3 steps"):
        fit_network(recipe, prepare(recipe), keeping=keeping, processes=CPU)
