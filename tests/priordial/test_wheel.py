"""The wheel works in an environment of its own, outside of a checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "priordial", "service", "training", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in [*tracked.split("\0"), "README.md", "LICENSE"]:
        if name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_three_packages_their_types_and_their_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("priordial", "service", "training"):
        assert f"{package}/py.typed" in names
    assert "service/console/index.html" in names
    assert "training/recipes/digits.toml" in names


def test_the_command_says_what_to_install_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env/bin/python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    zipfile.ZipFile(wheel).extractall(packages)

    def command(*arguments):
        return subprocess.run(
            [python, "-m", "priordial", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )

    assert command("--version").stdout.startswith("priordial ")
    for verb in (("serve",), ("train", "fit", "--data", "digits")):
        done = command(*verb)
        assert done.returncode == 1
        assert "Install it with: pip install 'priordial[" in done.stderr
        assert "Traceback" not in done.stderr
