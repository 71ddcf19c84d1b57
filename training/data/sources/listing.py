"""Makes data sets of image files, and decides how their images become the tensor."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from service.contract.nearest import nearest_path
from training.data import pixels
from training.data.dataset import Dataset, ImageSpec, Split, check_labels
from training.data.image_files import ImageFiles
from training.data.sources.digest import names_digest
from training.data.splits import stratified
from training.faults import BadData, WrongUse, instead, is_address

TEST_SHARE = 0.2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.25,)
SMALL_SIDE = 256

Listing: TypeAlias = dict[str, tuple[list[str], list[Any]]]  # split -> paths, labels
Resize: TypeAlias = Literal["stretch", "crop"] | int


@dataclass(frozen=True)
class ImageOptions:
    """The flags for image files. None: decided from the data, as docs/training.md describes."""

    size: int | None = None
    resize: Resize | None = None
    color: Literal["RGB", "L"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def decoding(self) -> bool:
        """Whether an option was given that applies only to image files."""
        return any(value is not None for value in (self.size, self.resize, self.color))

    def normalising(self, image: ImageSpec | None, spec: str) -> ImageSpec | None:
        """Return the image specification with the given mean and standard deviation.

        Raises WrongUse if their number is not that of the channels, or the data has no images.
        """
        for name, values in (("--image-mean", self.mean), ("--image-std", self.std)):
            if values is not None and (image is None or len(values) != image.channels):
                raise WrongUse(f"{spec}: {name} takes one number per channel, for images only")
        if image is None:
            return None
        return replace(image, mean=self.mean or image.mean, std=self.std or image.std)


def image_dataset(
    spec: str,
    listing: Listing,
    names: tuple[str, ...],
    *,
    options: ImageOptions,
    root: Path,
    seed: int = 0,
    draw_test: bool = False,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """The data set of images in files.

    listing: paths and labels of each split; labels are class names or indices into names. root:
    the folder, for messages. seed: of the drawn test split. draw_test: draw a test split from each
    class. notes: for Dataset.notes. Raises BadData for a bad label, or without a training image.
    """
    image = _image_spec(next(paths for paths, _ in listing.values() if paths), options)
    splits = {
        name: Split(
            ImageFiles.of(paths, image),
            check_labels(np.array(labels), names, where=f"{root} ({name})"),
        )
        for name, (paths, labels) in listing.items()
    }
    nothing = next(iter(splits.values())).take(np.empty(0, np.int64))
    train, test = splits.get("train", nothing), splits.get("test")
    whole = train if draw_test else None
    if draw_test:
        kept, drawn = stratified(train.labels, share=TEST_SHARE, seed=seed)
        test = train.take(drawn) if drawn.size else None
        train = train.take(kept)
    return Dataset(
        spec=spec,
        kind="image",
        class_names=names,
        train=train,
        val=splits.get("val"),
        test=test,
        image=image,
        whole=whole,
        reproducible_split=False,
        notes=notes,
        origin={
            "sha256": names_digest(root, [path for paths, _ in listing.values() for path in paths])
        },
    )


def _image_spec(paths: Sequence[str], options: ImageOptions) -> ImageSpec:
    if not paths:
        raise BadData("there is no training image; expected at least one JPEG, PNG or WebP file")
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
    """Return the (height, width) of the tensor, and how images are resized to it.

    Small images of one size keep their size.
    """
    if options.size is not None:
        return (options.size, options.size), round(options.size * 256 / 224)
    spread = np.unique(np.linspace(0, len(paths) - 1, 64).astype(int))
    sizes = set()
    for row in spread:
        with contextlib.suppress(BadData):  # broken files are reported later, all at once
            sizes.add(pixels.size_of(paths[row]))
    size = next(iter(sizes)) if sizes else pixels.size_of(paths[0])
    if len(sizes) == 1 and max(size) <= SMALL_SIDE:
        return size, "stretch"
    return (224, 224), 256


def existing_folder(name: str) -> Path:
    """Return the folder as a path. Raises WrongUse if it does not exist."""
    home = Path(name)
    if home.exists() and not home.is_dir():
        raise WrongUse(f"{home}: is not a folder{instead(home)}; name the folder of the images")
    if is_address(home):
        raise WrongUse(f"{home}: is an address; training reads folders, so download it first")
    if not home.is_dir():
        raise WrongUse(f"{home}: no such folder{nearest_path(home)}; name the folder of the images")
    return home
