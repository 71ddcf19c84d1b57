"""Decodes image files to pixels, and turns pixels into the network's tensor.

`service.contract.pixels` says how an image becomes a tensor; this module names the file in every
error and adds what only training does: random crops, a check of whole files, and statistics.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract import pixels as contract
from training.data.dataset import ImageSpec
from training.faults import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
LEFT_OUT = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems make beside or among images; hidden folders are left out as well."""
CROP_TRIES = 10
STATISTICS_ROWS = 20_000  # a mean over these is exact to the four digits that are kept


def decode(path: str | Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Decode an image file to pixels [H, W, channels], resized as `spec` says.

    Raises BadData that names the file.
    """
    try:
        return contract.decode_pixels(contract.open_image(_bytes_of(path)), spec)
    except contract.BadImage as error:
        raise BadData(f"{path}: {error}") from None


def random_crop(path: str | Path, spec: ImageSpec, *, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode a random part of an image to pixels [H, W, channels], mirrored half of the time.

    The part has 8 … 100 % of the area and an aspect ratio of 3:4 … 4:3 (Szegedy et al., 2015; Goyal
    et al., 2017). Raises BadData that names the file.
    """
    from PIL.Image import Resampling, Transpose

    generator = np.random.default_rng(seed)
    height, width = spec.size
    image = _upright(path, spec.color, 2 * max(spec.size))
    image = image.resize((width, height), Resampling.BILINEAR, box=_part(image, generator))
    if generator.random() < 0.5:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return contract.as_array(image)


def check(path: str | Path) -> None:
    """Decode the whole file, at low resolution if the format allows it.

    Raises BadData that names the file.
    """
    _upright(path, "RGB", 1)


def size_of(path: str | Path) -> tuple[int, int]:
    """Read (height, width) from the file's header. Raises BadData that names the file."""
    try:
        with Path(path).open("rb") as file:
            image = contract.open_header(file)
            return image.height, image.width
    except contract.BadImage as error:
        raise BadData(f"{path}: {error}") from None
    except OSError as error:
        raise BadData(f"{path}: {_why(error)}") from None


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute each channel's mean and standard deviation over uint8 images [N, H, W, channels].

    Both are on the scale 0 … 1, rounded to four digits.
    """
    step = max(1, len(images) // STATISTICS_ROWS)
    scaled = np.asarray(images[::step], np.float64) / 255
    mean = scaled.mean(axis=(0, 1, 2))
    std = np.maximum(
        scaled.std(axis=(0, 1, 2)), 1e-3
    )  # keeps a constant channel finite when it is divided by
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def normalise(images: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """Turn uint8 images [N, H, W, channels] into float32 inputs [N, channels, H, W]."""
    scaled = contract.normalise(images, mean=spec.mean, std=spec.std, scale=spec.scale)
    return np.ascontiguousarray(contract.channels_first(scaled))


def _upright(path: str | Path, color: Any, needed: int) -> "Image":
    try:
        return contract.decode_upright(
            contract.open_image(_bytes_of(path)), color=color, needed=needed
        )
    except contract.BadImage as error:
        raise BadData(f"{path}: {error}") from None


def _bytes_of(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadData(f"{path}: {_why(error)}") from None


def _why(error: OSError) -> str:
    return (
        "no such file"
        if isinstance(error, FileNotFoundError)
        else f"cannot be read: {error.strerror}"
    )


def _part(image: "Image", generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw the box (left, top, right, bottom) of a random part of the image.

    If no draw fits in the image, the box is the centre square.
    """
    width, height = image.size
    for _ in range(CROP_TRIES):
        area = width * height * generator.uniform(0.08, 1.0)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = (
                int(generator.integers(0, width - w + 1)),
                int(generator.integers(0, height - h + 1)),
            )
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
