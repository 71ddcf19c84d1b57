"""Pins in constraints.txt the newest versions that pyproject.toml allows, without index addresses.

Packages that come with a CUDA build of torch are left out: torch itself names their exact versions.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = (
    "service",
    "cpu",
    "gpu",
    "postgres",
    "traces",
    "grpc",
    "http",
    "ray",
    "s3",
    "tokenizers",
    "arrow",
    "zstd",
    "training",
    "tensorboard",
)
LEFT_OUT = re.compile(r"(nvidia-|cuda-|triton==)")
HEADER = (
    "# Versions that the project is tested with. Made by `make constraints`; pyproject.toml "
    "holds the ranges.\n"
)


def main() -> int:
    """Rewrite constraints.txt; the pinned torch stays as it is."""
    target = ROOT / "constraints.txt"
    torch = next(line for line in target.read_text().splitlines() if line.startswith("torch=="))
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--group", "dev"]
    command += [part for extra in EXTRAS for part in ("--extra", extra)]
    command += ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate"]
    command += ["--quiet", "--constraint", "-"]
    done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
        command, input=torch, capture_output=True, text=True, check=True, cwd=ROOT
    )
    kept = [line for line in done.stdout.splitlines() if line and not LEFT_OUT.match(line)]
    target.write_text(HEADER + "\n".join(kept) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
