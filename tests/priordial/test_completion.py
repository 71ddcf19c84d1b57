"""A shell completes the verbs and flags of the command."""

import os
import pty
import shutil
import subprocess
import sys

import pytest

from priordial.__main__ import main
from priordial.completion import SHELLS


def _script(capsys, shell):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


TYPED = pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ser", "serve"),
        ("serve --max-batch", "--max-batch-rows"),
        ("demo --max-batch", "--max-batch-rows"),
        ("train fi", "fit"),
        ("train fit --lo", "--loss --loss-option --loss-tau"),
        ("train fit --loss erm --resu", "--resume"),
        ("priors roll", "rollback"),
        ("priors rollback --no", "--note"),
        ("score --ou", "--out"),
    ],
)


@TYPED
def test_bash_completes_what_was_typed(capsys, typed, expected):
    words = typed.split()
    typing = (
        f"COMP_WORDS=(priordial {typed}); COMP_CWORD={len(words)}; _priordial; "
        "echo ${COMPREPLY[@]}"
    )
    program = f"{_script(capsys, 'bash')}\n{typing}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@TYPED
def test_fish_completes_what_was_typed(capsys, tmp_path, typed, expected):
    _installed("fish")
    program = f"{_script(capsys, 'fish')}\ncomplete -C 'priordial {typed}'"
    command = ["fish", "--no-config", "-c", program]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert (
        " ".join(sorted(line.split("\t")[0] for line in done.stdout.split("\n") if line))
        == expected
    )


def test_zsh_completes_what_was_typed(capsys, tmp_path):
    _installed("zsh")
    file = tmp_path / "priordial.zsh"
    file.write_text(_script(capsys, "zsh"))
    typed = ("ser", "train fi", "train fit --loss erm --resu", "priors rollback --no", "demo --wor")
    terminal, inside = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
        env={**os.environ, "TERM": "dumb", "HOME": str(tmp_path)},
        start_new_session=True,
    )
    os.close(inside)
    try:
        setup = f"autoload -U compinit && compinit -D -u; source {file}; print -r set''-up"
        os.write(terminal, f'priordial() {{ print -r -- "got[$*]" }}; {setup}\n'.encode())
        _read_until(terminal, b"set-up")
        found = []
        for line in typed:
            os.write(terminal, f"priordial {line}\t\n".encode())
            seen = _read_until(terminal, b"]\r\n")
            found.append(seen.rpartition(b"got[")[2].partition(b"]")[0].decode())
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
    assert found == [
        "serve",
        "train fit",
        "train fit --loss erm --resume",
        "priors rollback --note",
        "demo --workers",
    ]


def _installed(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (Debian: {shell})")


def _read_until(terminal, end):
    seen = b""
    while end not in seen:
        seen += os.read(terminal, 65536)
    return seen


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
