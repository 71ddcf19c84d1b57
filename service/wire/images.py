"""Encoded images → the model's input tensor, as `input` of its model.json says; bounded before anything is decoded."""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from service.contract.bundle import InputSpec
from service.wire.arrays import InvalidImage

Image.preinit()  # else the first picture waits for its decoder to be imported
FORMATS = ("JPEG", "PNG", WebPImagePlugin.WebPImageFile.format)
MAX_PIXELS = 50_000_000
"""Largest image that is decoded, so that a small file cannot become gigabytes."""
MAX_REQUEST_PIXELS = 500_000_000
"""The same for all images of one request together."""
Image.MAX_IMAGE_PIXELS = (
    None  # the limits above are lower than Pillow's, and refuse instead of warning
)
_PNG_END = b"IEND\xaeB`\x82"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


def image_array(images: Sequence[bytes | str], spec: InputSpec) -> NDArray[Any]:
    """Decode, resize and normalise images into [B, C, H, W] or [B, H, W, C]; a string is base64. Raises InvalidImage."""
    pixels = 0
    arrays = []
    for row, encoded in enumerate(images):
        data = from_base64(encoded, row) if isinstance(encoded, str) else encoded
        image = _opened(data, row)
        pixels += image.width * image.height
        if pixels > MAX_REQUEST_PIXELS:
            raise InvalidImage(
                f"the images up to number {row} have {pixels} pixels together; at most {MAX_REQUEST_PIXELS} are decoded"
            )
        arrays.append(_one(image, spec, row))
    return np.stack(arrays)


def from_base64(text: str, row: int) -> bytes:
    """The bytes of base64 text. Raises InvalidImage."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"instance {row}: b64 is not valid base64") from None


def _one(image: Image.Image, spec: InputSpec, row: int) -> NDArray[Any]:
    assert spec.size is not None
    height, width = spec.size
    pixels = np.asarray(_resized(_decoded(image, spec, row), (width, height), spec.resize))
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if spec.dtype.startswith("float"):
        scaled = pixels.astype(np.float32) / np.float32(255)
        if spec.mean is not None:
            scaled -= np.asarray(spec.mean, np.float32)
        if spec.std is not None:
            scaled /= np.asarray(spec.std, np.float32)
        pixels = scaled
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels, spec.dtype)


def _opened(data: bytes, row: int) -> Image.Image:
    """An image whose header has been read and whose pixels have not."""
    if not data:
        raise InvalidImage(f"image {row} is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidImage(f"image {row} is not a JPEG, PNG or WebP image") from None
    except Exception as error:  # noqa: BLE001 - decoders of hostile bytes raise what they like
        raise InvalidImage(f"image {row} cannot be read: {error}") from None
    if image.format == "PNG" and _PNG_END not in data:  # Pillow shows what is there without a word
        raise InvalidImage(f"image {row} is truncated: its last PNG chunk is missing")
    if image.width * image.height > MAX_PIXELS:
        raise InvalidImage(
            f"image {row} has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded"
        )
    return image


def _decoded(image: Image.Image, spec: InputSpec, row: int) -> Image.Image:
    """The first frame, upright, in the model's colours."""
    assert spec.size is not None
    assert spec.color is not None
    # JPEG only: decode at the smallest of 1/1, 1/2, 1/4, 1/8 that is still twice the size that is needed.
    needed = max(*spec.size, spec.resize if isinstance(spec.resize, int) else 0)
    try:
        image.draft(spec.color, (2 * needed, 2 * needed))
        orientation = _orientation(image)
        image = _converted(image, spec.color)
    except Exception as error:  # noqa: BLE001 - see _opened
        raise InvalidImage(f"image {row} cannot be decoded: {error}") from None
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """1 where the picture lies as it should, and where its EXIF data cannot be read."""
    try:
        found: int = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - broken EXIF is no reason to refuse a picture
        return 1
    return found


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


def _resized(image: Image.Image, size: tuple[int, int], resize: str | int | None) -> Image.Image:
    width, height = size
    if resize == "stretch":
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    if resize == "crop":
        scale = max(width / image.width, height / image.height)
    else:
        assert isinstance(resize, int)
        scale = resize / min(image.size)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
