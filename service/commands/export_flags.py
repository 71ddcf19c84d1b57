"""The flags of the verb `export`, in their own module so that other verbs do not load
onnxruntime.
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the verb."""
    add = parser.add_argument
    add("model", type=Path, metavar="models/M[/VERSION]", help="a model of a repository")
    add("--out", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    add(
        "--prior",
        default="default",
        metavar="NAME[@REVISION]|FILE.json",
        help="a stored prior, training, uniform, or a JSON file of a prior (default: default)",
    )
    add(
        "--tau",
        type=float,
        help="strength of the adjustment: 0, or 1e-6 to 10 (default: the model's default_tau)",
    )
    add(
        "--inputs",
        action="store_true",
        help="give the graph two more inputs, tau and the prior's row; these values are their "
        "defaults",
    )
    add(
        "--store",
        metavar="URL",
        help="where the prior is stored: sqlite:///FILE or postgresql://… (default as for serve; "
        "PRIORDIAL_STORE)",
    )
