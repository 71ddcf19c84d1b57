"""Reads a user's own arrays from one .npz file.

The arrays are x_train, y_train, [x_val, y_val], x_test, y_test and [class_names].
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import (
    PARTS,
    Dataset,
    ImageSpec,
    Known,
    Split,
    check_labels,
    is_text,
)
from training.data.pixels import channel_statistics
from training.data.sources.digest import files_digest
from training.faults import BadData, WrongUse, absent, instead, readable

MEMBERS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "class_names")
MOST_NUMBERED = 1_000_000
"""The most classes that numbers may stand for."""
AS_NAMES = "y.astype(str)"


def load(spec: str, file: str, *, known: Known | None = None) -> Dataset:
    """Load the arrays: floats are tensors, uint8 [N, H, W] or [N, H, W, 1 or 3] images.

    Strings are texts. known: what the published model that will score the rows states; x_test alone
    is then enough. Raises WrongUse if there is no file, BadData if its arrays cannot be used.
    """
    path = Path(file)
    if not path.is_file():
        bare = file.partition("?")[0]
        hint = f"; npz takes no options: give npz:{bare}" if "?" in file else ""
        raise WrongUse(absent(path) + hint)
    arrays = _read(path)
    needed = ("x_train", "y_train", "x_test", "y_test") if known is None else ("x_test",)
    for name in needed:
        if name not in arrays and not (known is not None and "x_train" in arrays):
            raise BadData(
                f"{path}: has no {name}; expected x_train, y_train, x_test and y_test "
                "(and x_val, y_val, class_names)"
            )
    for split in ("train", "val", "test"):
        if f"y_{split}" in arrays and f"x_{split}" not in arrays:
            raise BadData(f"{path}: x_{split} and y_{split} must be given together")
        if known is None and f"x_{split}" in arrays and f"y_{split}" not in arrays:
            raise BadData(f"{path}: x_{split} and y_{split} must be given together")
    arrays = {name: _labels(path, name, array) for name, array in arrays.items()}
    labelled = [array for name, array in arrays.items() if name.startswith("y_")]
    naming = arrays
    if known is not None and labelled and "class_names" not in arrays:
        arrays |= {n: _written(a) for n, a in arrays.items() if n.startswith("y_")}
        # the model knows its classes, so a split may have some that the training rows lack
        naming = {"y_train": np.concatenate([_written(a) for a in labelled])}
    elif "class_names" not in arrays and labelled and _are_names(arrays["y_train"]):
        arrays |= {n: _written(a) for n, a in arrays.items() if n.startswith("y_")}
    names = _class_names(path, naming) if labelled or known is None else known.class_names
    reference = arrays["x_train"] if "x_train" in arrays else arrays["x_test"]
    kind, notes = _kind(path, reference)
    splits = {
        split: _split(path, split, arrays, names, kind=kind)
        for split in ("train", "val", "test")
        if f"x_{split}" in arrays
    }
    some = next(iter(splits.values()))
    return Dataset(
        spec=spec,
        kind=kind,
        class_names=names,
        train=splits.get("train", some.take(np.empty(0, np.int64))),
        val=splits.get("val"),
        test=splits.get("test"),
        image=_image_spec(some.inputs) if kind == "image" else None,
        labelled=bool(labelled),
        reproducible_split=False,
        notes=notes,
        origin={"file": path.name, "sha256": files_digest([path])},
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise BadData(
                    f"{path}: is a single array; expected an .npz archive, as numpy.savez writes it"
                )
            _check_names(path, archive.files)
            return {name: _member(path, archive, name) for name in archive.files if name in MEMBERS}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{path}: {_not_npz(path, error)}") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise BadData for an array whose name is that of a split in another spelling, as x_valid."""
    for name in names:
        part, _, split = name.lower().partition("_")
        meant = next((one for one, others in PARTS.items() if split in others), None)
        if name not in MEMBERS and part in ("x", "y") and meant is not None:
            raise BadData(
                f"{path}: the array {name} would not be read; expected {part}_{meant} (rename it), "
                "or leave it out"
            )


