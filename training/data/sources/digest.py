"""sha256 of the data of a run, for the provenance of its model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def files_digest(paths: Iterable[Path]) -> str:
    """One digest of several files' contents, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def arrays_digest(*arrays: NDArray[Any]) -> str:
    """One digest of several arrays: their types, shapes and values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def names_digest(root: Path, paths: Iterable[str]) -> str:
    """One digest of many files by their names below root and their sizes.

    Reading their contents would take minutes.
    """
    total = hashlib.sha256()
    for path in paths:
        name = Path(path)
        below = name.relative_to(root) if name.is_relative_to(root) else name
        total.update(f"{below}\0{name.stat().st_size}\n".encode())
    return total.hexdigest()
