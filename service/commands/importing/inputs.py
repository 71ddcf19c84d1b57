"""The input of a foreign model: its `input` in model.json, and random rows that it takes."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.commands.importing.onnx_file import GraphInput, UnreadableModel, first_line

Array = NDArray[Any]
_FREE_SIZES = (8, 32, 224, 1)
"""Tried in turn for a dimension that the graph leaves free."""
_WORDS = ("alpha", "lynx", "stone", "river", "a", "the", "of", "not", "7", "été")


def input_spec(found: GraphInput, arguments: argparse.Namespace) -> dict[str, Any]:
    """The `input` member of model.json. Raises UnreadableModel for flags that do not fit the graph."""
    spec: dict[str, Any] = {
        "name": found.name,
        "kind": "text" if found.dtype == "string" else "tensor",
        "shape": found.shape,
        "dtype": found.dtype,
    }
    if not arguments.image:
        if arguments.mean or arguments.std or arguments.size or arguments.layout:
            raise UnreadableModel("--mean, --std, --size and --layout go with --image")
        return spec
    if len(found.shape) != 4 or found.dtype == "string":
        raise UnreadableModel(
            f"--image needs an input of four dimensions; '{found.name}' is {found.dtype} {found.shape}"
        )
    layout = arguments.layout or (
        "NHWC" if found.shape[1] not in {1, 3} and found.shape[3] in {1, 3} else "NCHW"
    )
    height, width, channels = (
        found.shape[2:] + found.shape[1:2] if layout == "NCHW" else found.shape[1:]
    )
    if arguments.size:
        height, width = (int(n) for n in _numbers(arguments.size, "--size", 2) or [])
    if height is None or width is None:
        raise UnreadableModel(
            f"the graph leaves the image's size free {found.shape}: give --size H,W"
        )
    if channels not in {1, 3, None}:
        raise UnreadableModel(f"the graph takes {channels} channels; images have 1 or 3")
    channels = channels or 3
    image = [channels, height, width] if layout == "NCHW" else [height, width, channels]
    return {
        **spec,
        "kind": "image",
        "shape": [found.shape[0], *image],
        "size": [height, width],
        "color": "RGB" if channels == 3 else "L",
        "resize": arguments.resize
        if arguments.resize in {"stretch", "crop"}
        else _whole(arguments.resize),
        "layout": layout,
        "mean": _numbers(arguments.mean, "--mean", channels),
        "std": _numbers(arguments.std, "--std", channels),
    }


def try_rows(
    run: Callable[[Array], dict[str, Any]], spec: dict[str, Any]
) -> tuple[Array, dict[str, Any]]:
    """Random rows that the model takes, and its outputs for them. Raises UnreadableModel when it takes none.

    Of several kinds of rows the first is taken whose outputs are all finite, else the first that runs at all.
    """
    runs: tuple[Array, dict[str, Any]] | None = None
    why = ""
    for rows in _candidates(spec):
        try:
            outputs = run(rows)
        except Exception as error:  # noqa: BLE001 - whatever the runtime says of rows that do not suit the graph
            why = why or first_line(error)
            continue
        if all(_finite(value) for value in outputs.values()):
            return rows, outputs
        runs = runs or (rows, outputs)
    if runs is None:
        raise UnreadableModel(f"the model takes none of the random rows that were tried: {why}")
    return runs


def _candidates(spec: dict[str, Any]) -> Iterator[Array]:
    shape = spec["shape"]
    rng = np.random.default_rng(0)
    free = any(n is None for n in shape[1:])
    for size in _FREE_SIZES if free and spec["dtype"] != "string" else (1,):
        row = [size if n is None else n for n in shape[1:]]
        rows = shape[0] or (32 if np.prod(row) < 10_000 else 4)
        yield from _random(rng, (rows, *row), spec["dtype"])


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Iterator[Array]:
    if dtype == "string":
        words = rng.choice(_WORDS, (int(np.prod(shape)), 5))
        yield np.array([" ".join(row) for row in words], object).reshape(shape)
    elif dtype == "bool":
        yield rng.random(shape) < 0.5
    elif dtype.startswith("float"):
        yield rng.normal(size=shape).astype(dtype)
        yield rng.random(shape).astype(dtype)
    else:
        yield rng.integers(0, 256 if dtype == "uint8" else 10, shape).astype(dtype)
    yield np.full(shape, "", object) if dtype == "string" else np.zeros(shape, dtype)


def _finite(value: Any) -> bool:
    if isinstance(value, list):  # ZipMap's
        return all(np.isfinite(list(row.values())).all() for row in value if isinstance(row, dict))
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _numbers(text: str | None, flag: str, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise UnreadableModel(f"{flag} is '{text}'; expected {count} numbers with commas between")
    return values


def _whole(text: str) -> int:
    if not text.isdigit():
        raise UnreadableModel(f"--resize is '{text}'; expected stretch, crop or a number of pixels")
    return int(text)
