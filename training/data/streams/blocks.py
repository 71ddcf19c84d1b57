"""Reads unlabelled rows for a model block by block, from files that need not fit in memory.

Parquet, CSV and JSON lines hold columns; `.npz` and `.npy` hold arrays; folders and tar shards hold
image files. A block is identified by its file and its number, so that a run can skip the blocks
that it has finished.
"""

from collections.abc import Callable, Iterator

from training.data.streams import arrays, images, tables
from training.data.streams.rows import Block, Reading, Source


def read_blocks(
    source: Source, reading: Reading, *, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Yield (number, block) of a source for every block for which `skip(number)` is false.

    Raises WrongUse when the source does not fit the model, BadData when it is damaged.
    """
    if source.kind in tables.SUFFIXES:
        yield from tables.blocks(source.path, reading, skip)
    elif source.kind in arrays.SUFFIXES:
        yield from arrays.blocks(source.path, reading, skip)
    else:
        yield from images.blocks(source, reading, skip)
