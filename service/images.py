"""Encoded images → the model's input tensor, as `input` of its model.json says; bounded before anything is decoded."""

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.contract.bundle import InputSpec

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
"""Largest decoded image, so that a small file cannot become gigabytes."""


class InvalidImage(ValueError):
    """Bytes that are not an image that can be taken; `row` says which."""


def image_array(images: Sequence[bytes], spec: InputSpec) -> NDArray[Any]:
    """Decode, resize and normalise images into [B, C, H, W] or [B, H, W, C]. Raises InvalidImage."""
    return np.stack([_one(data, spec, row) for row, data in enumerate(images)])


def from_base64(text: object, row: int) -> bytes:
    """The bytes of {"b64": text}. Raises InvalidImage."""
    if not isinstance(text, str):
        raise InvalidImage(f"instance {row}: b64 must be a string")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"instance {row}: b64 is not valid base64") from None


def _one(data: bytes, spec: InputSpec, row: int) -> NDArray[Any]:
    assert spec.size is not None
    height, width = spec.size
    image = _resized(_decoded(data, spec, row), (width, height), spec.resize)
    pixels = np.asarray(image)
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


def _decoded(data: bytes, spec: InputSpec, row: int) -> Image.Image:
    assert spec.size is not None
    assert spec.color is not None
    if not data:
        raise InvalidImage(f"image {row} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit below is lower
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise InvalidImage(
                    f"image {row} has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded"
                )
            # JPEG only: decode at the smallest of 1/1, 1/2, 1/4, 1/8 that is still twice the size that is needed.
            needed = max(*spec.size, spec.resize if isinstance(spec.resize, int) else 0)
            image.draft(spec.color, (2 * needed, 2 * needed))
            return _converted(image, spec.color)
    except InvalidImage:
        raise
    except UnidentifiedImageError:
        raise InvalidImage(f"image {row} is not a JPEG, PNG or WebP image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InvalidImage(f"image {row} cannot be decoded: {error}") from None


def _converted(image: Image.Image, color: str) -> Image.Image:
    """To RGB or L; transparency is laid on white, 16-bit grey is scaled and not clipped."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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


def from_multipart(content_type: bytes, body: bytes) -> list[bytes]:
    """The files of a multipart/form-data body, in order, whatever their field names. Raises InvalidImage."""
    from python_multipart import parse_form
    from python_multipart.exceptions import FormParserError

    files: list[bytes] = []

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        files.append(file.file_object.read())

    headers = {"Content-Type": content_type, "Content-Length": str(len(body)).encode()}
    try:
        parse_form(headers, io.BytesIO(body), lambda _field: None, on_file)
    except (FormParserError, ValueError) as error:
        raise InvalidImage(f"the multipart body cannot be read: {error}") from None
    if not files:
        raise InvalidImage("the multipart body holds no file")
    return files
