"""An image file becomes pixels by one set of rules, for the service and for training."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from service.contract import pixels
from service.contract.pixels import BadImage
from tests.support.server import ROOT


def picture(width=6, height=4):
    """Every pixel differs from every other."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 * y, 40 * x, 10 + 3 * y + 5 * x], axis=-1).astype(np.uint8)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(data, *, size=(4, 6), color="RGB", resize="stretch"):
    return pixels.decode_pixels(pixels.open_image(data), size=size, color=color, resize=resize)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_of_the_right_size_keeps_every_pixel(form, options):
    np.testing.assert_array_equal(decoded(encoded(picture(), form, **options)), picture())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_bytes_after_the_end_of_an_image_are_ignored(form):
    data = encoded(picture(60, 40), form)
    np.testing.assert_array_equal(
        decoded(data + bytes(100), size=(40, 60)), decoded(data, size=(40, 60))
    )


def test_what_is_no_whole_image_is_refused_with_the_reason():
    for data, reason in (
        (b"", "^is empty$"),
        (b"hello", "^is not a JPEG, PNG or WebP image$"),
        (encoded(picture(), "BMP"), "^is not a JPEG, PNG or WebP image$"),
        (encoded(picture(60, 40))[:-8], "^is truncated: its last PNG chunk is missing$"),
        (encoded(picture(60, 40), "JPEG")[:-200], "^cannot be decoded: "),
    ):
        with pytest.raises(BadImage, match=reason):
            decoded(data)


def test_an_error_of_any_class_from_a_decoder_refuses_the_image(monkeypatch):
    def fail(*_arguments, **_options):
        raise MemoryError("no room")

    monkeypatch.setattr(pixels.load_decoders(), "open", fail)
    with pytest.raises(BadImage, match="cannot be read: no room"):
        pixels.open_image(b"something")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 23)
    with pytest.raises(BadImage, match="has 6 × 4 pixels; at most 23 are decoded"):
        pixels.open_image(encoded(picture()))


@pytest.mark.parametrize(
    ("orientation", "lying"),
    [
        (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, lambda a: np.rot90(a, -1)),
    ],
)  # fmt: skip
def test_an_image_is_turned_upright_by_its_exif_orientation(orientation, lying):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(lying(picture())), exif=exif.tobytes())
    np.testing.assert_array_equal(decoded(data), picture())


def test_broken_exif_leaves_the_image_as_it_lies():
    data = encoded(picture(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decoded(data), picture())


def test_grey_has_one_channel_and_sixteen_bits_are_scaled_to_eight():
    levels = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    found = decoded(encoded(Image.fromarray(levels)), color="L")
    np.testing.assert_array_equal(found, (levels >> 8)[:, :, np.newaxis])
    assert decoded(encoded(Image.fromarray(levels))).shape == (4, 6, 3)


def test_transparent_parts_become_white():
    see_through = np.zeros((4, 6, 4), np.uint8)
    see_through[:, :3, 3] = 255
    found = decoded(encoded(see_through))
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] == 255).all()


def test_stretch_takes_the_whole_image_and_the_others_cut_its_centre():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 3:9] = 200
    data = encoded(wide)
    assert decoded(data, resize="stretch").min() < 200
    assert (decoded(data, resize="crop") == 200).all()
    assert decoded(data, resize=8).shape == (4, 6, 3)
    assert decoded(data, size=(2, 3), resize="crop").shape == (2, 3, 3)


def test_floats_are_scaled_and_each_channel_is_normalised():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 1.0]
    batch = np.stack([picture(), picture()[::-1]])
    found = pixels.normalise(batch, mean=mean, std=std)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (batch / 255 - mean) / std, atol=1e-6)
    np.testing.assert_allclose(pixels.normalise(batch, mean=None, std=None), batch / 255, atol=1e-7)
    assert pixels.channels_first(found).shape == (2, 3, 4, 6)


def test_the_contract_is_imported_without_pillow():
    code = "import sys, service.contract.pixels; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


@pytest.mark.parametrize("resize", ["crop", 6])
def test_a_long_thin_image_is_refused_before_it_is_scaled_up(resize):
    thin = encoded(Image.new("L", (1, 3_000_000)))
    assert len(thin) < 10_000
    with pytest.raises(BadImage, match="before it is cut to size; at most 50000000"):
        decoded(thin, resize=resize)
    assert decoded(thin).shape == (4, 6, 3)  # "stretch" makes no larger image
    assert decoded(encoded(Image.new("L", (10, 2000))), resize=resize).shape == (4, 6, 3)
