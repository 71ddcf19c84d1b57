"""Reads blocks of rows from arrays: `.npz` and `.npy`."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from service.contract import pixels
from service.contract.inputs.spec import InputSpec
from training.data.streams.rows import Block, Reading, Rows, as_texts, fitted, joined
from training.data.streams.salvage import salvage
from training.faults import BadData, Fault, WrongUse, instead, readable

SUFFIXES = (".npz", ".npy")


def blocks(
    path: Path, reading: Reading, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Yield (number, block) of an array, which is never in memory as a whole.

    Raises WrongUse when the array does not fit the model, BadData when it is damaged.
    """
    try:
        with _array_file(path, reading.array) as file:
            shape, dtype = _header(path, file)
            step = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for number, start in enumerate(range(0, shape[0], reading.rows)):
                rows = min(reading.rows, shape[0] - start)
                data = file.read(rows * step)
                if len(data) != rows * step:
                    raise BadData(
                        f"{path}: ends within row {start + len(data) // max(step, 1)} of "
                        f"{shape[0]}, so it was cut short; copy it again"
                    )
                if not skip(number):
                    found = np.frombuffer(data, dtype).reshape(rows, *shape[1:])
                    yield number, _block(path, found, start, reading)
    except Fault:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        other = instead(path)
        if path.suffix.lower() == ".npz" and "ZIP" in other:  # as an .npz file is
            other = " (it was cut short: copy it again)"
        raise BadData(f"{path}: cannot be read: {readable(error)}{other}") from error


def _block(path: Path, rows: Rows, start: int, reading: Reading) -> Block:
    if not reading.skip_broken:
        return Block(start, _array_rows(path, rows, start, reading), {})
    pieces, broken = salvage(
        len(rows), lambda part: _array_rows(path, rows[part], start + part.start, reading)
    )
    return Block(start, joined([found for _, found in pieces]), {}, broken=broken)


def _array_file(path: Path, member: str | None) -> IO[bytes]:
    if path.suffix.lower() == ".npy":
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        wanted = member or next((n for n in ("x", "x_test", "X") if n in names), None)
        if wanted not in names:
            raise WrongUse(
                f"{path}: name the array to score with --array; it has {', '.join(names) or 'none'}"
            )
        return archive.open(f"{wanted}.npy")


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if fortran or dtype.hasobject or not shape:
        raise BadData(
            f"{path}: is an array of {dtype} of shape {list(shape)}, "
            f"{'Fortran' if fortran else 'C'} order; expected rows of numbers in C order, as "
            "np.save(FILE, np.ascontiguousarray(x)) writes them"
        )
    return shape, dtype


def _array_rows(path: Path, rows: Rows, start: int, reading: Reading) -> Rows:
    if reading.spec.kind == "text":
        if rows.dtype.kind != "U" or rows.ndim != 1:
            raise WrongUse(
                f"{path}: holds {rows.dtype} {list(rows.shape[1:])}; expected one text per row"
            )
        return as_texts(rows.tolist(), reading.spec, lambda row: f"{path}, row {start + row}")
    if reading.spec.kind == "image":
        return _pixels(path, rows, reading.spec)
    if rows.dtype.kind not in "iufb":
        raise WrongUse(f"{path}: holds {rows.dtype}; the model takes {reading.spec.dtype}")
    wide = rows.reshape(len(rows), -1).astype(np.float64)
    there = ~np.isinf(wide) if reading.spec.missing else np.isfinite(wide)
    bad = np.flatnonzero(~there.all(axis=1))
    if bad.size:
        held = "infinity" if reading.spec.missing else "NaN or infinity"
        raise BadData(f"{path}, row {start + bad[0]}: holds {held}; expected finite numbers")
    return fitted(path, rows, start, reading)


def _pixels(path: Path, rows: Rows, spec: InputSpec) -> Rows:
    """Convert uint8 images [n, H, W] or [n, H, W, channels] of the model's size to its tensor."""
    images = rows[..., None] if rows.ndim == 3 else rows
    channels = 3 if spec.color == "RGB" else 1
    wanted = [*(spec.size or []), channels]
    if images.dtype != np.uint8 or list(images.shape[1:]) != wanted:
        raise WrongUse(
            f"{path}: an image is {images.dtype} {list(images.shape[1:])}; the model takes uint8 "
            f"{wanted}"
        )
    return pixels.as_tensor(images, spec)
