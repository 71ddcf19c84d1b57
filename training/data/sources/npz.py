"""A user's own arrays: x_train, y_train, [x_val, y_val], x_test, y_test, [class_names] in one .npz file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, ImageSpec, Split, check_labels
from training.data.pixels import channel_statistics
from training.data.sources.digest import files_digest
from training.faults import BadData, WrongUse

MEMBERS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "class_names")


def load(spec: str, file: str) -> Dataset:
    """Float rows become tensors; uint8 of shape [N, H, W] or [N, H, W, 1 or 3] become images; strings become text."""
    path = Path(file)
    if not path.is_file():
        raise WrongUse(f"{path}: no such file")
    arrays = _read(path)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in arrays:
            raise BadData(
                f"{path}: has no {name}; expected x_train, y_train, x_test, y_test (and x_val, y_val, class_names)"
            )
    if ("x_val" in arrays) != ("y_val" in arrays):
        raise BadData(f"{path}: x_val and y_val go together")
    names = _class_names(path, arrays)
    kind = _kind(path, arrays["x_train"])
    splits: dict[str, Split] = {}
    for split in ("train", "val", "test"):
        if f"x_{split}" in arrays:
            splits[split] = _split(path, split, arrays, names, kind=kind)
    train = splits["train"]
    return Dataset(
        spec=spec,
        kind=kind,
        class_names=names,
        train=train,
        val=splits.get("val"),
        test=splits["test"],
        image=_image_spec(train.inputs) if kind == "image" else None,
        reproducible_split=False,
        origin={"file": path.name, "sha256": files_digest([path])},
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise BadData(f"{path}: is a single array; expected an .npz archive")
            return {name: _member(path, archive, name) for name in archive.files if name in MEMBERS}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{path}: cannot be read as .npz: {error}") from error


def _member(path: Path, archive: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return archive[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadData(f"{path}, {name}: {error} (arrays of Python objects are not read)") from error


def _class_names(path: Path, arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    labels = arrays["y_train"]
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].ravel())
        repeated = sorted({name for name in names if names.count(name) > 1 or not name})
        if repeated:
            raise BadData(f"{path}, class_names: '{repeated[0]}' is empty or there twice")
        return names
    if labels.dtype.kind in "US":
        return tuple(str(name) for name in np.unique(labels))
    if labels.dtype.kind not in "iuf" or not labels.size:
        raise BadData(
            f"{path}, y_train: labels are {labels.dtype}, {labels.size} rows; expected whole numbers or names"
        )
    highest = max(
        float(a.max())
        for n, a in arrays.items()
        if n.startswith("y_") and a.size and a.dtype.kind in "iuf"
    )
    if not 0 < highest < 1e6:
        raise BadData(
            f"{path}, y_train: the highest label is {highest:g}; expected 1 or more classes numbered from 0"
        )
    return tuple(str(index) for index in range(int(highest) + 1))


def _kind(path: Path, inputs: NDArray[Any]) -> Any:
    if inputs.dtype.kind == "U" and inputs.ndim == 1:
        return "text"
    if inputs.dtype.kind not in "iufb":
        raise BadData(
            f"{path}, x_train: is {inputs.dtype} of shape {list(inputs.shape)}; expected numbers, or one string a row"
        )
    if inputs.ndim < 2:
        raise BadData(f"{path}, x_train: shape {list(inputs.shape)}; expected [rows, …]")
    grey = inputs.ndim == 3
    coloured = inputs.ndim == 4 and inputs.shape[3] in (1, 3)
    return "image" if inputs.dtype == np.uint8 and (grey or coloured) else "tensor"


def _split(
    path: Path, split: str, arrays: Mapping[str, NDArray[Any]], names: tuple[str, ...], *, kind: str
) -> Split:
    inputs, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    where = f"{path}, x_{split}"
    reference = arrays["x_train"]
    if inputs.ndim != reference.ndim or inputs.shape[1:] != reference.shape[1:]:
        raise BadData(
            f"{where}: rows have shape {list(inputs.shape[1:])}; those of x_train {list(reference.shape[1:])}"
        )
    if len(inputs) != len(labels):
        raise BadData(f"{path}: x_{split} has {len(inputs)} rows, y_{split} {len(labels)}")
    if not len(inputs):
        raise BadData(f"{where}: has no rows")
    checked = check_labels(labels, names, where=f"{path}, y_{split}")
    if kind == "text":
        return Split(inputs.astype(object), checked)
    if kind == "image":
        return Split(inputs if inputs.ndim == 4 else inputs[..., None], checked)
    rows = inputs.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if bad.size:
        raise BadData(f"{where}, row {bad[0]}: holds NaN or infinity ({bad.size} rows like it)")
    return Split(rows, checked)


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
