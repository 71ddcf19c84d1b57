"""Image files as inputs: checked before a run starts, decoded when their rows are used."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.resources import available_threads
from training.data import pixels
from training.data.dataset import Dataset, ImageSpec, Split
from training.data.order import Part
from training.faults import BadData, say

MEMORY_BYTES = 256 * 2**20
"""By default, images that take at most this much once decoded are kept in memory."""
MAX_BROKEN_SHARE = 0.1
"""The largest share of the images that --skip-broken leaves out."""
LISTED = 20  # the most broken files that a message lists
THREADS = min(32, available_threads())  # Pillow decodes outside the interpreter's lock


@dataclass(frozen=True)
class ImageFiles:
    """Inputs whose rows are image files.

    Indexing selects rows; np.asarray decodes them to [n, H, W, channels].
    """

    paths: NDArray[np.object_]
    spec: ImageSpec

    @classmethod
    def of(cls, paths: Sequence[str], spec: ImageSpec) -> "ImageFiles":
        """Make a row of each path; `spec` says how the image becomes the pixels."""
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
        """The bytes that all rows take once decoded."""
        return len(self) * self.spec.size[0] * self.spec.size[1] * self.spec.channels


Cached: TypeAlias = Callable[[ImageFiles], tuple[NDArray[np.uint8], dict[int, str]]]
"""Returns the pixels of the readable images, and the faults of the others by row."""


def made_ready(
    data: Dataset,
    *,
    in_memory: bool | None,
    part: Part,
    skip_broken: bool = False,
    cached: Cached | None = None,
) -> Dataset:
    """Check that every image can be read, and return the data, with pixels if kept in memory.

    in_memory: decode all images now and keep the pixels; None does so if they fit in MEMORY_BYTES.
    Otherwise each process decodes its part once as a check, and training decodes the images again.
    cached: returns the pixels of files from a cache, in place of both. skip_broken: leave
    unreadable images out, up to MAX_BROKEN_SHARE. Raises BadData that lists the unreadable images.
    """
    splits = {"train": data.train, "val": data.val, "test": data.test}
    own = {
        name: split
        for name, split in splits.items()
        if split is not None and isinstance(split.inputs, ImageFiles)
    }
    if not own:
        return data
    if in_memory is None:
        in_memory = sum(split.inputs.decoded_bytes for split in own.values()) <= MEMORY_BYTES  # type: ignore[attr-defined]  # ImageFiles, see above
    if skip_broken:
        part = Part()  # every process must leave out the same rows
    ready: dict[str, Any] = {}
    broken: list[str] = []
    for name, split in own.items():
        if cached is not None:
            ready[name], faults = _from(cached, split)
        else:
            ready[name], faults = (_decoded if in_memory else _checked)(split, part)
        broken += faults
    rows = sum(map(len, own.values()))
    if broken and not skip_broken:
        raise BadData(f"{_listed(broken, rows)}\n(give --skip-broken to leave them out)")
    if len(broken) > MAX_BROKEN_SHARE * rows:
        raise BadData(
            f"{_listed(broken, rows)}\n"
            f"(too many to leave out: at most {MAX_BROKEN_SHARE:.0%} may be; restore the files)"
        )
    if not broken:
        return replace(data, **ready) if in_memory or cached is not None else data
    say(f"{_listed(broken, rows)}\n(left out)")
    kept = replace(data, **ready)
    kept.check_trainable()
    return kept


def _decoded(split: Split, _part: Part) -> tuple[Split, list[str]]:
    """Decode the split; return it without broken images, and the errors of those."""
    files = split.inputs
    assert isinstance(files, ImageFiles)
    height, width = files.spec.size
    found = np.empty((len(files), height, width, files.spec.channels), np.uint8)
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for row, image in enumerate(
            pool.map(lambda path: tried(pixels.decode, path, files.spec), files.paths)
        ):
            if isinstance(image, str):
                faults[row] = image
            else:
                found[row] = image
    kept = np.setdiff1d(np.arange(len(files)), list(faults))
    return Split(found[kept] if faults else found, split.labels[kept]), list(faults.values())


def _from(cached: Cached, split: Split) -> tuple[Split, list[str]]:
    """Return the split with pixels from a cache, without broken images, and their errors."""
    assert isinstance(split.inputs, ImageFiles)
    found, faults = cached(split.inputs)
    kept = np.setdiff1d(np.arange(len(split)), list(faults))
    return Split(found, split.labels[kept]), list(faults.values())


def _checked(split: Split, part: Part) -> tuple[Split, list[str]]:
    """Decode this process's part; return the split without broken images, and their errors."""
    from tqdm import tqdm

    files = split.inputs
    assert isinstance(files, ImageFiles)
    rows = np.arange(len(files))[part.rank :: part.world]
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda path: tried(pixels.check, path), files.paths[rows])
        bar = tqdm(found, total=len(rows), desc="checking images", unit="image", delay=2)
        for row, outcome in zip(rows, bar, strict=True):
            if isinstance(outcome, str):
                faults[int(row)] = outcome
    kept = np.setdiff1d(np.arange(len(files)), list(faults))
    return split.take(kept) if faults else split, list(faults.values())


def tried(read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; return its result, or the message of the BadData that it raises."""
    try:
        return read(*arguments)
    except BadData as error:
        return str(error)


def _listed(broken: Sequence[str], rows: int) -> str:
    more = [f"  … and {len(broken) - LISTED:,} more"] if len(broken) > LISTED else []
    lines = [f"  {message}" for message in broken[:LISTED]] + more
    return "\n".join([f"{len(broken):,} of {rows:,} images cannot be read:", *lines])
