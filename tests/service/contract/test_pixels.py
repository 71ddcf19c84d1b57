"""An image file becomes pixels by one set of rules, for the service and for training."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from service.contract import pixels
from service.contract.inputs.spec import InputSpec
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


def decoded(data, *, size=(4, 6), color="RGB", resize="stretch", resample=None, fill=None):
    spec = SimpleNamespace(size=size, color=color, resize=resize, resample=resample, fill=fill)
    return pixels.decode_pixels(pixels.open_image(data), spec)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_of_the_right_size_keeps_every_pixel(form, options):
    np.testing.assert_array_equal(decoded(encoded(picture(), form, **options)), picture())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_long_body_is_read_in_place(form):
    data = encoded(picture(), form)
    long = bytearray(data) + bytes(2**20)
    np.testing.assert_array_equal(decoded(long), decoded(data))
    with pytest.raises(pixels.BadImage, match="is not a JPEG, PNG or WebP image"):
        pixels.open_image(bytearray(2**21))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_bytes_after_the_end_of_an_image_are_ignored(form):
    data = encoded(picture(60, 40), form)
    np.testing.assert_array_equal(
        decoded(data + bytes(100), size=(40, 60)), decoded(data, size=(40, 60))
    )


def test_what_is_no_whole_image_is_refused_with_the_reason():
    for data, reason in (
        (b"", "^is empty; "),
        (b"hello", "^is not a JPEG, PNG or WebP image; convert it$"),
        (encoded(picture(), "BMP"), "^is not a JPEG, PNG or WebP image; convert it$"),
        (encoded(picture(60, 40))[:-8], "^is truncated, as its last PNG chunk is missing; "),
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
    thin = encoded(Image.new("L", (3, 65_535)))
    assert len(thin) < 10_000
    with pytest.raises(BadImage, match="before it is cut to size; at most 50000000"):
        decoded(thin, size=(40, 60), resize=60 if resize == 6 else resize)
    assert decoded(thin).shape == (4, 6, 3)  # "stretch" makes no larger image
    assert decoded(encoded(Image.new("L", (10, 2000))), resize=resize).shape == (4, 6, 3)


def test_a_side_of_an_image_is_bounded_whatever_the_other_one_is():
    for size in ((1, 65_536), (65_536, 1)):
        with pytest.raises(BadImage, match="a side may have at most 65535"):
            decoded(encoded(Image.new("L", size)))


def test_bgr_is_rgb_in_the_other_order():
    data = encoded(picture())
    np.testing.assert_array_equal(decoded(data, color="BGR"), picture()[:, :, ::-1])


def test_letterbox_keeps_the_whole_image_and_adds_borders():
    found = decoded(encoded(np.full((4, 12, 3), 200, np.uint8)), size=(8, 12), resize="letterbox")
    assert (found[2:6] == 200).all()
    assert (found[:2] == 0).all()
    assert (found[6:] == 0).all()
    grey = np.full((12, 4), 200, np.uint8)
    found = decoded(encoded(grey), size=(6, 6), color="L", resize="letterbox", fill=114)
    assert (found[:, 2:4] == 200).all()
    assert (found[:, [0, 1, 4, 5]] == 114).all()


def test_two_numbers_stretch_the_image_before_its_centre_is_cut():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 3:9] = 200
    found = decoded(encoded(wide), size=(4, 4), resize=[4, 12])
    assert (found == 200).all()
    assert decoded(encoded(wide), size=(4, 4), resize=[2, 2]).shape == (4, 4, 3)


@pytest.mark.parametrize(
    "resample", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
)
def test_every_filter_is_pillows_own(resample):
    small = Image.fromarray(picture(60, 40))
    wanted = small.resize((6, 4), Image.Resampling[resample.upper()])
    found = decoded(encoded(small), resample=resample)
    np.testing.assert_array_equal(found, np.asarray(wanted))


def test_a_scale_of_one_keeps_the_pixels_as_decoded():
    found = pixels.normalise(picture(), mean=[1, 2, 3], std=None, scale=1.0)
    np.testing.assert_array_equal(found, picture().astype(np.float32) - [1, 2, 3])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_the_tensor_has_the_models_type_and_layout(layout, dtype):
    shape = [None, 3, 4, 6] if layout == "NCHW" else [None, 4, 6, 3]
    spec = InputSpec(
        name="x", kind="image", shape=shape, dtype=dtype, size=[4, 6], color="RGB",
        resize="stretch", layout=layout,
    )  # fmt: skip
    found = pixels.as_tensor(picture(), spec)
    assert (list(found.shape), found.dtype) == (shape[1:], dtype)
    assert found.flags.c_contiguous
    wanted = picture() / (1 if dtype == "uint8" else 255)
    wanted = wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "L", "RGB"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_an_image_worked_on_in_bands_is_the_image_worked_on_whole(mode, color, monkeypatch):
    random = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 2**16, (31, 17), np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, (31, 17, 4), np.uint8), "RGBA").convert(
            mode
        )
    data = encoded(image, **({"transparency": 3} if mode == "P" else {}))
    whole = decoded(data, size=(31, 17), color=color)
    monkeypatch.setattr(pixels, "_BAND_PIXELS", 40)
    np.testing.assert_array_equal(decoded(data, size=(31, 17), color=color), whole)
