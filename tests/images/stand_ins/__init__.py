"""Images of our own in place of those that cannot be pulled: no registry of images is needed.

Each is Debian, made by debootstrap, with Debian's package of the program, under the tag that the
project's files name. They carry the label `priordial.stand-in`, and `remove` takes them away, so
that none is ever mistaken for the real image.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.images.engine import BUILD_SECONDS, PULL_SECONDS, docker, inspect, run

HERE = Path(__file__).parent
DEBIAN = "priordial-stand-in-debian:bookworm"
LABEL = "priordial.stand-in"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def provide(tag: str) -> str:
    """See that the image `tag` is here: pulled, or made here; a line that says which.

    The test is skipped where it can neither be pulled nor made.
    """
    if not inspect(tag) and not _pulled(tag):
        _make(tag)
    made = (inspect(tag)["Config"]["Labels"] or {}).get(LABEL)
    return f"{tag}: made here from Debian's packages" if made else f"{tag}: the real image"


def remove() -> None:
    """Remove every stand-in, and the Debian that they were made from."""
    for tag in run("images", "--filter", f"label={LABEL}", "--format", "{{.ID}}").stdout.split():
        run("rmi", "--force", tag)
    run("rmi", DEBIAN)


def _pulled(tag: str) -> bool:
    try:
        return run("pull", "--quiet", tag, seconds=PULL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _make(tag: str) -> None:
    name = tag.rpartition("/")[2].partition(":")[0]
    dockerfile = HERE / f"{name}.Dockerfile"
    if not dockerfile.exists():
        pytest.skip(f"optional: {tag} cannot be pulled, and no package of Debian stands in for it")
    if not inspect(DEBIAN):
        _make_debian()
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        context = Path(folder)
        _copy_the_machine(context / "machine")
        for script in HERE.glob("*.sh"):
            shutil.copy(script, context)
        docker("build", "-t", tag, "-f", dockerfile, context, seconds=BUILD_SECONDS)


def _make_debian() -> None:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("no image can be pulled; making one needs root and Debian's debootstrap")
    with tempfile.TemporaryDirectory(prefix="debian-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", tree],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=BUILD_SECONDS,
        )
        shutil.rmtree(tree / "var/cache/apt")
        archive = Path(folder) / "tree.tar"
        subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
        docker("import", archive, DEBIAN, seconds=BUILD_SECONDS)


def _copy_the_machine(folder: Path) -> None:
    """The certificates that this machine trusts, for /etc of an image that stays here."""
    certificates = folder / "ssl/certs/ca-certificates.crt"
    certificates.parent.mkdir(parents=True)
    shutil.copy(CERTIFICATES, certificates)
    (folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
