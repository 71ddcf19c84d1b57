"""Images of a data set: files to pixels, pixels to the network's tensor, and the statistics of the
channels.

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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CROP_TRIES = 10
STATISTICS_ROWS = 20_000  # a mean over these is exact to the four digits that are kept


def decode(path: str | Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of an image file, resized as spec says. Raises BadData naming the
    file.
    """
    try:
        return contract.decode_pixels(contract.open_image(_bytes_of(path)), spec)
    except contract.BadImage as error:
        raise BadData(f"{path}: {error}") from None


def random_crop(path: str | Path, spec: ImageSpec, *, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of a random part of the image, half of the time mirrored, for
    training.

    The part has 8 … 100 % of the area and sides 3:4 … 4:3 (Szegedy et al., 2015; Goyal et al.,
    2017).
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
    """Decode the whole file, coarsely where the format allows it. Raises BadData naming the
    file.
    """
    _upright(path, "RGB", 1)


def size_of(path: str | Path) -> tuple[int, int]:
    """(height, width) by the file's header. Raises BadData naming the file."""
    try:
        with Path(path).open("rb") as file:
            image = contract.open_header(file)
            return image.height, image.width
    except contract.BadImage as error:
        raise BadData(f"{path}: {error}") from None
    except OSError as error:
        raise BadData(f"{path}: {_why(error)}") from None


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, channels], on the scale 0 … 1.

    Both are rounded to four digits.
    """
    step = max(1, len(images) // STATISTICS_ROWS)
    scaled = np.asarray(images[::step], np.float64) / 255
    mean = scaled.mean(axis=(0, 1, 2))
    std = np.maximum(scaled.std(axis=(0, 1, 2)), 1e-3)  # a constant channel stays finite
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def normalise(images: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """The network's tensor, float32 [N, channels, H, W], of uint8 images [N, H, W, channels]."""
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
    """The box (left, top, right, bottom) of a random part; the centre square when none of the tries
    fits.
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
