"""How an image file becomes a model's input tensor, step by step; the service and training both
call it.

Decode the first frame, turn it upright by its EXIF orientation, convert it to the model's colours,
resize it, and normalise each channel. Pillow is imported inside the functions, so that a process
without image models never loads it.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import Color, InputSpec, Resample, Resize
from service.contract.inputs.uncopied import file_of

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
"""The most pixels of an image that is decoded, so that a small file cannot become gigabytes."""
MAX_SIDE = 65_535
"""The most pixels along one side: every row of pixels costs memory of its own."""

_BAND_PIXELS = 2**20
"""Pixels processed at a time in steps that hold the interpreter lock, so others get a turn."""
_PNG_END = b"IEND\xaeB`\x82"
_EXIF_ORIENTATION = 0x0112


class BadImage(ValueError):
    """Bytes that are not a readable image. The message continues a name: "is empty"."""


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


def open_image(data: bytes | bytearray) -> "Image":
    """Read the header of a whole image file; its pixels are decoded later. Raises BadImage.

    Bytes after the end of an image are ignored, but a PNG must have its last chunk: Pillow
    would decode the available part of a truncated one without an error.
    """
    if not data:
        raise BadImage("is empty; expected a JPEG, PNG or WebP file")
    image = open_header(file_of(data))
    if image.format == "PNG" and not _has_png_end(data):
        raise BadImage("is truncated, as its last PNG chunk is missing; expected the whole file")
    return image


def _has_png_end(data: bytes | bytearray) -> bool:
    """Whether a PNG has its last chunk; searched from the end in blocks."""
    for end in range(len(data), 0, -_BAND_PIXELS):
        if data.find(_PNG_END, max(0, end - _BAND_PIXELS), end + len(_PNG_END) - 1) >= 0:
            return True
    return False


def open_header(file: BinaryIO) -> "Image":
    """Read no more than the header of an image: format and size. Raises BadImage."""
    from PIL import UnidentifiedImageError

    try:
        image: Image = load_decoders().open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("is not a JPEG, PNG or WebP image; convert it") from None
    except Exception as error:  # noqa: BLE001 - decoders raise errors of any class for damaged bytes
        raise BadImage(
            f"cannot be read: {error}; expected a whole JPEG, PNG or WebP file"
        ) from None
    if max(image.size) > MAX_SIDE:
        raise BadImage(
            f"has {image.width} × {image.height} pixels; a side may have at most {MAX_SIDE}: send "
            "a smaller one"
        )
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded: send a "
            "smaller one"
        )
    return image


class PixelSpec(Protocol):
    """The members of a model's input that say how an image becomes pixels.

    Size, color and resize are None for other inputs than images only.
    """

    @property
    def size(self) -> Sequence[int] | None:
        """[height, width]."""

    @property
    def color(self) -> Color | None:
        """The order of the channels."""

    @property
    def resize(self) -> Resize | None:
        """How an image is brought to `size`; see `decode_pixels`."""

    @property
    def resample(self) -> Resample | None:
        """The filter; None is bilinear."""

    @property
    def fill(self) -> int | None:
        """The grey level of letterbox's borders; None is 0."""


def decode_pixels(image: "Image", spec: PixelSpec) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] of an opened image, upright and at the model's size.

    `resize` "stretch" changes the aspect ratio; "crop" scales the image until it covers `size` and
    cuts the centre out; "letterbox" scales it until it fits into `size` and adds borders. A number
    scales the shorter side to that many pixels and then cuts out the centre; [height, width]
    stretches to that size before the cut. Raises BadImage.
    """
    resize = spec.resize
    assert spec.size is not None
    assert spec.color is not None
    wanted = resize if isinstance(resize, list) else [resize] if isinstance(resize, int) else []
    needed = max(*spec.size, *wanted)
    color = "RGB" if spec.color == "BGR" else spec.color
    upright = decode_upright(image, color=color, needed=needed)
    pixels = as_array(_resized(upright, spec))
    return pixels[:, :, ::-1] if spec.color == "BGR" else pixels


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
        raise BadImage(
            f"cannot be decoded: {error}; expected a whole JPEG, PNG or WebP file"
        ) from None
    turn = _turn(orientation)
    return image if turn is None else image.transpose(turn)


def as_array(image: "Image") -> NDArray[np.uint8]:
    """Pixels [height, width, channels] of a decoded image; grey has one channel."""
    bands = [np.asarray(band) for _, band in _bands(image)]
    pixels: NDArray[np.uint8] = bands[0] if len(bands) == 1 else np.concatenate(bands)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def normalise(
    pixels: NDArray[np.uint8],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    scale: float | None = None,
) -> NDArray[np.float32]:
    """Pixels [..., channels] times `scale`, minus `mean`, divided by `std`.

    scale None divides by 255; mean and std None leave that step out.
    """
    scaled = pixels.astype(np.float32)
    if scale is None:
        scaled /= np.float32(255)
    else:
        scaled *= np.float32(scale)
    if mean is not None:
        scaled -= np.asarray(mean, np.float32)
    if std is not None:
        scaled /= np.asarray(std, np.float32)
    return scaled


def as_tensor(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    """Pixels [..., height, width, channels] normalised, laid out and typed for the model."""
    found: NDArray[Any] = pixels
    if spec.dtype.startswith("float"):
        found = normalise(pixels, mean=spec.mean, std=spec.std, scale=spec.scale)
    if spec.layout == "NCHW":
        found = channels_first(found)
    return np.ascontiguousarray(found, spec.dtype)


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
        grey: Image = pillow.new("L", image.size)
        for top, band in _bands(image):
            eight = (np.asarray(band) >> 8).clip(0, 255).astype(np.uint8)
            grey.paste(pillow.fromarray(eight), (0, top))
        image = grey
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert(color)
    over = image if image.mode == "RGBA" else image.convert("RGBA")
    opaque: Image = pillow.new(color, over.size)
    for top, band in _bands(over):
        white = pillow.new("RGBA", band.size, "white")
        white.alpha_composite(band)
        opaque.paste(white.convert(color), (0, top))
    return opaque


def _bands(image: "Image") -> "Iterator[tuple[int, Image]]":
    """The image from top to bottom in bands of about a million pixels, each with its top row."""
    height = max(1, _BAND_PIXELS // max(1, image.width))
    if height >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _resized(image: "Image", spec: PixelSpec) -> "Image":
    """Resize to `spec.size` as `decode_pixels` says."""
    pillow = load_decoders()
    resample = pillow.Resampling[(spec.resample or "bilinear").upper()]
    assert spec.size is not None
    assert spec.resize is not None
    height, width = spec.size
    resize = spec.resize
    if resize == "stretch":
        return _to(image, (width, height), resample)
    if resize == "letterbox":
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = _to(image, inner, resample)
        border = (spec.fill or 0,) * len(image.getbands())
        canvas: Image = pillow.new(image.mode, (width, height), border)
        canvas.paste(image, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return canvas
    if isinstance(resize, list):
        scaled = (max(width, resize[1]), max(height, resize[0]))
    else:
        cover = max(width / image.width, height / image.height)
        scale = cover if resize == "crop" else int(resize) / min(image.size)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise BadImage(
            f"would have {scaled[0]} × {scaled[1]} pixels before it is cut to size; at most "
            f"{MAX_PIXELS} are allowed: send one that is less long or wide"
        )
    image = _to(image, scaled, resample)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _to(image: "Image", size: tuple[int, int], resample: Any) -> "Image":
    return image if image.size == size else image.resize(size, resample)
