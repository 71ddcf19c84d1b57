"""Reads images from one folder per class, or as named by list files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.nearest import nearest_path
from training.data import pixels
from training.data.dataset import PARTS, Dataset, Known, check_labels
from training.data.sources.digest import files_digest
from training.data.sources.listing import ImageOptions, existing_folder, image_dataset
from training.faults import BadData, WrongUse, absent

UNREAD_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg")


def load_folder(
    spec: str, folder: str, *, seed: int, options: ImageOptions, known: Known | None = None
) -> Dataset:
    """Load images from DIR/<class>/… or DIR/{train,val,test}/<class>/…

    If there is no test folder, a fifth of each class is drawn for test. known: what the published
    model that will score the images states. Raises WrongUse if DIR does not exist, BadData if its
    folders are not laid out like this.
    """
    home = existing_folder(folder)
    parts, notes = _parts(home)
    if parts and "train" not in parts and known is None:
        raise BadData(f"{home}: has {', '.join(parts.values())} but no train folder; add one")
    listing = {
        name: _class_folders(home / part, notes) for name, part in (parts or {"train": "."}).items()
    }
    names = tuple(entry.name for entry in _subfolders(home / parts.get("train", ".")))
    if known is not None:
        names = known.class_names
    if not names or not any(paths for paths, _ in listing.values()):
        either = f" or {home}/train/<class>/<image>" if not parts else ""
        home = home / parts.get("train", ".")
        raise BadData(
            f"{home}: holds no class folders with images; expected {home}/<class>/<image>{either}"
        )
    if len(names) == 1 and not parts and known is None:
        _check_not_above(home / names[0])
    bare = [name for name, (paths, _) in listing.items() if not paths]
    if bare and known is None:
        raise BadData(
            f"{home / parts[bare[0]]}: has no image in a class folder; add some, or remove this "
            "folder"
        )
    listing = {name: one for name, one in listing.items() if name not in bare}
    return image_dataset(
        spec,
        listing,
        names,
        options=options,
        root=home,
        seed=seed,
        draw_test=not parts,
        notes=tuple(notes),
    )


def _check_not_above(only: Path) -> None:
    """Raise BadData if there is one class folder and its sub-folders look like the real classes."""
    below = [entry for entry in _subfolders(only) if _images(files_below(entry))]
    if len(below) > 1 and not _images(_files_in(only)):
        raise BadData(
            f"{only.parent}: has one class folder, {only.name}, whose {len(below)} folders look "
            f"like classes or splits; is images:{only} meant? If so, give that folder"
        )


def _images(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in pixels.SUFFIXES]


def _parts(home: Path) -> tuple[dict[str, str], list[str]]:
    """Return the folder of each split, {} if DIR has none, and notes for the user."""
    found: dict[str, str] = {}
    others: list[str] = []
    for entry in _subfolders(home):
        name = next((part for part, names in PARTS.items() if entry.name.lower() in names), None)
        if name is None or (any(_files_in(entry)) and not _subfolders(entry)):
            others.append(entry.name)
        elif name in found:
            raise BadData(
                f"{home}: {found[name]} and {entry.name} both look like the {name} split; "
                "rename one"
            )
        else:
            found[name] = entry.name
    if not found or (others and "train" not in found):
        return {}, []
    left = [f"folders beside {', '.join(found.values())} are left out: {', '.join(others[:10])}"]
    return {name: found[name] for name in PARTS if name in found}, left if others else []


def load_lists(spec: str, place: str, *, options: ImageOptions) -> Dataset:
    """Load images named by TRAIN.txt,VAL.txt,TEST.txt@ROOT, or by TRAIN.txt,TEST.txt@ROOT.

    Each line of a list is `path label`, with the path relative to ROOT. If the training images of
    each class are in one folder of their own, the class has the folder's name; else the label is
    its name. Raises WrongUse for a wrong specification, BadData for a bad line.
    """
    lists, at, root = place.rpartition("@")
    files = [Path(name) for name in lists.split(",") if name]
    if not at or len(files) not in (2, 3):
        raise WrongUse(f"{spec}: expected list:TRAIN.txt,VAL.txt,TEST.txt@ROOT")
    home = existing_folder(root)
    splits = ("train", "val", "test") if len(files) == 3 else ("train", "test")
    listing = {split: _read_list(file, home) for split, file in zip(splits, files, strict=True)}
    first = _first_label([labels for _, labels in listing.values()])
    listing = {
        split: (paths, [label - first for label in labels])
        for split, (paths, labels) in listing.items()
    }
    names = _names_of(*listing["train"], first=first)
    for split, file in zip(splits, files, strict=True):
        check_labels(
            np.array(listing[split][1]), names, where=str(file), first_row=1, row_word="line"
        )
    data = image_dataset(spec, listing, names, options=options, root=home)
    data.origin["sha256"] = files_digest(files)
    return data


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _left_out(entry))


def _files_in(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_file() and not _left_out(entry))


def _left_out(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in pixels.LEFT_OUT


def _class_folders(folder: Path, notes: list[str]) -> tuple[list[str], list[Any]]:
    """Return the paths and labels of the images below each class folder; note what is left out."""
    paths: list[str] = []
    labels: list[Any] = []
    others = dangling = special = 0
    beside = _images(_files_in(folder))
    for entry in _subfolders(folder):
        for path in files_below(entry):
            suffix = path.suffix.lower()
            if not path.is_file():
                special += path.exists()
                dangling += not path.exists()
            elif suffix in UNREAD_SUFFIXES:
                raise BadData(f"{path}: is {suffix[1:]}; convert it to JPEG, PNG or WebP")
            elif suffix in pixels.SUFFIXES:
                paths.append(str(path))
                labels.append(entry.name)
            else:
                others += 1
    if others:
        notes.append(f"{folder}: {others} files that are not images are left out")
    if dangling:
        notes.append(f"{folder}: {dangling} links to missing files are left out")
    if special:
        notes.append(f"{folder}: {special} pipes, sockets and devices are left out")
    if beside:
        notes.append(
            f"{folder}: {len(beside)} images in no class folder are left out, such as "
            f"{beside[0].name}"
        )
    return paths, labels


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder in order; follow links, and skip what is hidden.

    Links back up are not followed: a folder above this one also holds the images of other classes.
    Raises BadData for a folder that cannot be read, or whose path is too long for the system.
    """

    def unreadable(error: OSError) -> None:
        raise BadData(
            f"{error.filename}: {error.strerror}; make the folder readable, or move it away"
        ) from error

    found: list[Path] = []
    entered = {str(above) for above in Path(os.path.realpath(folder)).parents}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(place)
        if real in entered:  # a link back up
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not _left_out(Path(name))]
        found.extend(Path(place) / name for name in names if not name.startswith("."))
    return sorted(found)


