"""Image files to pixels, step for step as the service does it (a test holds the two equal)."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from training.data.dataset import ImageSpec
from training.faults import BadData

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 50_000_000  # of a decoded image; the service takes no more
CROP_TRIES = 10
_PNG_END = b"IEND\xaeB`\x82"
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: str | Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of an image file, resized as spec says. Raises BadData naming the file."""
    needed = max(*spec.size, spec.resize if isinstance(spec.resize, int) else 0)
    image = _resized(_opened(path, spec.color, needed), spec)
    return _channels_last(image)


def random_crop(path: str | Path, spec: ImageSpec, *, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of a random part of the image, half of the time mirrored, for training.

    The part has 8 … 100 % of the area and sides 3:4 … 4:3 (Szegedy et al., 2015; Goyal et al., 2017).
    """
    generator = np.random.default_rng(seed)
    height, width = spec.size
    image = _opened(path, spec.color, 2 * max(spec.size))
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=_part(image, generator))
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _channels_last(image)


def check(path: str | Path) -> None:
    """Decode the whole file, coarsely where the format allows it. Raises BadData naming the file."""
    _opened(path, "RGB", 1)


def size_of(path: str | Path) -> tuple[int, int]:
    """(height, width) by the file's header. Raises BadData naming the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadData(f"{path}: cannot be read as an image: {_why(error, path)}") from None


def _opened(path: str | Path, color: str, needed: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit below is lower
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadData(
                        f"{path}: has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded"
                    )
                # Pillow shows what is there of a PNG without a word
                if image.format == "PNG" and _PNG_END not in Path(path).read_bytes()[-64:]:
                    raise BadData(f"{path}: is truncated: its last PNG chunk is missing")
                # JPEG only: decode at the smallest of 1/1, 1/2, 1/4, 1/8 that is still twice the size that is needed
                image.draft(color, (2 * needed, 2 * needed))
                orientation = _orientation(image)
                converted = _converted(image, color)
                upright = _UPRIGHT.get(orientation)
                return converted if upright is None else converted.transpose(upright)
    except BadData:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadData(f"{path}: cannot be read as an image: {_why(error, path)}") from None


def _orientation(image: Image.Image) -> int:
    """1 where the picture lies as it should, and where its EXIF data cannot be read."""
    try:
        found: int = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - broken EXIF is no reason to refuse a picture
        return 1
    return found


def _why(error: Exception, path: str | Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS)} file"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error).replace(str(path), "it")


def _converted(image: Image.Image, color: str) -> Image.Image:
    """To RGB or L; transparency is laid on white, 16-bit grey is scaled and not clipped."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        white.alpha_composite(over)
        image = white
    return image.convert(color)


def _resized(image: Image.Image, spec: ImageSpec) -> Image.Image:
    height, width = spec.size
    if spec.resize == "stretch":
        return (
            image
            if image.size == (width, height)
            else image.resize((width, height), Image.Resampling.BILINEAR)
        )
    if spec.resize == "crop":
        scale = max(width / image.width, height / image.height)
    else:
        scale = spec.resize / min(image.size)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _part(image: Image.Image, generator: np.random.Generator) -> tuple[float, float, float, float]:
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


def _channels_last(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]
