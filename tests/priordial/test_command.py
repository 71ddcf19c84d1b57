"""The command `priordial` starts every verb, and says what to install for a missing library."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from priordial.__main__ import VERBS, main
from service.__main__ import main as serve
from service.contract.extras import VERSION
from training.__main__ import run as train

ROOT = Path(__file__).parents[2]


def _run(*command, blocked=""):
    """A program in its own process, where the libraries named in `blocked` cannot be imported."""
    code = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked.split()!r}]; "
        f"sys.argv[1:] = {list(command[1:])!r}; "
        f"import runpy; runpy.run_module({command[0]!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def _verbs_of_service():
    usage = _run("service", "--help").stdout
    return re.findall(r"^    (\w+) ", usage, re.MULTILINE)


def test_help_lists_every_verb_of_both_programs():
    assert sorted(VERBS) == sorted([*_verbs_of_service(), "demo", "train", "score", "completion"])


def test_help_is_printed_on_request_and_for_an_empty_command_line(capsys):
    assert main(["--help"]) == 0
    asked = capsys.readouterr().out
    assert main([]) == 2
    assert capsys.readouterr().err == asked


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (main, []),
        (serve, []),
        (serve, ["priors", "list"]),
        (train, []),
        *((main, [verb]) for verb in VERBS),
        (main, ["train", "fit"]),
    ],
)
def test_every_command_and_verb_prints_the_version(start, line, capsys):
    try:
        status = start([*line, "--version"])
    except SystemExit as end:  # of argparse
        status = end.code
    assert status == 0
    assert capsys.readouterr().out == f"priordial {VERSION}\n"


def test_a_misspelt_verb_is_answered_with_the_nearest_one(capsys):
    assert main(["serv"]) == 2
    assert "no verb 'serv'; did you mean 'serve'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "name"), [("priordial", "priordial"), ("service", "python -m service")]
)
def test_a_flag_before_the_verb_is_answered_with_the_command_to_write(package, name):
    done = _run(package, "--models", "models")
    assert done.returncode == 2
    assert f"'--models' came before a verb; to serve, write: {name} serve --models …" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("priordial --version >&-", "priordial: standard output is closed; give the command a "),
        ("service key a >&-", "python -m service: standard output is closed; give the command a "),
        ("training data digits >&-", "training: standard output is closed; give the command a "),
        (
            "priordial --help >/dev/full",
            "priordial: standard output: No space left on device; make room",
        ),
        ("service doctor >/dev/full", "python -m service: standard output: No space left"),
        (
            "priordial key bob >/dev/full",
            "error: standard output: No space left on device; make room",
        ),
    ],
)
def test_output_that_nobody_gets_is_a_failure_in_one_line(line, said):
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m {line}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert told.startswith(said)


def test_nothing_that_is_meant_for_a_closed_stderr_appears_in_the_output():
    command = f"{shlex.quote(sys.executable)} -m service key a 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0
    assert re.fullmatch(r"priordial_\S+\n", done.stdout)


@pytest.mark.parametrize("verb", ["serve", "train", "score"])
def test_errors_and_usage_name_the_command_that_was_typed(verb):
    done = _run("priordial", verb, "--no-such-flag")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: priordial")


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        (("priordial", "serve"), "fastapi", "serve"),
        (("priordial", "serve"), "sqlalchemy", "serve"),
        (("priordial", "train", "data", "digits"), "sklearn", "training"),
        (("service", "serve"), "fastapi", "serve"),
        (("service", "doctor"), "sqlalchemy", "serve"),
        (("training", "fit", "--data", "digits"), "torch", "training"),
    ],
)
def test_a_missing_library_is_one_line_with_the_command_that_installs_it(command, library, extra):
    done = _run(*command, blocked=library)
    assert done.returncode == 1
    line = f"{library} is not installed. Install it with: pip install 'priordial[{extra}]'\n"
    assert done.stderr.endswith(line)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("doctor",), ("import", "--help")], ids=" ".join)
def test_a_reader_that_stops_early_gets_no_traceback(command):
    program = [sys.executable, "-m", "priordial", *command]
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        started.stdout.close()
        reported = started.stderr.read()
    assert "Traceback" not in reported
    assert "BrokenPipeError" not in reported
