"""Fashion-MNIST: 60,000 training and 10,000 test images, read from its four idx files."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, ImageSpec, Split, check_labels
from training.data.sources.digest import files_digest
from training.faults import BadData, WrongUse

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
IMAGE = ImageSpec(size=(28, 28), color="L", resize="stretch", mean=(0.286,), std=(0.353,))


def load(spec: str, folder: str | None) -> Dataset:
    """Load Fashion-MNIST from Debian's package, or from a folder with its four files."""
    home = Path(folder) if folder else DEBIAN_FOLDER
    paths = {key: _find(home, name) for key, name in FILES.items()}
    splits = {
        split: _split(paths[split, "images"], paths[split, "labels"]) for split in ("train", "test")
    }
    return Dataset(
        spec=spec,
        kind="image",
        class_names=CLASS_NAMES,
        train=splits["train"],
        test=splits["test"],
        image=IMAGE,
        val_per_class=1000,
        origin={"name": "Fashion-MNIST", "sha256": files_digest(paths.values())},
    )


def _find(home: Path, name: str) -> Path:
    for candidate in (home / f"{name}.gz", home / name):
        if candidate.is_file():
            return candidate
    raise WrongUse(
        f"Fashion-MNIST: {home / name}[.gz] is not there. Install Debian's package "
        "(apt install dataset-fashion-mnist), "
        f"or name a folder that holds {', '.join(FILES.values())}, gzipped or not: --data "
        "fashion-mnist:FOLDER"
    )


def _split(images_path: Path, labels_path: Path) -> Split:
    images = read_idx(images_path, rank=3)
    if images.shape[1:] != IMAGE.size:
        raise BadData(f"{images_path}: images are {list(images.shape[1:])}; expected [28, 28]")
    labels = read_idx(labels_path, rank=1)
    if len(images) != len(labels):
        raise BadData(
            f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels; expected "
            "equal numbers: take both files from one download"
        )
    return Split(images[..., None], check_labels(labels, CLASS_NAMES, where=str(labels_path)))


def read_idx(path: Path, *, rank: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    rank: its number of dimensions. Raises BadData if the file has another rank or is cut short.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            content: Any = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path}: cannot be read: {error}; download it again") from error
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes((0, 0, 8, rank)):
        raise BadData(
            f"{path}: is not an idx file of unsigned bytes with {rank} dimensions; download it "
            "again"
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise BadData(
            f"{path}: has {len(content)} bytes; shape {list(shape)} needs {expected}: download it "
            "again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
