"""Defines a data set: splits of labelled inputs, the class names, and facts about the inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import Color, InputSpec, Resample, Resize
from training.data.columns import Columns
from training.data.text import Vocabulary
from training.faults import BadData, nearest_class

PARTS = {
    "train": ("train", "training", "training_set", "train_set"),
    "val": ("val", "valid", "validation", "validation_set", "val_set", "dev"),
    "test": ("test", "testing", "test_set"),
}
"""What people call each split, in upper or lower case."""

Labels: TypeAlias = NDArray[np.int64]


class Inputs(Protocol):
    """The inputs of a split: an array, or an object that NumPy converts to one (images in files).

    An array is one of four kinds. float [N, …]: tensors, where NaN is a missing number. uint8
    [N, H, W, channels]: images. object [N]: strings. Records [N]: rows of a table, a field per
    column.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Split:
    """N inputs with their labels [N], which are indices into the class names."""

    inputs: Inputs
    labels: Labels

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise BadData(
                f"{len(self.inputs)} inputs, but {len(self.labels)} labels; "
                "expected one label per input"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.integer]) -> "Split":
        """Return the split of these rows, given by index, in the given order."""
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class ImageSpec:
    """How pixels become the tensor; the fields mean the same as in the contract's `InputSpec`."""

    size: tuple[int, int]
    color: Color
    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Resample | None = None
    fill: int | None = None
    scale: float | None = None

    @property
    def channels(self) -> int:
        """The number of channels: 1 for L, 3 for RGB and BGR."""
        return 1 if self.color == "L" else 3


@dataclass(frozen=True)
class Known:
    """What a published model states about its inputs; used to read rows for it.

    class_names: the classes, in output order. columns: the columns of a table, in input order; None
    if the model does not state them. sha256: the digest of its training data, if stated. inputs:
    the inputs of a model with several. missing: whether a model with one input accepts NaN. text:
    whether a row is one text.
    """

    class_names: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    sha256: str | None = None
    inputs: tuple[InputSpec, ...] = ()
    missing: bool = False
    text: bool = False


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test rows that share one class list.

    val, test: None if the source has none.
    image: how pixels become the tensor, for kind `image`.
    vocabulary, columns: fitted to the training texts, or to a table's records, before a run
    (training.run.prepare).
    picture: the shape in which a row of numbers can be shown as a grey image.
    val_per_class: rows per class that `fit` sets aside if val is None; None: a fraction of each.
    reproducible_split: whether the test rows are the same for every seed.
    whole: all rows, if the test split was drawn from them; None if the source defines it.
    labelled: whether the labels are known; if not, they are all 0.
    notes: oddities that the reader found, as sentences for the user.
    origin: where the rows came from, for the model's provenance.
    """

    spec: str
    kind: Literal["tensor", "image", "text", "columns"]
    class_names: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: Split | None = None
    image: ImageSpec | None = None
    vocabulary: Vocabulary | None = None
    columns: Columns | None = None
    picture: tuple[int, int] | None = None
    val_per_class: int | None = None
    reproducible_split: bool = True
    whole: Split | None = None
    labelled: bool = True
    notes: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    def check_trainable(self) -> None:
        """Raise BadData unless there are two classes, each with a name and a training row."""
        if len(self.class_names) < 2:
            raise BadData(
                f"{self.spec}: has {len(self.class_names)} class; a classifier needs at least 2"
            )
        blank = [name for name in self.class_names if not name.strip()]
        if blank:
            raise BadData(
                f"{self.spec}: a class has the empty name {blank[0]!r}; label its rows, or leave "
                "them out"
            )
        broken = [name for name in self.class_names if not is_text(name)]
        if broken:
            raise BadData(f"{self.spec}: the name of class {broken[0]!r} is not UTF-8; rename it")
        empty = [
            name for name, n in zip(self.class_names, self.class_counts, strict=True) if n == 0
        ]
        if empty:
            listed = ", ".join(f"'{name}'" for name in empty[:5]) + (" …" if len(empty) > 5 else "")
            raise BadData(
                f"{self.spec}: has no training example of {len(empty)} of {len(self.class_names)} "
                f"classes: {listed}; add some, or leave these classes out"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Labels:
        """The number of training rows of each class, [C]."""
        return counts_of(self.train.labels, len(self.class_names))

    def with_splits(self, *, train: Split, val: Split | None) -> "Dataset":
        """Return a copy with these training and validation rows."""
        return replace(self, train=train, val=val)


def has_categories(data: Dataset) -> bool:
    """Whether rows have a column of categories."""
    if data.kind != "columns":
        return False
    rows: NDArray[Any] = np.asarray(data.train.inputs[:1])
    return any(rows[name].dtype == object for name in rows.dtype.names or ())


def is_text(written: str) -> bool:
    """Whether a string can be written as UTF-8, unlike half a surrogate pair or some file names."""
    try:
        written.encode()
    except UnicodeEncodeError:
        return False
    return True


def counts_of(labels: Labels, num_classes: int) -> Labels:
    """Return the number of rows of each class, [C], from labels [N]."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def rows_by_class(labels: Labels, num_classes: int) -> list[Labels]:
    """Return the row numbers of each class, ascending, from labels [N]; C arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(counts_of(labels, num_classes))[:-1])


def check_labels(
    labels: NDArray[Any],
    class_names: Sequence[str],
    *,
    where: str,
    row_word: str = "row",
    first_row: int = 0,
) -> Labels:
    """Convert labels [N], class names or indices, to int64 indices.

    where: the file, for messages. row_word, first_row: what a message calls a row, and the number
    of the first one. Raises BadData that names the first row whose label is not a class.
    """
    if labels.ndim != 1:
        raise BadData(
            f"{where}: labels have shape {list(labels.shape)}; expected one label per row"
        )
    if labels.dtype.kind in "US" or labels.dtype == object:
        index = {name: i for i, name in enumerate(class_names)}
        for row, name in enumerate(labels):
            if str(name) not in index:
                raise BadData(
                    f"{where}, {row_word} {row + first_row}: '{name}' is not a class of the "
                    f"training data{nearest_class(str(name), class_names)}"
                )
        return np.fromiter((index[str(name)] for name in labels), np.int64, len(labels))
    if (
        labels.dtype.kind == "f"
        and np.isfinite(labels).all()
        and (labels == np.floor(labels)).all()
    ):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise BadData(f"{where}: labels are {labels.dtype}; expected whole numbers or names")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if wrong.size:
        raise BadData(
            f"{where}, {row_word} {wrong[0] + first_row}: label {labels[wrong[0]]} is out of "
            f"range; expected 0 to {len(class_names) - 1}"
            + (
                " (labels seem to start at 1: subtract 1)"
                if labels.min() == 1 and labels.max() == len(class_names)
                else ""
            )
            + (f" ({wrong.size} rows like it)" if wrong.size > 1 else "")
        )
    return labels.astype(np.int64)
