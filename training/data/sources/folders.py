"""Images in a folder a class, or named by list files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data import pixels
from training.data.dataset import Dataset, check_labels
from training.data.sources.digest import files_digest
from training.data.sources.listing import ImageOptions, existing_folder, image_dataset
from training.faults import BadData, WrongUse, say

UNREAD_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg")


def load_folder(spec: str, folder: str, *, seed: int, options: ImageOptions) -> Dataset:
    """DIR/<class>/… or DIR/{train,val,test}/<class>/…; without a test folder a fifth of each class is drawn for it."""
    home = existing_folder(folder)
    parted = (home / "train").is_dir()
    if parted:
        listing = {
            name: _class_folders(home / name)
            for name in ("train", "val", "test")
            if (home / name).is_dir()
        }
    else:
        listing = {"train": _class_folders(home)}
    names = tuple(entry.name for entry in _subfolders(home / "train" if parted else home))
    if not names:
        raise BadData(
            f"{home}: holds no class folders; expected {home}/<class>/<image> or {home}/train/<class>/<image>"
        )
    return image_dataset(
        spec, listing, names, options=options, root=home, seed=seed, draw_test=not parted
    )


def load_lists(spec: str, place: str, *, options: ImageOptions) -> Dataset:
    """TRAIN.txt,VAL.txt,TEST.txt@ROOT (or TRAIN.txt,TEST.txt@ROOT): lines `path label`, paths below ROOT.

    A class is named after its training images' folder where that is one folder a class, else by its number.
    """
    lists, at, root = place.rpartition("@")
    files = [Path(name) for name in lists.split(",") if name]
    if not at or len(files) not in (2, 3):
        raise WrongUse(f"{spec}: expected list:TRAIN.txt,VAL.txt,TEST.txt@ROOT")
    home = existing_folder(root)
    splits = ("train", "val", "test") if len(files) == 3 else ("train", "test")
    listing = {split: _read_list(file, home) for split, file in zip(splits, files, strict=True)}
    names = _names_of(*listing["train"])
    for split, file in zip(splits, files, strict=True):
        check_labels(
            np.array(listing[split][1]), names, where=str(file), first_row=1, row_word="line"
        )
    data = image_dataset(spec, listing, names, options=options, root=home)
    data.origin["sha256"] = files_digest(files)
    return data


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _class_folders(folder: Path) -> tuple[list[str], list[Any]]:
    paths: list[str] = []
    labels: list[Any] = []
    passed_over = 0
    for entry in _subfolders(folder):
        for path in sorted(entry.rglob("*")):
            suffix = path.suffix.lower()
            if path.name.startswith(".") or not path.is_file():
                continue
            if suffix in UNREAD_SUFFIXES:
                raise BadData(f"{path}: is {suffix[1:]}; JPEG, PNG and WebP are read (and served)")
            if suffix not in pixels.SUFFIXES:
                passed_over += 1
                continue
            paths.append(str(path))
            labels.append(entry.name)
    if passed_over:
        say(f"{folder}: {passed_over} files that are no images are passed over")
    return paths, labels


def _read_list(file: Path, root: Path) -> tuple[list[str], list[Any]]:
    paths: list[str] = []
    labels: list[Any] = []
    try:
        lines = file.read_text(encoding="utf-8").rstrip().splitlines()
    except OSError as error:
        raise WrongUse(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{file}: is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.lstrip("-").isdigit():
            raise BadData(
                f"{file}, line {number}: '{line[:80]}'; expected `path label` with a whole number as the label"
            )
        found = root / path.strip()
        if not found.is_file():
            raise BadData(f"{file}, line {number}: {found} is not there")
        paths.append(str(found))
        labels.append(int(label))
    if not paths:
        raise BadData(f"{file}: names no image")
    return paths, labels


def _names_of(paths: Sequence[str], labels: Sequence[int]) -> tuple[str, ...]:
    count = max(labels) + 1
    if count > max(10 * len(labels), 1000):
        raise BadData(
            f"the highest label is {count - 1}, of {len(labels)} training images; expected classes numbered from 0"
        )
    folders: dict[int, set[str]] = {}
    for path, label in zip(paths, labels, strict=True):
        folders.setdefault(label, set()).add(Path(path).parent.name)
    named = {label: next(iter(names)) for label, names in folders.items() if len(names) == 1}
    if len(named) == len(folders) == len(set(named.values())) == count:
        return tuple(named[label] for label in range(count))
    return tuple(str(label) for label in range(count))