def _read_list(file: Path, root: Path) -> tuple[list[str], list[Any]]:
    paths: list[str] = []
    labels: list[Any] = []
    if not file.is_file():
        near = "" if file.exists() else nearest_path(file)
        raise WrongUse(f"{absent(file)}{near}; expected a list of `path label` lines")
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise BadData(f"{file}: is not UTF-8 text: {error}; save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.lstrip("-").isdigit():
            raise BadData(
                f"{file}, line {number}: '{line[:80]}'; expected `path label` with a whole number "
                "as the label"
            )
        found = root / path.strip()
        if not found.is_file():
            slashes = " with / between folders" if "\\" in path else ""
            raise BadData(
                f"{file}, line {number}: {found} does not exist; expected a path relative to the "
                f"ROOT behind @{slashes}"
            )
        paths.append(str(found))
        labels.append(int(label))
    if not paths:
        raise BadData(f"{file}: names no image; expected lines `path label`")
    return paths, labels


def _first_label(lists: Sequence[Sequence[int]]) -> int:
    """Return the lowest label: 1 if the training labels are 1 … C and no list has a 0, else 0."""
    own = set(lists[0])
    from_one = own == set(range(1, len(own) + 1)) and len(own) > 1
    return int(from_one and not any(0 in labels for labels in lists))


def _names_of(paths: Sequence[str], labels: Sequence[int], *, first: int) -> tuple[str, ...]:
    count = max(labels) + 1
    if count > max(10 * len(labels), 1000):
        raise BadData(
            f"the highest label is {count - 1}, of {len(labels)} training images; expected "
            "classes numbered from 0"
        )
    folders: dict[int, set[str]] = {}
    for path, label in zip(paths, labels, strict=True):
        folders.setdefault(label, set()).add(Path(path).parent.name)
    named = {label: next(iter(names)) for label, names in folders.items() if len(names) == 1}
    if len(named) == len(folders) == len(set(named.values())) == count:
        return tuple(named[label] for label in range(count))
    return tuple(str(label + first) for label in range(count))
