"""The training image in a real Docker engine: what it publishes, the service's image serves."""

import pytest

from tests.images.conftest import KEEP
from tests.images.engine import build, docker, run

TAG = "priordial-training:test"
pytestmark = pytest.mark.timeout(3600)  # PyTorch from PyPI brings 3 GB of CUDA's libraries


@pytest.fixture(scope="module")
def trainer(base):
    build(TAG, "deploy/Dockerfile.training")
    yield TAG
    if not KEEP:
        run("rmi", TAG)


def test_it_trains_without_a_network_and_the_service_serves_the_result(trainer, start, tmp_path):
    for each in (tmp_path.parent, tmp_path):
        each.chmod(0o777)
    models = ("-v", f"{tmp_path}:/models")
    flags = ("fit", "--recipe", "digits", "--models", "/models")
    limits = ("--network", "none", "--cap-drop", "ALL")
    docker("run", "--rm", *limits, *models, trainer, *flags, seconds=1800)
    container = start(*models, command=("serve", "--allow-anonymous"))
    assert container.answers("/models/digits")


def test_its_user_is_not_root(trainer):
    assert docker("run", "--rm", "--entrypoint", "id", trainer, "-u").strip() == "10001"
