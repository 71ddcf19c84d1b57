"""Images in files as the inputs of a split: decoded when rows are asked for, checked before a run starts."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import pixels
from training.data.dataset import Dataset, ImageSpec, Split
from training.data.order import Part

MEMORY_BYTES = (
    256 * 2**20
)  # of decoded pixels; a data set below it is decoded once and stays in memory
THREADS = max(1, min(32, (os.cpu_count() or 1)))  # Pillow decodes outside the interpreter's lock


@dataclass(frozen=True)
class ImageFiles:
    """Rows that are files. Indexing by rows gives the same for fewer rows; np.asarray decodes them, [n, H, W, channels]."""

    paths: NDArray[np.object_]
    spec: ImageSpec

    @classmethod
    def of(cls, paths: Sequence[str], spec: ImageSpec) -> "ImageFiles":
        """Of a list of paths."""
        found = np.empty(len(paths), dtype=object)
        found[:] = paths
        return cls(found, spec)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any, /) -> "ImageFiles":
        return replace(self, paths=self.paths[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:  # noqa: FBT001 - NumPy's signature
        del dtype, copy
        height, width = self.spec.size
        found = np.empty((len(self), height, width, self.spec.channels), np.uint8)
        with ThreadPoolExecutor(THREADS) as pool:
            for row, image in enumerate(
                pool.map(lambda path: pixels.decode(path, self.spec), self.paths)
            ):
                found[row] = image
        return found

    @property
    def decoded_bytes(self) -> int:
        """Size of all rows when they are decoded."""
        return len(self) * self.spec.size[0] * self.spec.size[1] * self.spec.channels


def made_ready(data: Dataset, *, in_memory: bool | None, part: Part) -> Dataset:
    """The data with every image known to be readable. Raises BadData naming the first that is not.

    in_memory: decode all now and keep the pixels; None: when they fit MEMORY_BYTES. Otherwise each process
    decodes its part once to see that it can, and training streams them.
    """
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    files = [split.inputs for split in splits if isinstance(split.inputs, ImageFiles)]
    if in_memory is None:
        in_memory = sum(one.decoded_bytes for one in files) <= MEMORY_BYTES
    if in_memory:
        val, test = (split and _decoded(split) for split in (data.val, data.test))
        return replace(data, train=_decoded(data.train), val=val, test=test)
    for one in files:
        _check(one.paths[part.rank :: part.world])
    return data


def _decoded(split: Split) -> Split:
    return (
        Split(np.asarray(split.inputs), split.labels)
        if isinstance(split.inputs, ImageFiles)
        else split
    )


def _check(paths: NDArray[np.object_]) -> None:
    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in tqdm(
            pool.map(pixels.check, paths),
            total=len(paths),
            desc="checking images",
            unit="image",
            delay=2,
        ):
            pass
