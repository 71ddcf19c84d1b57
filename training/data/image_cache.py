"""Decoded images in a file that is mapped into memory: they are decoded once, for all runs.

A run reads the rows of a batch from the file. The system keeps as much of it in memory as is free,
so the images may take more than the memory.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.data import pixels
from training.data.image_files import THREADS, ImageFiles, tried
from training.faults import Fault, RunFailed, WrongUse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
ROWS_AT_A_TIME = 256
GIB = 2**30
Faults: TypeAlias = dict[int, str]
"""Why an image cannot be read, by its row."""


def cached_pixels(files: ImageFiles, folder: Path) -> tuple[NDArray[np.uint8], Faults]:
    """Return the pixels of the readable images, mapped from a file, and the faults of the others.

    The pixels are uint8 [n, H, W, channels], in the order of the files. The file lies in `folder`,
    and is made if it is not there. Its name is a digest of the images' paths, sizes and times of
    change, and of all that decides how they become pixels. Several processes make it once. Raises
    WrongUse when the disk has too little room, RunFailed when the file cannot be written or read.
    """
    key = _digest(files)
    path, about = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            if not (path.exists() and about.exists()):
                _check_room(files, folder)
                _write(files, path, about)
            faults = json.loads(about.read_text(encoding="utf-8"))["faults"]
        found = np.load(path, mmap_mode="c")  # torch takes no array that cannot be written to
    except Fault:
        raise
    except OSError as error:
        raise RunFailed(
            f"--cache {folder}: {error.filename or path} cannot be used: {error.strerror}; make "
            "room, or give a folder on another disk"
        ) from error
    except ValueError as error:
        raise RunFailed(
            f"--cache {folder}: {path.name} is damaged; remove it, and the images are decoded again"
        ) from error
    return found, {int(row): why for row, why in faults.items()}


def _digest(files: ImageFiles) -> str:
    spec = files.spec
    decides = (FORMAT, spec.size, spec.color, spec.resize, spec.resample, spec.fill)
    digest = hashlib.sha256(repr(decides).encode())
    for path in files.paths:
        absolute = os.path.abspath(path)  # noqa: PTH100 - Path would take ten times as long
        try:
            found = os.stat(absolute)  # noqa: PTH116 - see above
            state = (found.st_size, found.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(repr((absolute, *state)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _check_room(files: ImageFiles, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if files.decoded_bytes > free:
        raise WrongUse(
            f"--cache {folder}: {len(files):,} images take {files.decoded_bytes / GIB:.2g} GiB "
            f"once decoded, and {free / GIB:.2g} GiB are free there; give a folder on another disk"
        )


def _write(files: ImageFiles, path: Path, about: Path) -> None:
    """Decode the images into `path`, and write their faults to `about` before it is complete."""
    staging = path.with_suffix(".partial")
    faults: Faults = {}
    try:
        with staging.open("wb") as file:
            _write_header(file, files, rows=len(files))
            for row, image in _decoded(files):
                if isinstance(image, str):
                    faults[row] = image
                else:
                    file.write(np.ascontiguousarray(image).data)
            file.seek(0)
            _write_header(file, files, rows=len(files) - len(faults))
            file.flush()
            os.fsync(file.fileno())
        about.write_text(json.dumps({"images": len(files), "faults": faults}), encoding="utf-8")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _write_header(file: BinaryIO, files: ImageFiles, *, rows: int) -> None:
    """Write the header of a .npy file, whose length does not depend on the number of rows."""
    shape = (rows, *files.spec.size, files.spec.channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decoded(files: ImageFiles) -> Iterator[tuple[int, Any]]:
    """Yield each row with its pixels, or with the message of its fault."""
    from tqdm import tqdm

    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(files), desc="decoding images", unit="image", delay=2) as bar,
    ):
        for start in range(0, len(files), ROWS_AT_A_TIME):
            paths = files.paths[start : start + ROWS_AT_A_TIME]
            images = pool.map(lambda path: tried(pixels.decode, path, files.spec), paths)
            yield from enumerate(images, start)
            bar.update(len(paths))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the pixels are made, so that other processes wait for them."""
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
