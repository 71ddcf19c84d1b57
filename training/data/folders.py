"""Images in folders, named by list files, or named by iNaturalist's JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from training.data import pixels
from training.data.dataset import Dataset, ImageSpec, Split, check_labels
from training.data.digest import files_digest, names_digest
from training.data.image_files import ImageFiles
from training.data.splits import stratified
from training.faults import BadData, WrongUse, say

TEST_SHARE = 0.2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.25,)
SMALL_SIDE = 256
UNREAD_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg")


Resize: TypeAlias = Literal["stretch", "crop"] | int


@dataclass(frozen=True)
class ImageOptions:
    """How images become the tensor; None leaves it to the data (docs/training.md tells how)."""

    size: int | None = None
    resize: Resize | None = None
    color: Literal["RGB", "L"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def decoding(self) -> bool:
        """Whether anything is asked for that only images in files leave open."""
        return any(value is not None for value in (self.size, self.resize, self.color))

    def normalising(self, image: ImageSpec | None, spec: str) -> ImageSpec | None:
        """The image specification with the mean and deviation that were asked for."""
        for name, values in (("--image-mean", self.mean), ("--image-std", self.std)):
            if values is not None and (image is None or len(values) != image.channels):
                raise WrongUse(f"{spec}: {name} takes one number a channel of images")
        if image is None:
            return None
        return replace(image, mean=self.mean or image.mean, std=self.std or image.std)


Listing = dict[str, tuple[list[str], list[Any]]]  # split -> paths, labels


def load_folder(spec: str, folder: str, *, seed: int, options: ImageOptions) -> Dataset:
    """DIR/<class>/… or DIR/{train,val,test}/<class>/…; without a test folder a fifth of each class is drawn for it."""
    home = _folder(folder)
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
    return _dataset(
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
    home = _folder(root)
    splits = ("train", "val", "test") if len(files) == 3 else ("train", "test")
    listing = {split: _read_list(file, home) for split, file in zip(splits, files, strict=True)}
    names = _names_of(*listing["train"])
    for split, file in zip(splits, files, strict=True):
        check_labels(
            np.array(listing[split][1]), names, where=str(file), first_row=1, row_word="line"
        )
    data = _dataset(spec, listing, names, options=options, root=home)
    data.origin["sha256"] = files_digest(files)
    return data


def load_inaturalist(spec: str, folder: str, *, options: ImageOptions) -> Dataset:
    """The 2018 competition's train2018.json and val2018.json beside the images; its val is our test split."""
    home = _folder(folder)
    files = {split: _one_json(home, stem) for split, stem in (("train", "train"), ("test", "val"))}
    documents = {split: _read_json(file) for split, file in files.items()}
    categories = _categories(files["train"], documents["train"])
    index = {identifier: position for position, identifier in enumerate(categories)}
    listing = {split: _annotated(files[split], documents[split], index, home) for split in files}
    data = _dataset(spec, listing, tuple(categories.values()), options=options, root=home)
    data.origin["sha256"] = files_digest(files.values())
    return data


def _dataset(
    spec: str,
    listing: Listing,
    names: tuple[str, ...],
    *,
    options: ImageOptions,
    root: Path,
    seed: int = 0,
    draw_test: bool = False,
) -> Dataset:
    image = _image_spec(listing["train"][0], options)
    splits = {
        name: Split(
            ImageFiles.of(paths, image),
            check_labels(np.array(labels), names, where=f"{root} ({name})"),
        )
        for name, (paths, labels) in listing.items()
    }
    train, test = splits["train"], splits.get("test")
    if draw_test:
        kept, drawn = stratified(train.labels, share=TEST_SHARE, seed=seed)
        train, test = train.take(kept), train.take(drawn)
    return Dataset(
        spec=spec,
        kind="image",
        class_names=names,
        train=train,
        val=splits.get("val"),
        test=test,
        image=image,
        reproducible_split=False,
        origin={
            "sha256": names_digest(root, [path for paths, _ in listing.values() for path in paths])
        },
    )


def _image_spec(paths: Sequence[str], options: ImageOptions) -> ImageSpec:
    if not paths:
        raise BadData("there is no training image")
    size, fitting = _size_of(paths, options)
    color = options.color or "RGB"
    return ImageSpec(
        size=size,
        color=color,
        resize=fitting if options.resize is None else options.resize,
        mean=IMAGENET_MEAN if color == "RGB" else GREY_MEAN,
        std=IMAGENET_STD if color == "RGB" else GREY_STD,
    )


def _size_of(paths: Sequence[str], options: ImageOptions) -> tuple[tuple[int, int], Resize]:
    """Height and width, and the resizing that goes with them: small images that are alike stay as they are."""
    if options.size is not None:
        return (options.size, options.size), round(options.size * 256 / 224)
    spread = np.unique(np.linspace(0, len(paths) - 1, 64).astype(int))
    sizes = {pixels.size_of(paths[row]) for row in spread}
    size = next(iter(sizes))
    if len(sizes) == 1 and max(size) <= SMALL_SIDE:
        return size, "stretch"
    return (224, 224), 256


def _folder(name: str) -> Path:
    home = Path(name)
    if not home.is_dir():
        raise WrongUse(f"{home}: no such folder")
    return home


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


def _one_json(home: Path, stem: str) -> Path:
    found = sorted(
        path for path in [*home.glob(f"{stem}*.json"), *home.glob(f"annotations/{stem}*.json")]
    )
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise WrongUse(f"{home}: expected one {stem}2018.json, found {listed}")
    return found[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BadData(f"{file}: is not JSON: {error}") from error
    for member in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(member), list):
            raise BadData(f"{file}: has no list '{member}'")
    assert isinstance(content, dict)
    return content


def _categories(file: Path, document: dict[str, Any]) -> dict[int, str]:
    """Id -> name, by id; names that are there twice get their id."""
    found = document.get("categories")
    if not isinstance(found, list) or not found:
        raise BadData(f"{file}: has no list 'categories'")
    names: dict[int, str] = {}
    for row, category in enumerate(found):
        try:
            names[int(category["id"])] = str(category.get("name", category["id"]))
        except (KeyError, TypeError, ValueError):
            raise BadData(f"{file}, categories, row {row}: has no whole-number id") from None
    listed = list(names.values())
    return {
        key: f"{names[key]} ({key})" if listed.count(names[key]) > 1 else names[key]
        for key in sorted(names)
    }


def _annotated(
    file: Path, document: dict[str, Any], index: dict[int, int], home: Path
) -> tuple[list[str], list[Any]]:
    files = {
        image.get("id"): image.get("file_name")
        for image in document["images"]
        if isinstance(image, dict)
    }
    paths: list[str] = []
    labels: list[Any] = []
    for row, annotation in enumerate(document["annotations"]):
        where = f"{file}, annotations, row {row}"
        if not isinstance(annotation, dict):
            raise BadData(f"{where}: is no object")
        name, category = files.get(annotation.get("image_id")), annotation.get("category_id")
        if not name:
            raise BadData(f"{where}: image_id {annotation.get('image_id')} is not among the images")
        if category not in index:
            raise BadData(f"{where}: category_id {category} is not among the categories")
        path = home / name
        if not path.is_file():
            raise BadData(f"{where}: {path} is not there")
        paths.append(str(path))
        labels.append(index[category])
    return paths, labels