def _not_npz(path: Path, error: Exception) -> str:
    """Say why a file is not an archive; NumPy's own message would advise to load it unsafely."""
    if zipfile.is_zipfile(path):
        return f"cannot be read as .npz: {readable(error)}"
    other = instead(path)
    cut = " (it was cut short)" if "ZIP" in other else other
    return f"is not an .npz archive, as numpy.savez writes it{cut}"


def _member(path: Path, archive: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return archive[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        cure = ""
        if "Object arrays" in str(error) or "pickle" in str(error):
            cure = " (an array of Python objects: save it with .astype(str), or as numbers)"
        if isinstance(error, zipfile.BadZipFile | EOFError):
            cure = "; the file is damaged: save or copy it again"
        raise BadData(f"{path}, {name}: {error}{cure}") from error


def _labels(path: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return a label array as [n]: flatten a column [n, 1]; bytes and booleans become names."""
    if array.ndim == 0:
        raise BadData(f"{path}, {name}: is a single value, not one for each row; save an array")
    if not name.startswith("y_"):
        return array
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "S":
        return _decoded(path, name, array)
    return array.astype(str) if array.dtype.kind == "b" else array


def _decoded(path: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}, {name}: holds bytes that are not UTF-8: {error}; save its texts as UTF-8"
        ) from None


def _class_names(path: Path, arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Return the given class names, or those that the labels imply: 0 … C - 1, or their values."""
    if "class_names" in arrays:
        given = arrays["class_names"].ravel()
        if given.dtype.kind == "S":
            given = _decoded(path, "class_names", given)
        names = tuple(str(name) for name in given)
        repeated = sorted({name for name in names if names.count(name) > 1 or not name})
        if repeated:
            raise BadData(
                f"{path}, class_names: '{repeated[0]}' is empty or repeated; "
                "give each class its own name"
            )
        return names
    labels = arrays["y_train"]
    if labels.dtype.kind in "US":
        written = sorted({str(name) for name in labels})
        if all(name.lstrip("-").isdecimal() for name in written):
            written.sort(key=int)
        return tuple(written)
    return _numbered(path, labels, arrays)


def _numbered(
    path: Path, labels: NDArray[Any], arrays: Mapping[str, NDArray[Any]]
) -> tuple[str, ...]:
    """Return the names 0 … C - 1 that numbers imply. Raises BadData for other labels."""
    if not labels.size:
        raise BadData(f"{path}, y_train: has no rows; expected a label for each training row")
    if labels.dtype.kind not in "iuf":
        raise BadData(
            f"{path}, y_train: labels are {labels.dtype}, {labels.size} rows; "
            "expected whole numbers or names"
        )
    nameless = np.flatnonzero(~np.isfinite(labels))
    if nameless.size:
        raise BadData(
            f"{path}, y_train, row {nameless[0]}: label {labels[nameless[0]]} ({nameless.size} "
            "rows like it); label these rows, or leave them out"
        )
    lowest, highest = float(labels.min()), float(labels.max())
    if lowest == highest == 0:
        raise BadData(f"{path}, y_train: every label is {lowest:g}; expected at least 2 classes")
    if highest >= MOST_NUMBERED:
        raise BadData(
            f"{path}, y_train: the highest label is {highest:g}; expected classes numbered from 0, "
            f"or names ({AS_NAMES})"
        )
    if lowest < 0:
        raise BadData(
            f"{path}, y_train: the lowest label is {lowest:g}, and there is a 0; leave rows "
            f"without a label out, or, if {lowest:g} is a class, give names ({AS_NAMES})"
        )
    highest = max(
        float(a.max())
        for n, a in arrays.items()
        if n.startswith("y_") and a.size and a.dtype.kind in "iuf"
    )
    return tuple(str(index) for index in range(int(highest) + 1))


def _are_names(labels: NDArray[Any]) -> bool:
    """Return whether integer labels are names: 1 … C without a gap, or some negative and no 0."""
    if labels.dtype.kind not in "if" or not labels.size or not np.isfinite(labels).all():
        return False
    own = np.unique(labels)
    from_one = own[0] == 1 and len(own) == own[-1] > 1
    return bool((own == np.floor(own)).all()) and bool(from_one or (own[0] < 0 and 0 not in own))


def _written(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels as names; whole numbers stored as floats lose their .0."""
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    return labels.astype(str)


def _kind(path: Path, inputs: NDArray[Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the kind of the inputs, and notes on what is odd about them."""
    if inputs.dtype.kind == "U" and inputs.ndim == 1:
        return "text", ()
    if inputs.dtype.kind == "S":
        raise BadData(f"{path}, x_train: texts are bytes; decode them: np.char.decode(x, 'utf-8')")
    if inputs.dtype.kind not in "iufb":
        raise BadData(
            f"{path}, x_train: is {inputs.dtype} of shape {list(inputs.shape)}; "
            "expected numbers, or one string per row"
        )
    if inputs.ndim < 2:
        raise BadData(
            f"{path}, x_train: shape {list(inputs.shape)}; expected [rows, …], so one number a row "
            "is x.reshape(-1, 1)"
        )
    if 0 in inputs.shape[1:]:
        raise BadData(
            f"{path}, x_train: shape {list(inputs.shape)}: a row holds no number; expected at "
            "least one"
        )
    if inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] == 4:
        raise BadData(
            f"{path}, x_train: uint8 of shape {list(inputs.shape)} looks like RGBA images; "
            "keep three channels: x[..., :3]"
        )
    grey = inputs.ndim == 3
    coloured = inputs.ndim == 4 and inputs.shape[3] in (1, 3)
    if inputs.dtype == np.uint8 and (grey or coloured):
        return "image", ()
    if coloured and inputs.shape[1] not in (1, 3) and min(inputs.shape[1:3]) >= 8:
        note = (
            f"x_train of shape {list(inputs.shape)} looks like images with channels last; networks "
            "for images take [rows, channels, height, width] (x.transpose(0, 3, 1, 2)) or uint8"
        )
        return "tensor", (note,)
    return "tensor", ()


def _split(
    path: Path,
    split: str,
    arrays: Mapping[str, NDArray[Any]],
    names: tuple[str, ...],
    *,
    kind: str,
) -> Split:
    inputs = arrays[f"x_{split}"]
    labels = arrays.get(f"y_{split}", np.zeros(len(inputs), np.int64))
    where = f"{path}, x_{split}"
    reference = arrays.get("x_train", inputs)
    if inputs.ndim != reference.ndim or inputs.shape[1:] != reference.shape[1:]:
        raise BadData(
            f"{where}: rows have shape {list(inputs.shape[1:])}; expected "
            f"{list(reference.shape[1:])}, as those of x_train"
        )
    if len(inputs) != len(labels):
        raise BadData(
            f"{path}: x_{split} has {len(inputs)} rows, y_{split} {len(labels)}; expected equal "
            "numbers"
        )
    if not len(inputs):
        raise BadData(f"{where}: has no rows; expected at least one")
    checked = check_labels(labels, names, where=f"{path}, y_{split}")
    if kind == "text":
        broken = next((row for row, text in enumerate(inputs) if not is_text(str(text))), None)
        if broken is not None:
            raise BadData(
                f"{where}, row {broken}: its text is not valid Unicode (half a surrogate pair); "
                "correct it, or leave the row out"
            )
        return Split(inputs.astype(object), checked)
    if kind == "image":
        return Split(inputs if inputs.ndim == 4 else inputs[..., None], checked)
    with np.errstate(over="ignore"):  # told below, with its row
        rows = inputs.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if bad.size:
        held = "a number beyond float32" if _is_finite(inputs[bad[0]]) else "NaN or infinity"
        raise BadData(
            f"{where}, row {bad[0]}: holds {held} ({bad.size} rows like it); expected finite "
            "numbers: replace them, or leave the rows out"
        )
    return Split(rows, checked)


def _is_finite(row: NDArray[Any]) -> bool:
    return bool(np.isfinite(row).all())


def _image_spec(images: Any) -> ImageSpec:
    mean, std = channel_statistics(images)
    _, height, width, channels = images.shape
    return ImageSpec(
        size=(height, width),
        color="RGB" if channels == 3 else "L",
        resize="stretch",
        mean=mean,
        std=std,
    )
