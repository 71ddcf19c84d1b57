"""What an import found and assumed, as text for the user."""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from service.commands.importing.inputs import Trial
from service.commands.importing.onnx_file import OnnxFile
from service.commands.importing.outputs import Output
from service.commands.importing.preprocessing import assumptions

_FORMS = {
    "flatten": "its axes of length 1 were removed",
    "column": "one column, for the second class",
    "columns": "one output a class",
}


def notes(
    flags: argparse.Namespace,
    file: OnnxFile,
    fields: dict[str, Any],
    trial: Trial,
    output: Output,
    *,
    may_be_pixels: bool,
) -> Iterator[str]:
    """The lines for stderr: inputs, output, classes, images, and anything that needs attention.

    may_be_pixels: whether the input has the shape of pictures.
    """
    for spec in fields.get("inputs") or [fields["input"]]:
        shape = ["batch", *("any" if n is None else n for n in spec["shape"][1:])]
        missing = ", missing values taken" if spec.get("missing") else ""
        words = ", ".join(map(str, shape))
        yield f"input    {spec['name']}: {spec['kind']}, {spec['dtype']} [{words}]{missing}"
    yield from _output(flags, fields, output)
    yield from _classes(flags, fields)
    if fields["input"]["kind"] == "image":
        yield from assumptions({**_IMAGE, **fields["input"]}, flags)
    elif may_be_pixels:
        yield (
            "note     taken for tensors that the client has normalised. If the model classifies "
            "pictures, import it again with --image, and with --preprocessing or --mean and --std"
        )
    if file.opset is not None and file.opset < 13:
        yield f"note     converted from opset {file.opset}"
    yield from _batches(fields, trial)
    if fields["class_counts"] is None and fields["loss_tau"] != 1:
        yield (
            "note     class counts are unknown: only tau = 0 works until label_frequencies are PUT "
            f"to /models/{flags.name}/priors/default or given with the request"
        )


_IMAGE = {"resample": None, "scale": None, "mean": None, "std": None}


def _output(flags: argparse.Namespace, fields: dict[str, Any], output: Output) -> Iterator[str]:
    found = "" if flags.output_kind else " (found by running random rows)"
    form = f"; {_FORMS[output.form]}" if output.form in _FORMS else ""
    yield f"output   {output.name}: {output.kind}{found}{form}"
    if output.kind == "probabilities" and np.isin(output.values, (0, 1)).all():
        yield (
            "note     the probabilities of all random rows are exactly 0 or 1. If those of real "
            "rows are, too (a hard vote, a fully grown tree, a single neighbour), no prior changes "
            "the answers: export soft votes, smaller trees or more neighbours"
        )
    fit = fields["provenance"].get("calibration")
    if fit is not None:
        yield (
            f"note     scores calibrated on {fit['rows']} rows: mean negative log-likelihood "
            f"{fit['nll']:.3f}, error {fit['error']:.1%}; class counts are those of the rows"
        )


def _classes(flags: argparse.Namespace, fields: dict[str, Any]) -> Iterator[str]:
    names = fields["class_names"]
    source = ""
    if flags.class_names is None:
        source = ", named by config.json" if flags.file.is_dir() else ", named by the file"
    more = ", …" if len(names) > 5 else ""
    shown = ", ".join(_on_one_line(name) for name in names[:5])
    yield f"classes  {len(names)}{source}: {shown}{more}"


def _on_one_line(name: str) -> str:
    """A name; where it holds a line break or another control character, in quotes, escaped."""
    return name if name.isprintable() else repr(name)


def _batches(fields: dict[str, Any], trial: Trial) -> Iterator[str]:
    fixed = fields["input"]["shape"][0]
    if trial.one_at_a_time:
        yield (
            "note     the graph declares a free batch axis but takes one row only (a Reshape with "
            "a fixed 1?): rows run one at a time. Export it with a dynamic batch to serve it faster"
        )
    elif fields.get("max_batch_rows") == 1:
        yield (
            "note     a row's answer depends on the other rows of its batch (dynamic quantisation, "
            "batch norm in training mode?): rows run one at a time. Export it in evaluation mode "
            "or quantise it statically to serve it faster"
        )
    elif fixed is not None and fixed > 1:
        yield (
            f"note     the graph takes batches of {fixed} only; export with a free batch axis to "
            "serve it faster"
        )
