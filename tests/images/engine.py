"""The Docker engine of this machine, through its own command line."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1800
PULL_SECONDS = 120


def why_not() -> str | None:
    """Why no image can be built here; None where an engine answers."""
    if shutil.which("docker") is None:
        return "docker is not installed (Debian: docker.io)"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no Docker engine answers: {done.stderr.strip()}"


def docker(*arguments: object, stdin: str | None = None, seconds: float = 120) -> str:
    """What `docker ARGUMENTS` prints on stdout; AssertionError with stderr where it fails."""
    done = run(*arguments, stdin=stdin, seconds=seconds)
    assert done.returncode == 0, f"docker {arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


def run(
    *arguments: object, stdin: str | None = None, seconds: float = 120
) -> "subprocess.CompletedProcess[str]":
    """`docker ARGUMENTS`, whatever its exit status."""
    return subprocess.run(
        ["docker", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def inspect(name: str) -> dict[str, Any]:
    """What the engine knows of an image or a container; {} where there is none."""
    done = run("inspect", name)
    return json.loads(done.stdout)[0] if done.returncode == 0 else {}


def build(tag: str, dockerfile: str, *, labels: tuple[str, ...] = ()) -> None:
    """Build an image of the project as its documents say, from the tree that is here."""
    proxies = [
        each
        for name in ("http_proxy", "https_proxy", "no_proxy")
        for each in ("--build-arg", name)  # the value comes from the environment, if it has one
    ]
    marks = [each for label in labels for each in ("--label", label)]
    docker(
        "build", *proxies, *marks, "-t", tag, "-f", ROOT / dockerfile, ROOT, seconds=BUILD_SECONDS
    )


class Container:
    """A running container whose port 8000 is published on a free port of loopback."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def url(self) -> str:
        """Its address, which changes with each start."""
        return f"http://{docker('port', self.name, '8000/tcp').splitlines()[0]}"

    @property
    def log(self) -> str:
        """Everything on stdout and stderr so far."""
        done = run("logs", self.name)
        return done.stdout + done.stderr

    @property
    def state(self) -> dict[str, Any]:
        """Docker's State: Status, ExitCode, OOMKilled, Health and others."""
        state: dict[str, Any] = inspect(self.name)["State"]
        return state

    def exec(self, *command: object, stdin: str | None = None) -> str:
        """What a command prints in the container, as the container's user."""
        return docker("exec", "-i", self.name, *command, stdin=stdin)

    def python(self, program: str) -> str:
        """What a program of Python prints in the container."""
        return self.exec("python", "-", stdin=program)

    def ready(self, *, seconds: float = 90) -> None:
        """Wait until it is ready to serve; AssertionError with its log where it is not."""
        try:
            eventually(lambda: self.answers("/health/ready"), seconds=seconds)
        except AssertionError as error:
            error.add_note(f"{self.state}\n{self.log[-20_000:]}")
            raise

    def answers(self, path: str) -> bool:
        """Whether a GET of this path is answered with 200."""
        try:
            return httpx.get(self.url + path, timeout=5).status_code == 200
        except (httpx.HTTPError, AssertionError):
            return False
