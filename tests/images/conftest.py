"""What the tests of the images share: the service's image, built once."""

import os
import uuid

import pytest
import yaml

from tests.images import stand_ins
from tests.images.engine import ROOT, Container, build, docker, run, why_not

PYTHON = "python:3.11.13-slim-bookworm"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
IMAGE = COMPOSE["services"]["service"]["image"]
KEEP = bool(os.environ.get("PRIORDIAL_KEEP_IMAGES"))
_provided: list[str] = []


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("images")
    for line in _provided:
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def engine():
    """A Docker engine; the images that were made here are removed at the end."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    yield
    if not KEEP:
        stand_ins.remove()


@pytest.fixture(scope="session")
def base(engine):
    _provided.append(stand_ins.provide(PYTHON))
    return PYTHON


@pytest.fixture(scope="session")
def provide(engine):
    """Sees that an image of the compose file is here."""

    def provided(name):
        _provided.append(stand_ins.provide(COMPOSE["services"][name]["image"]))

    return provided


@pytest.fixture(scope="session")
def image(base):
    """The service's image under the tag of the compose file, from the Dockerfile as it is."""
    build(IMAGE, "deploy/Dockerfile.service")
    _provided.append(f"{IMAGE}: built, {docker('images', '--format', '{{.Size}}', IMAGE).strip()}")
    yield IMAGE
    if not KEEP:
        run("rmi", IMAGE)


@pytest.fixture
def start(image):
    """Starts a container of the service's image; it is removed after the test.

    options: of `docker run`. command: after the image; by default the shipped models without keys.
    """
    names = []

    def started(*options, command=("demo", "--allow-anonymous"), ready=True):
        name = f"priordial-test-{uuid.uuid4().hex[:12]}"
        names.append(name)
        docker("run", "-d", "--name", name, "-p", "127.0.0.1::8000", *options, image, *command)
        container = Container(name)
        if ready:
            container.ready()
        return container

    yield started
    for name in names:
        run("rm", "--force", "--volumes", name)
