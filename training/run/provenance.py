"""Records the origin of a model: code revision and library versions."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from service.contract.extras import VERSION

LIBRARIES = (
    "numpy",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "torchvision",
)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect a model."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def code_revision() -> str | None:
    """Return the commit of this package, with "-dirty" if its files differ; None outside git."""
    package = Path(__file__).resolve().parents[1]
    revision = _git("rev-parse", "--short=12", "HEAD", folder=package)
    if not revision or not _git("ls-files", "__init__.py", folder=package):
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", folder=package)
    return f"{revision}-dirty" if changed else revision


def made_by(command: str) -> dict[str, str]:
    """Return what a report says of its making, by name: date, command line, code and libraries."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": f"`{command}`" if command else "–",
        "code": " ".join(filter(None, (f"priordial {VERSION}", code_revision()))),
        "libraries": ", ".join(map(" ".join, library_versions().items())),
    }


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        result = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - whichever git the user has
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
