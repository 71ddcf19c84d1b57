"""The flags of `python -m service import`, apart from the importer so that other verbs need not load onnx."""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag of the verb."""
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.onnx")
    add("--name", required=True, help="the model's name in the repository")
    add(
        "--class-names",
        type=Path,
        metavar="F",
        help="class names in output order, one a line or a JSON list; else those that the file itself holds",
    )
    add(
        "--class-counts",
        type=Path,
        metavar="F.json",
        help="training examples of each class, a JSON list or an object by name; without it only tau = 0 works until label frequencies are given",
    )
    add(
        "--loss-tau",
        type=float,
        default=0.0,
        metavar="…",
        help="share of the label frequencies that training has divided out: 0 (default) for plain cross-entropy, 1 for balanced training",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="…",
        help="what calibrated logits are divided by (default 1)",
    )
    add("--output", metavar="NAME", help="the output to serve, where several could be meant")
    add(
        "--output-kind",
        choices=("logits", "probabilities"),
        help="what the output holds; else found by running random rows",
    )
    add("--description", default="", help="free text for model.json")
    add("--models", type=Path, default=Path("models"), help="the repository (default models)")
    _add_image_flags(parser)


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for a model whose tensor is made of an encoded image; without --image it takes the tensor only."""
    group = parser.add_argument_group("models of images")
    add = group.add_argument
    add(
        "--image",
        action="store_true",
        help="take JPEG, PNG and WebP images; they become the tensor as follows",
    )
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="where the channels are, if the shape does not tell",
    )
    add("--size", metavar="H,W", help="height and width, if the shape does not tell")
    add(
        "--resize",
        default="stretch",
        metavar="stretch|crop|N",
        help="how images come to that size (default stretch); N scales the shorter side to N pixels, then cuts the centre",
    )
    add("--mean", metavar="M[,M,M]", help="subtracted from each channel after division by 255")
    add("--std", metavar="S[,S,S]", help="each channel is divided by it")
