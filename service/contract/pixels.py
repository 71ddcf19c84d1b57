"""How an image file becomes a model's input tensor, step by step; the service and training both
call it.

Decode the first frame, turn it upright by its EXIF orientation, convert it to the model's colours,
resize it, and normalise each channel. Pillow is imported inside the functions, so that a process
without image models never loads it.
"""

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
"""Pixels of the largest image that is decoded, so that a small file cannot become gigabytes."""

_PNG_END = b"IEND\xaeB`\x82"
_EXIF_ORIENTATION = 0x0112


class BadImage(ValueError):
    """Bytes that are not an image that can be taken; the message follows a name: "is empty"."""


@cache
def load_decoders() -> Any:
    """Import Pillow and its decoders of common formats once, and return its `PIL.Image` module.

    Pillow's own limit on pixels is switched off: `MAX_PIXELS` is lower, and refuses instead of
    warning.
    """
    from PIL import (
        Image,
        WebPImagePlugin,  # noqa: F401 - importing it registers WebP, which preinit leaves out
    )

    Image.preinit()
    Image.MAX_IMAGE_PIXELS = None
    return Image


def open_image(data: bytes) -> "Image":
    """Read the header of a whole image file; its pixels are decoded later. Raises BadImage.

    Bytes after the end of an image are ignored, but a PNG must have its last chunk: Pillow shows
    what there is of a truncated one and raises nothing.
    """
    if not data:
        raise BadImage("is empty")
    image = open_header(io.BytesIO(data))
    if image.format == "PNG" and _PNG_END not in data:
        raise BadImage("is truncated: its last PNG chunk is missing")
    return image


def open_header(file: BinaryIO) -> "Image":
    """Read no more than the header of an image: format and size. Raises BadImage."""
    from PIL import UnidentifiedImageError

    try:
        image: Image = load_decoders().open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("is not a JPEG, PNG or WebP image") from None
    except Exception as error:  # noqa: BLE001 - decoders raise errors of any class for damaged bytes
        raise BadImage(f"cannot be read: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded"
        )
    return image


def decode_pixels(
    image: "Image",
    *,
    size: Sequence[int],
    color: Literal["RGB", "L"],
    resize: Literal["stretch", "crop"] | int,
) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] of an opened image, upright and at the model's size. Raises
    BadImage.

    size: [height, width]. resize: "stretch" changes the aspect ratio; "crop" scales the image until
    it covers `size` and cuts the centre out; a number scales the shorter side to so many pixels
    before the cut.
    """
    needed = max(*size, resize if isinstance(resize, int) else 0)
    upright = decode_upright(image, color=color, needed=needed)
    return as_array(_resized(upright, (size[1], size[0]), resize))


def decode_upright(image: "Image", *, color: Literal["RGB", "L"], needed: int) -> "Image":
    """The first frame, upright, in the model's colours. Raises BadImage.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep twice `needed`
    pixels.
    """
    try:
        image.draft(color, (2 * needed, 2 * needed))
        orientation = _orientation(image)
        image = _converted(image, color)
    except Exception as error:  # noqa: BLE001 - decoders raise errors of any class for damaged bytes
        raise BadImage(f"cannot be decoded: {error}") from None
    turn = _turn(orientation)
    return image if turn is None else image.transpose(turn)


def as_array(image: "Image") -> NDArray[np.uint8]:
    """Pixels [height, width, channels] of a decoded image; grey has one channel."""
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def normalise(
    pixels: NDArray[np.uint8], *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> NDArray[np.float32]:
    """Pixels [..., channels] divided by 255, minus `mean`, divided by `std`; None leaves that step
    out.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    if mean is not None:
        scaled -= np.asarray(mean, np.float32)
    if std is not None:
        scaled /= np.asarray(std, np.float32)
    return scaled


def channels_first(pixels: NDArray[Any]) -> NDArray[Any]:
    """[..., height, width, channels] as [..., channels, height, width], without a copy."""
    return np.moveaxis(pixels, -1, -3)


def _orientation(image: "Image") -> int:
    """The EXIF orientation; 1 (upright) where the EXIF data cannot be read, since the pixels still
    can.
    """
    try:
        found: int = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - decoders raise errors of any class for damaged bytes
        return 1
    return found


def _turn(orientation: int) -> Any:
    """The transposition that turns an image with this EXIF orientation upright; None when it is
    upright.
    """
    transpose = load_decoders().Transpose
    return {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }.get(orientation)


def _converted(image: "Image", color: str) -> "Image":
    """Convert to RGB or L; transparent parts become white, and 16-bit grey is scaled rather than
    clipped.
    """
    pillow = load_decoders()
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        white = pillow.new("RGBA", over.size, "white")
        white.alpha_composite(over)
        image = white
    return image.convert(color)


def _resized(image: "Image", size: tuple[int, int], resize: str | int) -> "Image":
    """Resize to `size` (width, height) as `decode_pixels` says."""
    bilinear = load_decoders().Resampling.BILINEAR
    width, height = size
    if resize == "stretch":
        return image if image.size == size else image.resize(size, bilinear)
    if resize == "crop":
        scale = max(width / image.width, height / image.height)
    else:
        assert isinstance(resize, int)
        scale = resize / min(image.size)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise BadImage(
            f"would have {scaled[0]} × {scaled[1]} pixels before it is cut to size; at most "
            f"{MAX_PIXELS} are allowed"
        )
    if scaled != image.size:
        image = image.resize(scaled, bilinear)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
