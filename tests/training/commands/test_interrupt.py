"""Ctrl-C ends a command with status 1 and a line, wherever it comes, and never with a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from training.loop.interrupt import StopSignal, held_back

ROOT = Path(__file__).parents[3]
IN_CODE_OF_A_STRING = """
import os, signal
exec("os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(10 ** 6): pass")
"""
IN_CODE_THAT_CATCHES_ALL = """
import os, signal, torch
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10 ** 6): pass
except BaseException:
    pass

def net(classes):
    return torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(64, classes))
"""
WHILE_THE_FOLDERS_ARE_TRIED = """
import os, signal, torch

class Net(torch.nn.Linear):
    def forward(self, rows):
        if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(rows.flatten(1))

def net(classes):
    return Net(64, classes)
"""
AT_THE_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""
WHILE_IMPORTING = """
import builtins, os, signal, sys
from {module} import {function} as run
real = builtins.__import__

def stopping(name, *others):
    if name == "training.commands.cli":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *others)

builtins.__import__ = stopping
sys.argv = ["command", *{arguments}]
sys.exit({call})
"""


def ended(home, *arguments):
    """Exit status, stdout and stderr of a Python process in `home`."""
    path = os.pathsep.join([str(ROOT), str(home)])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_an_interrupt_within_code_made_from_a_string_gives_status_1(tmp_path):
    """CPython would end the process by SIGINT although the command returns 1."""
    (tmp_path / "own.py").write_text(IN_CODE_OF_A_STRING)
    fit = ("fit", "--data", "digits", "--network", "own:net", "--quiet")
    code, _, said = ended(tmp_path, "-m", "training", *fit)
    assert code == 1
    assert said.startswith("training: stopped; the same command starts again, or with --resume")
    assert said.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_an_interrupt_that_a_library_swallows_stops_the_next_stage(tmp_path):
    (tmp_path / "own.py").write_text(IN_CODE_THAT_CATCHES_ALL)
    fit = ("fit", "--data", "digits", "--network", "own:net", "--quiet")
    code, _, said = ended(tmp_path, "-m", "training", *fit)
    assert code == 1
    assert said.startswith("training: stopped; the same command starts again")
    assert not (tmp_path / "models").exists()


def test_sigterm_before_the_first_step_leaves_no_folder_behind(tmp_path):
    (tmp_path / "own.py").write_text(WHILE_THE_FOLDERS_ARE_TRIED)
    fit = ("fit", "--data", "digits", "--network", "own:net", "--quiet")
    code, _, said = ended(tmp_path, "-m", "training", *fit)
    assert code == 1, said
    assert said.startswith("training: stopped; the same command starts again")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("front", [("training",), ("priordial", "train")])
def test_an_interrupt_after_the_result_changes_nothing(tmp_path, front):
    (tmp_path / "sitecustomize.py").write_text(AT_THE_END)
    code, out, said = ended(tmp_path, "-m", *front, "data", "digits", "--json")
    assert (code, said) == (0, "")
    assert out.startswith("{")


@pytest.mark.parametrize(
    ("module", "function", "call", "said"),
    [
        ("training.__main__", "run", "run(alone=True)", "training: stopped\n"),
        ("priordial.__main__", "main", "run()", "priordial train: stopped\n"),
    ],
)
def test_an_interrupt_while_the_verb_is_imported_is_a_line(tmp_path, module, function, call, said):
    front = ["train"] if module.startswith("priordial") else []
    code = WHILE_IMPORTING.format(
        module=module, function=function, call=call, arguments=[*front, "data", "digits"]
    )
    assert ended(tmp_path, "-c", code) == (1, "", said)


def test_a_process_started_with_ctrl_c_held_back_never_sees_it_and_this_one_does():
    with StopSignal() as stop:
        with held_back():
            child = subprocess.Popen(
                [sys.executable, "-c", "print(1, flush=True); input()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        eventually(lambda: stop.requested)  # another thread may take the signal, and pass it on
    assert child.communicate(b"\n")[0] == b""
    assert child.returncode == 0
