"""Computes the sha256 of a run's data, for the provenance of its model."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def files_digest(paths: Iterable[Path]) -> str:
    """Return one digest of the contents of several files, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def arrays_digest(*arrays: NDArray[Any]) -> str:
    """Return one digest of several arrays: their dtypes, shapes and values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def names_digest(root: Path, paths: Iterable[str]) -> str:
    """Return one digest of the names, relative to root, and the sizes of many files.

    Their contents are not read, because that would take minutes.
    """
    total = hashlib.sha256()
    for path in paths:
        name = Path(path)
        below = name.relative_to(root) if name.is_relative_to(root) else name
        total.update(os.fsencode(below) + f"\0{name.stat().st_size}\n".encode())
    return total.hexdigest()
