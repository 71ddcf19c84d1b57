"""Reads blocks of images: the files of a folder, and the members of a tar shard."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import pixels
from service.contract.inputs.spec import InputSpec
from training.data.pixels import LEFT_OUT, SUFFIXES
from training.data.streams.rows import Block, Reading, Source, joined
from training.faults import BadData, WrongUse, readable

ARCHIVE = ".tar"


def blocks(
    source: Source, reading: Reading, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Yield (number, block) of the images of a folder or a shard.

    Raises WrongUse when the model takes no images, BadData for one that cannot be read.
    """
    path = source.path
    if reading.spec.kind != "image":
        raise WrongUse(f"{path}: holds images; the model takes {reading.spec.kind} input")
    members = _tar_members(path) if source.kind == ARCHIVE else _files(source.files)
    spec = reading.spec
    assert spec.size is not None
    assert spec.color is not None
    assert spec.resize is not None
    number, start = 0, 0
    names: list[str] = []
    images: list[NDArray[np.uint8]] = []
    broken: dict[int, str] = {}

    def done() -> Block:
        found = pixels.as_tensor(np.stack(images), spec) if images else joined([])
        return Block(start, found, {}, tuple(names), broken)

    for name, read in members:
        names.append(name)
        if not skip(number):
            try:
                images.append(_pixels(path, name, read, spec))
            except BadData as fault:
                if not reading.skip_broken:
                    raise
                broken[len(names) - 1] = str(fault)
        if len(names) == reading.rows:
            if images or broken:
                yield number, done()
            number, start = number + 1, start + len(names)
            names, images, broken = [], [], {}
    if images or broken:
        yield number, done()


def _pixels(path: Path, name: str, read: Callable[[], bytes], spec: InputSpec) -> NDArray[np.uint8]:
    """Decode an image. Raises BadData if it cannot be read."""
    try:
        return pixels.decode_pixels(pixels.open_image(_bytes(path, name, read)), spec)
    except pixels.BadImage as error:
        raise BadData(f"{path}, {name}: {error}") from None


def _files(files: Sequence[Path]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for file in files:
        yield str(file), file.read_bytes


def _tar_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                place = Path(member.name)
                if member.isfile() and place.suffix.lower() in SUFFIXES and _shown(place):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read
            if archive.fileobj is not None and archive.fileobj.tell() == archive.offset:
                raise BadData(f"{path}: has no mark at its end, so it was cut short; copy it again")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadData(f"{path}: cannot be read as tar: {error}; make the archive again") from error


def _shown(path: Path) -> bool:
    """Return whether a path below a folder or in an archive has no hidden or left out part."""
    return not any(
        (part.startswith(".") and part != "..") or part in LEFT_OUT for part in path.parts
    )


def _bytes(path: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BadData(f"{path}, {name}: cannot be read: {readable(error)}") from error
