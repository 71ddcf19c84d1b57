"""The verb `calibrate`: measure a published model on labelled rows, as its next version."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.faults import WrongUse

if TYPE_CHECKING:
    from training.data.dataset import Dataset, Split
    from training.run.published import Published

AddVerb = Callable[..., argparse.ArgumentParser]


def add_verb(add: AddVerb) -> None:
    """Declare the verb; `add` takes a name, a text and what runs."""
    parser = add(
        "calibrate", "Measure a published model on labelled rows; publish the next version.", _run
    )
    parser.add_argument("model", type=Path, metavar="models/N/V", help="the folder")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="labelled rows that the model was not trained on",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        help="which rows (default: the validation rows of the training data, all rows of others)",
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from training.run.published import Published

    model = Published.open(options.model)
    data, rows = model.rows(options.data, split=options.split)
    if options.split is None and data.origin.get("sha256") in (None, model.known.sha256):
        data, rows = model.rows(options.data, split="val")
    if not data.labelled:
        raise WrongUse(f"--data {options.data}: has no labels, and a calibration needs them")
    return recalibrate(model, data, rows, spec=options.data)


def recalibrate(model: "Published", data: "Dataset", rows: "Split", *, spec: str) -> dict[str, Any]:
    """Measure the block on labelled rows and publish it as the model's next version.

    The rows must be new to the network. Where the model does not state its class_counts, the
    source prior starts from uniform, and the bias that the rows show is what remains of it. The
    report of the earlier version is not copied, since its scores belong to another temperature.
    """
    import numpy as np

    from service.contract.publication import publish
    from training.scores.source import measure

    bundle = model.bundle
    log_source = model.training_source_prior()
    if log_source is None:
        log_source = np.full(model.num_classes, -np.log(model.num_classes))
    block, fitted = measure(
        model.logits(data, rows),
        rows.labels,
        log_source_prior=log_source,
        class_frequencies=bundle.class_counts,
        probabilities=bundle.output.kind == "probabilities",
    )
    if not block.calibrates_every_class:
        counts = block.validation.class_counts
        absent = [name for name, n in zip(bundle.class_names, counts, strict=True) if n == 0]
        raise WrongUse(
            f"{spec}: {len(absent)} of {len(counts)} classes have no row (the first is "
            f"'{absent[0]}'); a calibration needs rows of every class, and 20 of each to be usable"
        )
    fields = bundle.model_dump(
        mode="json",
        exclude={"format_version", "name", "version", "files", "estimation"},
        exclude_none=True,
    )
    fields["class_counts"] = bundle.class_counts
    if bundle.class_counts is None and bundle.tau == 0:
        fields.pop("default_tau", None)  # with a measured source prior, the default is 1
    fields["temperature"] = block.temperature
    fields["estimation"] = block.model_dump(mode="json", exclude_none=True)
    fields["provenance"] = bundle.provenance | {
        "calibrated": {
            "from_version": bundle.version,
            "data": {"spec": spec, "sha256": data.origin.get("sha256"), "rows": len(rows)},
        }
    }

    def write_files(folder: Path) -> None:
        for name in bundle.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.folder / name, folder / name)

    home = model.folder.resolve().parent
    written = publish(home.parent, bundle.name, fields=fields, write_files=write_files)
    return {
        "bundle": str(written),
        "data": spec,
        "rows": len(rows),
        "calibration": block.calibration,
        "temperature": block.temperature,
        "temperature_interval": list(fitted.interval),
        "temperature_note": fitted.why_one,
        "fewest_rows": block.validation.fewest,
        "self_test": None if block.self_test is None else block.self_test.model_dump(),
    }
