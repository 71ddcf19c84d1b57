"""The preprocessing of an image model: its flags, named standard recipes, and assumptions."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.refusal import ImportRefused

FLAGS = (
    "mean", "std", "size", "layout", "scale", "color", "resample", "fill", "preprocessing",
)  # fmt: skip
SCALES = {"0..1": None, "0..255": 1.0}


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a model library. crop: the share of the shorter side that is kept."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    color: str = "RGB"
    crop: float = 0.875
    resample: str = "bilinear"


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PREPROCESSING: Mapping[str, Preprocessing] = {
    "imagenet": Preprocessing(*_IMAGENET),
    "torchvision": Preprocessing(*_IMAGENET),
    "timm": Preprocessing(*_IMAGENET, resample="bicubic"),
    "inception": Preprocessing(*_HALF, resample="bicubic"),
    "vit": Preprocessing(*_HALF, crop=1.0),
    "clip": Preprocessing(*_CLIP, crop=1.0, resample="bicubic"),
    "keras-tf": Preprocessing(*_HALF, crop=1.0),
    "keras-torch": Preprocessing(*_IMAGENET, crop=1.0),
    "keras-raw": Preprocessing(scale=1.0, crop=1.0),
    "caffe": Preprocessing((103.939, 116.779, 123.68), None, 1.0, "BGR", 1.0),
    "0..1": Preprocessing(crop=1.0),
}
"""Recipes by name: torchvision's and timm's ImageNet models, Inception and similar ones, ViT, CLIP,
the modes of `tf.keras.applications.imagenet_utils`, models that scale their input themselves
(`keras-raw`), and Caffe's.
"""


def image_fields(found: GraphInput, flags: argparse.Namespace) -> dict[str, Any]:
    """The members of `input` for images; none without `--image`. Raises ImportRefused."""
    if flags.preprocessing is not None:
        flags.image = True
    if not flags.image:
        given = [f"--{name}" for name in FLAGS if getattr(flags, name) is not None]
        if given:
            raise ImportRefused(
                f"{', '.join(given)}: only for models of images; add --image, or leave these flags "
                "out"
            )
        return {}
    if len(found.shape) != 4 or found.dtype == "string":
        raise ImportRefused(
            f"--image needs an input of four dimensions, but '{found.name}' is "
            f"{found.dtype} {found.shape}"
        )
    recipe = _recipe(flags)
    layout, size, channels = _shape(found, flags)
    color = _color(flags.color or (recipe.color if channels == 3 else "L"), channels)
    shape = [channels, *size] if layout == "NCHW" else [*size, channels]
    floats = found.dtype.startswith("float")
    return {
        "kind": "image",
        "shape": [found.shape[0], *shape],
        "size": size,
        "color": color,
        "resize": _resize(flags, recipe, size),
        "resample": flags.resample or recipe.resample,
        **({} if flags.fill is None else {"fill": flags.fill}),
        "scale": _scale(flags.scale, recipe) if floats else None,
        "mean": _per_channel(flags.mean, "--mean", channels, recipe.mean) if floats else None,
        "std": _per_channel(flags.std, "--std", channels, recipe.std) if floats else None,
        "layout": layout,
    }


def assumptions(spec: Mapping[str, Any], flags: argparse.Namespace) -> Iterator[str]:
    """One line for each step from a file to the tensor, with the flag that changes it."""
    size = "{} × {}".format(*spec["size"])
    resize = spec["resize"]
    how = {
        "stretch": f"stretched to {size}",
        "crop": f"scaled to cover {size}, centre cut out",
        "letterbox": f"scaled to fit into {size}, borders of {spec.get('fill') or 0}",
    }.get(resize if isinstance(resize, str) else "")
    if how is None and isinstance(resize, int):
        how = f"shorter side scaled to {resize}, centre of {size} cut out"
    elif how is None:
        how = f"stretched to {resize[0]} × {resize[1]}, centre of {size} cut out"
    yield from (
        f"image    {step:<10} {value:<46} {flag}"
        for step, value, flag in (
            ("color", spec["color"], "--color"),
            ("resize", f"{how} ({spec['resample'] or 'bilinear'})", "--resize, --resample"),
            ("range", _range(spec), "--scale"),
            ("normalise", _normalising(spec), "--mean, --std"),
            ("layout", spec["layout"], "--layout"),
        )
    )
    if flags.preprocessing is None and spec["dtype"].startswith("float"):
        yield (
            "note     check these against the training code, or with --image-example FILE --expect "
            "CLASS; --preprocessing knows " + ", ".join(PREPROCESSING)
        )


def _range(spec: Mapping[str, Any]) -> str:
    if not spec["dtype"].startswith("float") or spec["scale"] == 1.0:
        return "0 … 255, as decoded"
    return "0 … 1 (divided by 255)" if spec["scale"] is None else f"multiplied by {spec['scale']:g}"


def _normalising(spec: Mapping[str, Any]) -> str:
    parts = [
        f"{word} {', '.join(f'{value:g}' for value in spec[name])}"
        for name, word in (("mean", "minus"), ("std", "over"))
        if spec[name] is not None
    ]
    return ", ".join(parts) or "none"


def _recipe(flags: argparse.Namespace) -> Preprocessing:
    name = flags.preprocessing
    if name is None:
        return Preprocessing(crop=1.0)
    if name not in PREPROCESSING:
        raise ImportRefused(
            f"--preprocessing is '{name}'; expected one of {', '.join(PREPROCESSING)}"
        )
    return PREPROCESSING[name]


def _shape(found: GraphInput, flags: argparse.Namespace) -> tuple[str, list[int], int]:
    """(layout, [height, width], channels)."""
    layout = flags.layout or (
        "NHWC" if found.shape[1] not in {1, 3} and found.shape[3] in {1, 3} else "NCHW"
    )
    height, width, channels = (
        found.shape[2:] + found.shape[1:2] if layout == "NCHW" else found.shape[1:]
    )
    if flags.size:
        height, width = (int(n) for n in _numbers(flags.size, "--size", 2))
    if height is None or width is None:
        raise ImportRefused(
            f"the graph leaves the image's size free {found.shape}: give --size H,W"
        )
    if channels not in {1, 3, None}:
        raise ImportRefused(f"the graph takes {channels} channels; expected 1 or 3, as images have")
    return layout, [height, width], channels or 3


def _color(color: str, channels: int) -> str:
    if (color == "L") != (channels == 1):
        raise ImportRefused(f"--color is {color}; the graph takes {channels} channels")
    return color


def _resize(flags: argparse.Namespace, recipe: Preprocessing, size: list[int]) -> Any:
    text = flags.resize
    if text is None:
        if flags.preprocessing is None or recipe.crop == 1.0:
            return "stretch"
        return round(min(size) / recipe.crop)
    if text in {"stretch", "crop", "letterbox"}:
        return text
    sides = [part.strip() for part in text.split(",")]
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise ImportRefused(
            f"--resize is '{text}'; expected stretch, crop, letterbox, N or H,W in pixels"
        )
    found = [int(side) for side in sides]
    return found[0] if len(found) == 1 else found


def _scale(text: str | None, recipe: Preprocessing) -> float | None:
    if text is None:
        return recipe.scale
    if text in SCALES:
        return SCALES[text]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ImportRefused(
            f"--scale is '{text}'; expected 0..1, 0..255 or the number that pixels of 0 … 255 are "
            "multiplied by"
        )
    return value


def _per_channel(
    text: str | None, flag: str, channels: int, own: tuple[float, ...] | None
) -> list[float] | None:
    if text is not None:
        return _numbers(text, flag, channels)
    if own is None:
        return None
    return list(own) if channels == len(own) else [sum(own) / len(own)] * channels


def _numbers(text: str, flag: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise ImportRefused(f"{flag} is '{text}'; expected {count} numbers, separated by commas")
    return values
