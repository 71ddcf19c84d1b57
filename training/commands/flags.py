"""Declares the flags that several verbs share, and makes a recipe from them."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it imports torch, and --help should not wait for torch
    from training.run.recipe import Recipe


def add_cache_flag(parser: Any) -> None:
    """Declare the folder for decoded images."""
    parser.add_argument(
        "--cache",
        type=place,
        metavar="DIR",
        help="decode image files once, into a file here that is mapped into memory; later runs on "
        "the same images read it (default: none)",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for every run of a comparison: data, network and optimisation."""
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="settings to start from, without its loss; other flags override them (default none)",
    )
    add_data_flags(parser, required=False)
    add_image_flags(parser)
    parser.add_argument(
        "--network", metavar="NET", help="one of the networks below, for every run (default auto)"
    )
    add_optimisation_flags(parser.add_argument_group("optimisation"))


def recipe_of(options: argparse.Namespace) -> "Recipe":
    """Make the recipe: that of --recipe, if the verb has it, overridden by the other flags."""
    from training.run import recipe_file

    return recipe_file.make(getattr(options, "recipe", None), _given(options, recipe_file.FIELDS))


def add_data_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flags for the data and its preparation.

    required: take the specification as a positional argument, not as --data.
    """
    group = parser.add_argument_group("data")
    if required:
        group.add_argument(
            "data", metavar="SPEC", help="the data to describe; docs/training.md lists the forms"
        )
    else:
        group.add_argument(
            "--data",
            metavar="SPEC",
            help="the data to train on, such as digits or table:FILE.csv?label=COLUMN; "
            "docs/training.md lists the forms",
        )
    group.add_argument(
        "--profile",
        choices=("exp", "step"),
        help="make the training rows long-tailed: class sizes fall exponentially, or half of the "
        "classes are small (default: keep all rows)",
    )
    group.add_argument(
        "--imbalance-ratio",
        type=float,
        metavar="RATIO",
        help="rows of the profile's largest class over its smallest, at least 1 (default 100)",
    )
    group.add_argument(
        "--max-per-class",
        type=int,
        metavar="ROWS",
        help="rows of the profile's largest class (default: as many as every class has)",
    )
    group.add_argument(
        "--validation-per-class",
        type=int,
        metavar="ROWS",
        help="validation rows of each class to set aside; with 0, temperature and tau stay 1 "
        "(default: a tenth of each class, a fifth of small data)",
    )
    group.add_argument(
        "--tokens",
        metavar="words|split-words|characters|subwords|FILE.json",
        help="tokens of texts: words between spaces, words also split at punctuation, runs of 1 to "
        "3 or of 3 to 5 characters, or those of a tokenizer.json (default words)",
    )


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Add --seed, the seed of one run; a comparison has --seeds instead."""
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of all random draws, 0 or more and below 2^63 (default 0)",
    )


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the conversion of image files."""
    group = parser.add_argument_group("images in files")
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="pixels per side of the network's input (default: the images' own, if all are equal "
        "and small, else 224)",
    )
    group.add_argument(
        "--resize",
        type=_resize,
        metavar="stretch|crop|PIXELS",
        help="how images are brought to that size: stretched, cut to a square, or scaled until "
        "the shorter side has that many pixels, then the centre is cut out (default: the last, "
        "with 8/7 of --image-size)",
    )
    group.add_argument(
        "--color", choices=("RGB", "L"), help="three channels, or one of grey (default RGB)"
    )
    group.add_argument(
        "--image-mean",
        type=_numbers,
        metavar="M[,M,M]",
        help="mean of each channel, which is subtracted, on the scale 0 … 1, such as 0.5,0.5,0.5 "
        "(default: ImageNet's)",
    )
    group.add_argument(
        "--image-std",
        type=_numbers,
        metavar="S[,S,S]",
        help="standard deviation that divides each channel, on the scale 0 … 1 and above 0 "
        "(default: ImageNet's)",
    )
    group.add_argument(
        "--skip-broken",
        action=argparse.BooleanOptionalAction,
        help="leave out unreadable images, at most a tenth (default: stop and list them)",
    )


def add_optimisation_flags(group: Any) -> None:
    """Add the flags for the optimisation."""
    group.add_argument(
        "--epochs",
        type=float,
        metavar="N",
        help="length of the run in epochs, above 0 (default 20, and at least 1,500 steps)",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="length of the run in steps, instead of epochs"
    )
    group.add_argument(
        "--batch", type=int, metavar="ROWS", help="rows per step, over all processes (default 128)"
    )
    group.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="pieces in which the gradient of a batch is computed, to save memory (default 1)",
    )
    group.add_argument(
        "--optimiser",
        choices=("sgd", "adamw", "lbfgs"),
        help="the optimiser (default sgd; if no other flag of the optimisation is given, adamw for "
        "mlp and lbfgs for linear and tfidf)",
    )
    group.add_argument(
        "--penalty",
        type=float,
        metavar="FACTOR",
        help="for lbfgs: factor of half the squared weights, above 0 (default: chosen on "
        "validation)",
    )
    group.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="learning rate, above 0 (default 0.05; for adamw 0.001)",
    )
    group.add_argument(
        "--momentum",
        type=float,
        metavar="SHARE",
        help="for sgd: share of the last step that is added to the next; 0 to below 1 (default "
        "0.9)",
    )
    group.add_argument(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        help="for sgd: Nesterov's form of momentum (default on)",
    )
    group.add_argument(
        "--adam-beta2",
        type=float,
        metavar="BETA2",
        help="for adamw: squared gradients are averaged over about 1 / (1 - beta2) steps; 0 to "
        "below 1 (default 0.999)",
    )
    group.add_argument(
        "--weight-decay",
        type=float,
        metavar="FACTOR",
        help="factor by which weights are drawn towards 0, 0 or more (default 5e-4; for mlp 0.1)",
    )
    group.add_argument(
        "--decay-norms",
        action=argparse.BooleanOptionalAction,
        help="also decay biases and normalisation layers (default on)",
    )
    group.add_argument(
        "--schedule",
        choices=("steps", "cosine", "constant"),
        help="how the learning rate falls: at --milestones (steps), along a cosine, or not at all "
        "(default steps; for mlp cosine)",
    )
    group.add_argument(
        "--warmup",
        type=float,
        metavar="N|SHARE",
        help="length of the warm-up in steps, or below 1 as a share of the run (default 0.05)",
    )
    group.add_argument(
        "--milestones",
        type=_numbers,
        metavar="N,N",
        help="where the rate drops: steps such as 12000,14000, or shares of the run (default "
        "0.6,0.85)",
    )
    group.add_argument(
        "--drop",
        type=float,
        metavar="FACTOR",
        help="factor of the learning rate at each milestone, above 0 (default 0.1)",
    )
    group.add_argument(
        "--augment",
        choices=("none", "flip", "crop-flip", "resized-crop-flip"),
        help="random changes of training images: flip mirrors them, crop-flip also shifts them, "
        "and resized-crop-flip cuts out and resizes random parts (default none)",
    )
    group.add_argument(
        "--pad",
        type=int,
        metavar="PIXELS",
        help="the most pixels by which crop-flip shifts an image, 0 or more (default 4)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "fp64", "bf16", "fp16"),
        help="number format of the training steps (default fp32)",
    )


def _given(options: argparse.Namespace, fields: Any) -> dict[str, Any]:
    """Return the settings that were given as flags."""
    given = {
        name: getattr(options, name) for name in fields if getattr(options, name, None) is not None
    }
    given.pop("recipe", None)
    for name in ("loss_options", "sampler_options", "lr_of"):
        if name in given:
            given[name] = dict(given[name])
    return given


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers of at least `lowest`; argparse reports any other value."""

    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"'{text}': expected a number of at least {lowest}")
        return value

    return number


def place(text: str) -> Path:
    """Parse a path. An empty one would be the current folder, which nobody means."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, not an empty text")
    return Path(text)


def seconds(text: str) -> float:
    """Parse a duration of at least 0 seconds."""
    value = float(text)
    if not 0 <= value < math.inf:  # NaN compares false
        raise argparse.ArgumentTypeError(f"'{text}': expected a finite number of at least 0")
    return value


def name_and_number(text: str) -> tuple[str, float]:
    """Parse an option given as NAME=NUMBER."""
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected NAME=NUMBER, as in gamma=2") from None


def _resize(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
