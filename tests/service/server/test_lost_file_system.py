"""The store's file system is lost while the service runs, and comes back: ext4 on a loop device."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.server import running
from tests.support.small_models import FEATURES, publish_model

SHUT_DOWN, WITHOUT_FLUSHING = 0x8004587D, 2
"""The kernel's EXT4_IOC_SHUTDOWN: every later call fails, as when a disk is pulled out."""
ROWS = {"instances": [[0.5] * FEATURES]}


def call(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path):
    """A mounted ext4, and the file that holds it."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting needs root and mkfs.ext4 (e2fsprogs)")
    image, place = tmp_path / "disk", tmp_path / "store"
    place.mkdir()
    image.touch()
    os.truncate(image, 32 * 2**20)
    assert call("mkfs.ext4", "-q", image).returncode == 0
    mounted = call("mount", "-o", "loop", image, place)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place, image
    finally:
        while call("umount", "-l", place).returncode == 0:
            pass


def lose(place: Path):
    held = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(held, SHUT_DOWN, struct.pack("I", WITHOUT_FLUSHING))
    except OSError as error:
        pytest.skip(f"the kernel shuts down no file system here: {error}")
    finally:
        os.close(held)


def test_predictions_go_on_and_stored_priors_are_there_when_the_file_system_is_back(
    place, tmp_path
):
    place, image = place
    publish_model(tmp_path / "models")
    with contextlib.ExitStack() as stack:
        store = f"sqlite:///{place}/priors.db"
        server = stack.enter_context(running(tmp_path / "models", store=store))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))

        def put(note):
            body = {"target": "uniform", "note": note}
            return client.put("/priors/default", json=body).status_code

        assert put("before") == 201
        assert client.post("/predict", json=ROWS).status_code == 200
        os.sync()
        lose(place)
        assert eventually(lambda: put("lost") == 503)
        assert client.post("/predict", json=ROWS).status_code == 200
        assert client.get("/priors/default").json()["revision"] == 1  # what was served last
        assert "prior store" in client.get("/health/ready").json()["reason"]
        assert call("umount", "-l", place).returncode == 0  # the service may still read from it
        assert client.post("/predict", json=ROWS).status_code == 200
        again = tmp_path / "again"
        shutil.copyfile(image, again)
        assert call("e2fsck", "-fy", again).returncode in (0, 1)
        assert call("mount", "-o", "loop", again, place).returncode == 0
        assert eventually(lambda: put("after") == 200, seconds=60)
        assert client.get("/priors/default").json()["revision"] == 2
        assert eventually(lambda: client.get("/health/ready").json() == {
            "ready": True, "status": "ready"
        })  # fmt: skip
        # a read may have failed meanwhile, or only writes; the end of either is logged
        trouble = server.wait_for("no prior can be changed|the priors served last stay in force")
        ends = {"no prior can be changed": "the store of priors (accepts changes|answers) again"}
        server.wait_for(ends.get(trouble[0], "the store of priors answers again"))
        assert server.terminate() == 0
        assert '"status":500' not in server.log
