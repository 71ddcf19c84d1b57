"""The wheel works in an environment of its own, outside of a checkout."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.server import READY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        [
            "git",
            "ls-files",
            "-zco",
            "--exclude-standard",
            "priordial",
            "service",
            "training",
            "models",
            "pyproject.toml",
            "setup.py",
        ],
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


def test_every_link_of_the_published_readme_works_outside_of_the_repository(wheel):
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        page = opened.read(metadata).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    repository = "https://github.com/priordial/priordial"
    assert f"{repository}/raw/main/docs/before-after.svg" in links
    assert f"{repository}/blob/main/docs/tutorials/scikit-learn.md" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link for link in links if link.startswith(repository)]
    for _, _, path in (link.partition("/main/") for link in own):
        assert (ROOT / path.partition("#")[0]).exists(), path


def test_the_wheel_is_small_and_holds_the_shipped_models(wheel):
    assert wheel.stat().st_size < 2 * 2**20
    names = set(zipfile.ZipFile(wheel).namelist())
    for model in ("digits/2", "fashion/2", "fashion-la/2"):
        assert f"priordial/demo_models/{model}/model.onnx" in names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked outside of the checkout: (its folder, an environment that uses it)."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
    return folder, {**inherited, "PYTHONPATH": str(folder)}


def test_outside_of_a_checkout_the_demo_serves_and_keeps_priors_for_the_user(installed, tmp_path):
    _, environment = installed
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "priordial", "demo", "--port", "0", "--provider", "cpu"]
    with subprocess.Popen(
        command,
        cwd=elsewhere,
        env={**environment, "XDG_DATA_HOME": str(data)},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            said = []
            for line in server.stderr:
                said.append(line)
                if found := READY.search(line):
                    break
            assert found, "".join(said)
            url = found.group(1)
            sample = httpx.get(f"{url}/models/fashion/samples/7.png").content
            answer = httpx.post(f"{url}/predict", files={"image": sample}).json()
            httpx.put(f"{url}/priors", json={"target": "uniform"}).raise_for_status()
        finally:
            server.terminate()
    assert answer["predictions"][0]["label"] == "shirt"
    assert str(data / "priordial/priordial.db") in "".join(said)
    assert (data / "priordial/priordial.db").exists()
    assert list(elsewhere.iterdir()) == []


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

    assert command("--version").stdout == f"priordial {wheel.name.split('-')[1]}\n"
    for verb in (("serve",), ("train", "fit", "--data", "digits")):
        done = command(*verb)
        assert done.returncode == 1
        assert "Install it with: pip install 'priordial[" in done.stderr
        assert "Traceback" not in done.stderr
