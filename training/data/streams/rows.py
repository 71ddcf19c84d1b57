"""What the readers of unlabelled rows share: sources, blocks of rows, and their fit to a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import MAX_TEXT_CHARACTERS, InputSpec
from training.faults import BadData, WrongUse

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "images"
"""The `kind` of a source that is a list of image files, in place of a suffix."""

Rows = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One file, or the image files of one folder, in order.

    name: what the answers call the file: the whole path if other files have the same name. The
    members of a tar shard are below it; empty if there is only one shard.
    """

    path: Path
    files: tuple[Path, ...] = ()
    name: str = ""

    @property
    def kind(self) -> str:
        """The file's suffix, which decides how it is read, or `FOLDER`."""
        return FOLDER if self.files else self.path.suffix.lower()

    def names_of(self, block: "Block") -> list[str]:
        """Return what the answers call the file of each row of a block."""
        if not block.names:
            return [self.name] * len(block)
        return [f"{self.name}/{name}" if self.name else name for name in block.names]


@dataclass(frozen=True)
class Block:
    """Rows `start` to `start + len(block)` of a source.

    inputs: [n, …] the rows that are not broken, as the model takes them. kept: the columns to copy
    to the output, by name. names: the image file of each row, if the rows are image files. broken:
    why a row cannot be read, by its place in the block, from 0.
    """

    start: int
    inputs: Rows
    kept: "dict[str, pa.Array]"
    names: tuple[str, ...] = ()
    broken: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs) + len(self.broken)


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    columns: the feature columns, in the model's order; None takes every column that is not in
    `keep` or `leave_out`. keep: columns to copy to the output. leave_out: columns to ignore, such
    as a label. array: the name of the array in an .npz file. rows: the rows of a block.
    skip_broken: whether a row that cannot be read is reported in its block, and ends nothing.
    """

    spec: InputSpec
    columns: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    array: str | None = None
    rows: int = 8192
    skip_broken: bool = False


def joined(pieces: Sequence[Rows]) -> Rows:
    """Return the inputs of a block from those of its pieces; there may be none."""
    return np.concatenate(pieces) if pieces else np.empty(0)


def as_texts(texts: Sequence[str], spec: InputSpec, where: Callable[[int], str]) -> Rows:
    """Return texts as the model takes them: [n], or with more axes of size 1.

    where: names the place of a row. Raises BadData for a text that the service would refuse.
    """
    check_lengths(texts, where)
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(len(texts), *(1 for _ in spec.shape[1:]))


def check_lengths(texts: Sequence[str], where: Callable[[int], str]) -> None:
    """Raise BadData for a text that the service would refuse. where: names the place of a row."""
    for row, text in enumerate(texts):
        if len(text) > MAX_TEXT_CHARACTERS:
            raise BadData(
                f"{where(row)}: a text of {len(text):,} characters; the service takes at most "
                f"{MAX_TEXT_CHARACTERS:,}, so shorten it"
            )


def fitted(path: Path, rows: Rows, start: int, reading: Reading) -> Rows:
    """Convert rows, of which `start` is the first one's number, to the model's shape and dtype.

    A flat row is reshaped if only one shape is possible. Raises WrongUse if none fits, BadData for
    a number that does not fit.
    """
    wanted = reading.spec.shape[1:]
    if all(size is not None for size in wanted):
        sizes = [int(size) for size in wanted if size is not None]
        if rows.ndim == 2 and rows.shape[1] == int(np.prod(sizes)):
            rows = rows.reshape(len(rows), *sizes)
    if rows.ndim - 1 != len(wanted) or any(
        size not in (None, found) for size, found in zip(wanted, rows.shape[1:], strict=True)
    ):
        raise WrongUse(f"{path}: a row is {list(rows.shape[1:])}; the model takes {wanted}")
    return narrowed(path, rows, start, reading.spec)


def narrowed(path: Path, rows: Rows, start: int, spec: InputSpec) -> Rows:
    """Convert numbers to the model's dtype. Raises BadData for one that is not finite in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.ascontiguousarray(rows, dtype=spec.dtype)
    if found.dtype.kind != "f":
        return found
    odd = np.isinf(found) | (np.isnan(rows) & (not spec.missing))
    bad = np.flatnonzero(odd.reshape(len(found), -1).any(axis=1))
    if bad.size:
        value = rows[bad[0]][odd[bad[0]]].ravel()[0]
        raise BadData(
            f"{path}, row {start + bad[0]}: holds {value:g}; expected a finite number that fits "
            f"into the model's {spec.dtype}"
        )
    return found
