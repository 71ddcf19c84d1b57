"""The flags of the verb `import`, in their own module so that other verbs do not load onnx."""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the verb."""
    add = parser.add_argument
    add(
        "file",
        type=Path,
        metavar="FILE.onnx|DIR",
        help="an ONNX file, or a folder of Hugging Face's Optimum",
    )
    add(
        "--name",
        required=True,
        help="the model's name in the repository: letters, digits, '.', '_', '-', at most 64",
    )
    add("--description", default="", metavar="TEXT", help="free text for model.json (default none)")
    add(
        "--validation",
        metavar="SPEC",
        help="labelled rows that calibrate the model; only with the command `priordial`",
    )
    add(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="the repository to publish into, as the next version (default models)",
    )
    _add_class_flags(parser)
    _add_column_flags(parser)
    _add_output_flags(parser)
    _add_image_flags(parser)


def _add_class_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("classes").add_argument
    add(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="class names in output order: one per line, a JSON list, or a JSON object from index "
        "to name (id2label) or name to index (class_indices); default: those in the ONNX file",
    )
    add(
        "--deduplicate",
        action="store_true",
        help="add a number to repeated names, as in 'crane (2)'",
    )
    add(
        "--class-counts",
        type=Path,
        metavar="FILE.json",
        help="training examples of each class, a JSON list or an object by name; without it only "
        "tau = 0 works until label frequencies are given",
    )
    add(
        "--loss-tau",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the label frequencies that training has divided out, 0 to 10: 0 (default) "
        "for plain cross-entropy, 1 for balanced training",
    )


def _add_column_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column-names",
        type=Path,
        metavar="FILE",
        help="names of the columns of a model with one input, in its order: one a line, or a JSON "
        "list; rows and tables are then put in order by name",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the output").add_argument
    add(
        "--output",
        metavar="NAME",
        help="the graph's output to serve, if several could be meant (default: the only one)",
    )
    add(
        "--output-kind",
        choices=("logits", "probabilities", "scores"),
        help="what the output holds (default: found by running random rows). Decision scores (SVM, "
        "ridge, perceptron) need --calibrate",
    )
    add(
        "--calibrate",
        type=Path,
        metavar="DATA.npz",
        help="labelled rows x and y, to which decision scores are fitted",
    )
    add(
        "--example-rows",
        type=Path,
        metavar="DATA.npz",
        help="rows x like the training data (or an array for each input): their mean and standard "
        "deviation are recorded, and answers to rows far from them carry a warning. With an array "
        "'probabilities', as predict_proba gives it for these rows, the import is refused if the "
        "model answers otherwise",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="the divisor that calibrates the logits, above 0 (default 1)",
    )
    add(
        "--refuse-dependent-rows",
        action="store_true",
        help="refuse a model whose rows influence each other in a batch, instead of running its "
        "rows one at a time",
    )


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for models of images. Without them, the model takes tensors."""
    group = parser.add_argument_group("models of images")
    add = group.add_argument
    add(
        "--image",
        action="store_true",
        help="take JPEG, PNG and WebP images; they become the tensor as follows",
    )
    add(
        "--preprocessing",
        metavar="NAME",
        help="a standard recipe: imagenet, torchvision, timm, inception, vit, clip, keras-tf, "
        "keras-torch, keras-raw, caffe or 0..1; the flags below override it",
    )
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="position of the channels, if the shape does not show it",
    )
    add("--size", metavar="H,W", help="height and width in pixels, if the shape does not show them")
    add(
        "--color",
        choices=("RGB", "BGR", "L"),
        help="order of the channels, or L for one channel of grey (default: that of "
        "--preprocessing, or RGB; L where the graph takes one channel)",
    )
    add(
        "--resize",
        metavar="stretch|crop|letterbox|N|H,W",
        help="how images are brought to that size (default stretch): crop covers it and cuts the "
        "centre, letterbox adds borders, N scales the shorter side to N pixels and H,W stretches "
        "to them before the centre is cut",
    )
    add(
        "--resample",
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        help="the filter that resizes images (default bilinear)",
    )
    add(
        "--fill",
        type=int,
        metavar="0…255",
        help="grey level of letterbox's borders (default 0)",
    )
    add(
        "--scale",
        metavar="0..1|0..255|FACTOR",
        help="the range of the pixels before --mean and --std: divided by 255 (default), as "
        "decoded, or multiplied by a factor",
    )
    add(
        "--mean",
        metavar="M[,M,M]",
        help="subtracted from each channel after --scale (default: that of --preprocessing, or 0)",
    )
    add(
        "--std",
        metavar="S[,S,S]",
        help="divides each channel after --mean, above 0 (default: that of --preprocessing, or 1)",
    )
    add(
        "--image-example",
        type=Path,
        metavar="FILE",
        help="an image of the class --expect, which checks the flags above",
    )
    add(
        "--expect",
        metavar="CLASS",
        help="class of --image-example; the import is refused unless the model finds it likeliest",
    )
