"""An image becomes the tensor that its model.json describes, whatever its file format, or is
refused with its number.
"""

import base64
import io
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.contract.inputs.spec import InputSpec
from service.wire import images
from service.wire.faults import InvalidImage, TooLarge
from service.wire.images import image_array
from tests.support.server import ROOT


def spec(size=(4, 6), color="RGB", resize="stretch", layout="NHWC", dtype="uint8", **more):
    channels = 3 if color == "RGB" else 1
    shape = [None, channels, *size] if layout == "NCHW" else [None, *size, channels]
    return InputSpec(
        name="x",
        kind="image",
        shape=shape,
        dtype=dtype,
        size=list(size),
        color=color,
        resize=resize,
        layout=layout,
        **more,
    )


def picture(width=6, height=4):
    """Every pixel differs from every other."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 * y, 40 * x, 10 + 3 * y + 5 * x], axis=-1).astype(np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def one(data, wanted=None):
    return image_array([data], wanted or spec())[0]


# ---- the tensor


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("PNG", {"optimize": True})]
)
def test_a_lossless_image_of_the_right_size_comes_through_to_the_pixel(form, options):
    np.testing.assert_array_equal(one(encoded(picture(), form, **options)), picture())


def test_floats_are_scaled_and_normalised_by_channel_and_channels_may_come_first():
    wanted = spec(dtype="float32", layout="NCHW", mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 1.0])
    expected = (picture() / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
    found = one(encoded(picture()), wanted)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)


def test_images_of_a_request_keep_their_order_and_may_be_base64():
    pictures = [picture(), picture()[::-1], picture()[:, ::-1]]
    files = [encoded(p) for p in pictures]
    found = image_array([files[0], base64.b64encode(files[1]).decode(), files[2]], spec())
    np.testing.assert_array_equal(found, pictures)


def test_stretch_ignores_the_aspect_and_crop_keeps_the_centre():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 3:9] = 200
    assert one(encoded(wide), spec(resize="stretch")).min() < 200
    assert (one(encoded(wide), spec(resize="crop")) == 200).all()
    assert one(encoded(wide), spec(resize=4)).shape == (4, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(form, orientation):
    upright = np.kron(picture(6, 4), np.ones((16, 16, 1), np.uint8))
    lying = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(np.ascontiguousarray(lying), form, exif=exif.tobytes(), quality=95, **lossless)
    found = one(data, spec(size=(64, 96)))
    np.testing.assert_allclose(found.astype(int), upright, atol=0 if form != "JPEG" else 40)
    assert np.abs(found.astype(int) - upright).mean() < 4


def test_broken_exif_does_not_spoil_a_picture():
    found = one(encoded(picture(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"))
    np.testing.assert_array_equal(found, picture())


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    levels = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    found = one(encoded(Image.fromarray(levels)), spec(color="L"))
    np.testing.assert_array_equal(found[:, :, 0], levels >> 8)


def test_transparency_is_laid_on_white():
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :3, 3] = 255
    found = one(encoded(pixels))
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] == 255).all()
    palette = Image.fromarray(picture()[:, :, 0]).convert("P")
    found = one(encoded(palette, transparency=palette.getpixel((0, 0))))
    assert (found[0, 0] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_colour_becomes_the_models_own(mode):
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    plain = np.full((16, 16, 3), 255, np.uint8)
    plain[:, 8:] = 0
    data = encoded(Image.fromarray(plain).convert(mode), form)
    for color in ("RGB", "L"):
        found = one(data, spec(size=(16, 16), color=color))
        assert np.abs(found[:, :6].astype(int) - 255).max() <= 4
        assert np.abs(found[:, 10:].astype(int) - 0).max() <= 4


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(form):
    first, second = (Image.fromarray(p) for p in (picture(), 255 - picture()))
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(first, form, save_all=True, append_images=[second], duration=100, **lossless)
    np.testing.assert_array_equal(one(data), picture())


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    smooth = np.asarray(Image.fromarray(picture()).resize((1200, 800), Image.Resampling.BICUBIC))
    data = encoded(smooth, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).resize((60, 40), Image.Resampling.BILINEAR)
    found = one(data, spec(size=(40, 60)))
    assert np.abs(found.astype(int) - np.asarray(whole)).max() <= 6
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (120, 120))
    assert image.width < 1200  # so that the draft is really taken


# ---- what is refused


def png(width, height, body=b""):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image 1 is empty"),
        (b"hello", "image 1 is not a JPEG, PNG or WebP image"),
        (b"GIF89a" + bytes(50), "image 1 is not a JPEG, PNG or WebP image"),
        (encoded(picture(), "BMP"), "image 1 is not a JPEG, PNG or WebP image"),
        (encoded(picture(), "TIFF"), "image 1 is not a JPEG, PNG or WebP image"),
        (encoded(picture(60, 40))[:-40], "image 1 is truncated"),
        (encoded(picture(60, 40), "JPEG")[:-200], "image 1 cannot be decoded"),
        (encoded(picture(60, 40), "WEBP")[:-20], "image 1 cannot be"),
        (png(30_000, 30_000), "image 1 has 30000 × 30000 pixels; at most 50000000 are decoded"),
        (png(100, 100, zlib.compress(b"")), "image 1 cannot be decoded"),
        ("%%%", "instance 1 is '%%%', which is not base64"),
        ("ü", "instance 1 is 'ü', which is not base64"),
        ("", "image 1 is empty"),
    ],
)
def test_what_is_no_whole_image_is_refused_by_its_number(data, message):
    with pytest.raises(InvalidImage) as refused:
        image_array([encoded(picture()), data], spec())
    assert message in str(refused.value)


@pytest.mark.parametrize("count", [0, 1, 5, 2046, 2047, 2048, 9001, 9002, 800_000])
def test_base64_of_any_length_is_decoded_or_refused_as_cpython_does(count):
    data = np.random.default_rng(count).bytes(count)
    text = base64.b64encode(data).decode()
    assert images.from_base64(text, 0) == data
    for at in {3, len(text) // 2, len(text) - 6, len(text) - 1} if 4 < count < 10_000 else ():
        for wrong in "%=-\n\0é":
            changed = text[:at] + wrong + text[at + 1 :]
            try:
                wanted = base64.b64decode(changed, validate=True)
            except ValueError:
                with pytest.raises(InvalidImage, match="is not base64; expected"):
                    images.from_base64(changed, 0)
            else:
                assert images.from_base64(changed, 0) == wanted


@pytest.mark.parametrize("count", [10, 3000, 1_000_000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_base64_may_be_broken_into_lines(count, end):
    data = np.random.default_rng(count).bytes(count)
    assert images.from_base64(base64.encodebytes(data).decode().replace("\n", end), 0) == data


@pytest.mark.parametrize(
    ("begin", "says"), [("data:image/png;base64,", "only what follows"), ("_-", "URL-safe base64")]
)
def test_other_forms_of_base64_are_named(begin, says):
    with pytest.raises(InvalidImage, match=says):
        images.from_base64(begin + "aGVsbG8=", 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(6, 4), (300, 200)])
def test_a_file_that_was_cut_anywhere_is_refused(form, size):
    data = encoded(picture(*size), form)
    cuts = {1, 2, 4, 12, 20, 40} | set(range(1, len(data), 1 + len(data) // 50))
    for cut in cuts:
        with pytest.raises(InvalidImage):
            one(data[:-cut])


def test_many_images_that_are_small_as_files_cannot_become_gigabytes(monkeypatch):
    monkeypatch.setattr(images, "MAX_REQUEST_PIXELS", 100)
    assert len(image_array([encoded(picture())] * 4, spec())) == 4
    with pytest.raises(InvalidImage, match="the images up to number 4 have 120 pixels together"):
        image_array([encoded(picture())] * 5, spec())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_make_the_decoder_do_anything_but_refuse(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    body = bytearray(encoded(picture(12, 9), form))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = one(bytes(body))
    except InvalidImage:
        return
    assert found.shape == (4, 6, 3)


IMPORTED_BY_A_PICTURE = """
import sys
from service.contract.inputs.spec import InputSpec
from service.wire.images import image_array
before = set(sys.modules)
spec = InputSpec(
    name="x", kind="image", shape=[None, 4, 6, 3], dtype="uint8", size=[4, 6], color="RGB",
    resize="stretch", layout="NHWC",
)
image_array([sys.stdin.buffer.read()], spec)
print(*sorted(name for name in set(sys.modules) - before if name.startswith("PIL.")))
"""


@pytest.mark.parametrize("form", images.FORMATS)
def test_the_first_picture_finds_its_decoder_imported(form):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY_A_PICTURE],
        cwd=ROOT,
        input=encoded(picture(), form),
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_many_small_images_do_not_become_a_larger_tensor_than_is_allowed():
    wanted = spec(size=(4096, 4096), dtype="float32")
    with pytest.raises(TooLarge, match="2 images would need 402653184 bytes"):
        image_array([encoded(picture(1, 1))] * 2, wanted)


def test_large_images_wait_for_memory_while_others_and_jpegs_are_decoded(monkeypatch):
    at_once = threading.BoundedSemaphore(1)
    monkeypatch.setattr(images, "_large", at_once)
    large = Image.new("L", (4000, images.LARGE_PIXELS // 4000 + 1))
    small = Image.new("L", (4000, images.LARGE_PIXELS // 4000))
    with ThreadPoolExecutor(1) as thread:
        with at_once:  # as if another large image were being decoded
            waiting = thread.submit(one, encoded(large))
            assert one(encoded(small)).shape == (4, 6, 3)
            assert one(encoded(large, "JPEG")).shape == (4, 6, 3)
            assert not waiting.done()
        assert waiting.result(60).shape == (4, 6, 3)
