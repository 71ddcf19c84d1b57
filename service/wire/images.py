"""Turns encoded images of a request into the model's input tensor, by `service.contract.pixels`."""

import base64
import binascii
import contextlib
import math
import string
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract import pixels
from service.contract.inputs.spec import InputSpec
from service.contract.resources import available_memory
from service.wire.arrays import MAX_TENSOR_BYTES
from service.wire.faults import InvalidImage, TooLarge
from service.wire.shown import short

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = pixels.FORMATS
MAX_WEBP_PIXELS = 16_000_000
"""The most pixels of a WebP image: its decoder copies all of them at once, which holds the
interpreter lock for 2 ns a pixel.
"""
_BASE64_CHARACTERS = 2**20
"""Base64 characters decoded at a time, a multiple of four: decoding holds the interpreter lock."""
MAX_REQUEST_PIXELS = 500_000_000
"""The most pixels of all images of one request together."""
LARGE_PIXELS = 8_000_000
"""An image of more pixels takes much memory while it is decoded: one of 49 million took 235 MiB."""
LARGE_MEMORY = 2**30
"""One large image is decoded at a time for each portion of this many bytes of memory."""
_large = threading.BoundedSemaphore(max(1, available_memory() // LARGE_MEMORY))

pixels.load_decoders()  # otherwise the first image would wait until Pillow is imported


def image_array(images: Sequence[bytes | bytearray | str], spec: InputSpec) -> NDArray[Any]:
    """Decode, resize and normalise images into [B, C, H, W] or [B, H, W, C]; a string is base64.

    Raises InvalidImage, naming the image by its number, or TooLarge.
    """
    _check_tensor_size(len(images), spec)
    total = 0
    arrays = []
    for row, encoded in enumerate(images):
        data = from_base64(encoded, row) if isinstance(encoded, str) else encoded
        try:
            image = pixels.open_image(data)
            total += image.width * image.height
            if image.format == "WEBP" and image.width * image.height > MAX_WEBP_PIXELS:
                raise InvalidImage(
                    f"image {row} has {image.width} × {image.height} pixels; a WebP image may have "
                    f"at most {MAX_WEBP_PIXELS}: send a smaller one, or PNG or JPEG"
                )
            if total > MAX_REQUEST_PIXELS:
                raise InvalidImage(
                    f"the images up to number {row} have {total} pixels together; "
                    f"at most {MAX_REQUEST_PIXELS} are decoded: send fewer or smaller images"
                )
            arrays.append(pixels.as_tensor(_decoded_pixels(image, spec), spec))
        except pixels.BadImage as error:
            raise InvalidImage(f"image {row} {error}") from None
    return np.stack(arrays)


def _decoded_pixels(image: "Image", spec: InputSpec) -> NDArray[np.uint8]:
    """The pixels of an opened image at the model's size. A large one waits for its memory."""
    if image.format == "JPEG" or image.width * image.height <= LARGE_PIXELS:
        return pixels.decode_pixels(image, spec)  # a JPEG is decoded at a fraction of its size
    with _large:
        return pixels.decode_pixels(image, spec)


def from_base64(text: str, row: int) -> bytearray:
    """The bytes of base64 text, which may be broken into lines. Raises InvalidImage."""
    with contextlib.suppress(binascii.Error, ValueError):
        return _from_pieces(text)
    if any(blank in text for blank in string.whitespace):
        pieces = range(0, len(text), _BASE64_CHARACTERS)
        with contextlib.suppress(binascii.Error, ValueError):
            return _from_pieces(
                "".join("".join(text[at : at + _BASE64_CHARACTERS].split()) for at in pieces)
            )
    remedy = "expected A-Z, a-z, 0-9, '+', '/' and padding '='"
    if text.startswith("data:"):
        remedy = "it is a data URL; expected only what follows ';base64,'"
    elif text.startswith(("http://", "https://")):
        remedy = "it is a URL, which the service does not fetch; send the image itself"
    elif "-" in text or "_" in text:
        remedy += " (URL-safe base64 has '-' and '_' instead)"
    raise InvalidImage(f"instance {row} is {short(text)}, which is not base64; {remedy}")


def _from_pieces(text: str) -> bytearray:
    """The bytes of base64 text in one line. Raises ValueError."""
    found = bytearray()
    for at in range(0, len(text) or 1, _BASE64_CHARACTERS):
        part = text[at : at + _BASE64_CHARACTERS]
        found += _decoded(part)
        if "=" in part and at + _BASE64_CHARACTERS < len(text):
            raise ValueError("padding within the text")
    return found


def _decoded(text: str) -> bytes:
    """The bytes of base64 text, in half the time that CPython's decoder takes for a long one.

    Two characters are looked up at a time. Whatever is not plain base64 goes to CPython's decoder,
    which decides, and raises ValueError.
    """
    raw = text.encode("ascii")
    fast = max(0, len(raw) // 4 * 4 - 4)  # the last four may hold padding
    if fast < _SHORT_BASE64:
        return base64.b64decode(raw, validate=True)
    twelve = _PAIRS.take(np.frombuffer(raw, "<u2", fast // 2).astype(np.intp), mode="wrap")
    if twelve.max() == _NO_PAIR:
        return base64.b64decode(raw, validate=True)
    left, right = twelve[0::2], twelve[1::2]
    found = np.empty((len(left), 3), np.uint8)
    np.right_shift(left, 4, out=found[:, 0], casting="unsafe")
    found[:, 1] = ((left & 15) << 4) | (right >> 8)
    found[:, 2] = right
    return found.tobytes() + base64.b64decode(raw[fast:], validate=True)


def _pairs() -> NDArray[np.uint16]:
    """The 12 bits of each two characters of base64, by their 16 bits as they lie in memory."""
    six = np.full(256, _NO_PAIR, np.uint32)
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    six[list(alphabet.encode())] = np.arange(64)
    first, second = np.tile(six, 256), np.repeat(six, 256)
    known = (first != _NO_PAIR) & (second != _NO_PAIR)
    return np.where(known, first << 6 | second, _NO_PAIR).astype(np.uint16)


_SHORT_BASE64 = 2048
"""Shorter texts are decoded by CPython, which then takes less time."""
_NO_PAIR = 0xFFFF
_PAIRS = _pairs()


def _check_tensor_size(count: int, spec: InputSpec) -> None:
    """Refuse images that would become too large a tensor, however small their files are."""
    assert spec.size is not None
    channels = 1 if spec.color == "L" else 3
    needed = count * math.prod(spec.size) * channels * np.dtype(spec.dtype).itemsize
    if needed > MAX_TENSOR_BYTES:
        raise TooLarge(
            f"{count} images would need {needed} bytes as the model's input; at most "
            f"{MAX_TENSOR_BYTES} are accepted: send fewer images"
        )
