"""Reads CIFAR-10 and CIFAR-100 from the "python version" batches of their authors."""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from service.contract.nearest import nearest_path
from training.data.dataset import Dataset, ImageSpec, Split, check_labels
from training.data.sources.digest import files_digest
from training.faults import BadData, WrongUse

IMAGE = ImageSpec(
    size=(32, 32),
    color="RGB",
    resize="stretch",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.201),
)
PIXELS = 3 * 32 * 32
FORMS = {
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{n}" for n in range(1, 6)],
        ["test_batch"],
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    "cifar100": (
        "cifar-100-python",
        ["train"],
        ["test"],
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
}


def load(spec: str, kind: str, folder: str) -> Dataset:
    """Load the data set.

    kind: cifar10 or cifar100. folder: the folder of the batches, or its parent. Raises WrongUse if
    a batch is missing, BadData if one cannot be read.
    """
    inner, train, test, meta, label_key, names_key = FORMS[kind]
    home = Path(folder)
    if not (home / train[0]).is_file() and (home / inner).is_dir():
        home /= inner
    if not home.is_dir():
        raise WrongUse(
            f"{home}: no such folder{nearest_path(home)}; expected the folder of the unpacked "
            "batches, or its parent"
        )
    missing = [name for name in (*train, *test, meta) if not (home / name).is_file()]
    if missing:
        raise WrongUse(
            f"{home}: {', '.join(missing)} missing; expected the unpacked python version "
            f"({inner}.tar.gz from the CIFAR page of the University of Toronto)"
        )
    names = _names(home / meta, names_key)
    return Dataset(
        spec=spec,
        kind="image",
        class_names=names,
        train=_joined([home / name for name in train], names, label_key),
        test=_joined([home / name for name in test], names, label_key),
        image=IMAGE,
        origin={"name": inner, "sha256": files_digest(home / name for name in (*train, *test))},
    )


def _names(path: Path, key: bytes) -> tuple[str, ...]:
    found = _read(path).get(key)
    if not isinstance(found, list) or not found:
        raise BadData(f"{path}: has no list {key.decode()}; expected a CIFAR batch")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in found)


def _joined(paths: list[Path], names: tuple[str, ...], label_key: bytes) -> Split:
    parts = [_batch(path, names, label_key) for path in paths]
    return Split(
        np.concatenate([images for images, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
    )


def _batch(
    path: Path, names: tuple[str, ...], label_key: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = _read(path)
    pixels, labels = content.get(b"data"), content.get(label_key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != PIXELS
    ):
        raise BadData(
            f"{path}: its data are not uint8 rows of {PIXELS} pixels; expected a CIFAR batch"
        )
    if not isinstance(labels, (list, np.ndarray)) or len(labels) != len(pixels):
        raise BadData(
            f"{path}: has {len(pixels)} images, but another number of {label_key.decode()}; "
            "unpack the archive again"
        )
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, check_labels(np.asarray(labels), names, where=str(path))


def _read(path: Path) -> dict[bytes, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise BadData(
            f"{path}: {error.strerror}; expected a file that this user can read"
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise BadData(
            f"{path}: cannot be read as a CIFAR batch: {error}; unpack the archive again"
        ) from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: holds a {type(content).__name__}; expected a dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles only arrays and plain values, because a pickle could otherwise run any code."""

    _ALLOWED: ClassVar = {
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }  # fmt: skip

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the class, if arrays are made of it; refuse every other one."""
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which no batch needs"
            )
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
