"""A shell completes the verbs and flags of the command."""

import subprocess
import sys

import pytest

from priordial.__main__ import main
from priordial.completion import SHELLS


def _script(capsys, shell):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["ser"], "serve"),
        (["serve", "--max-batch"], "--max-batch-rows"),
        (["train", "fi"], "fit"),
        (["train", "fit", "--lo"], "--loss --loss-option --loss-tau"),
        (["train", "fit", "--loss", "erm", "--resu"], "--resume"),
        (["priors", "roll"], "rollback"),
        (["priors", "rollback", "--no"], "--note"),
        (["score", "--ou"], "--out"),
    ],
)
def test_bash_completes_what_was_typed(capsys, typed, expected):
    script = _script(capsys, "bash")
    words = " ".join(["priordial", *typed])
    typing = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _priordial; echo ${{COMPREPLY[@]}}"
    program = f"{script}\n{typing}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_names_every_verb(capsys, shell):
    script = _script(capsys, shell)
    assert [
        verb for verb in ("serve", "import", "priors", "train", "score") if verb not in script
    ] == []


def test_another_shell_is_wrong_use(capsys):
    assert main(["completion", "powershell"]) == 2
    assert "bash|zsh|fish" in capsys.readouterr().err


def test_completion_does_not_wait_for_torch():
    code = (
        "import sys; from priordial.__main__ import main; main(['completion', 'bash']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
