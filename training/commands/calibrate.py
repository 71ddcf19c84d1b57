"""The verb `calibrate`: measures a model on labelled rows and publishes its next version."""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.commands.flags import place
from training.faults import WrongUse

if TYPE_CHECKING:
    from service.contract.adjustment import Vector
    from service.contract.shift.estimation import Estimation
    from training.data.dataset import Dataset, Split
    from training.run.published import Published
    from training.scores.calibrate import Temperature

AddVerb = Callable[..., argparse.ArgumentParser]


def add_verb(add: AddVerb) -> None:
    """Declare the verb. add: takes its name, its help text and the function to run."""
    parser = add(
        "calibrate", "Measure a published model on labelled rows; publish the next version.", _run
    )
    parser.set_defaults(publishes=True, records=True)
    parser.add_argument(
        "model", type=place, metavar="models/N/V", help="folder of the published model's version"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="labelled rows that the model was not trained on",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        help="which rows (default: the validation rows of the training data; of new data, four "
        "fifths calibrate and the report scores the rest)",
    )


SAMPLES = 24
"""The number of sample rows in the report of a model that had none."""


class _Scored(NamedTuple):
    """The scores of the new calibration, for report.json and for model.json."""

    report: dict[str, Any]
    short: dict[str, Any]


def _scored(
    model: "Published",
    data: "Dataset",
    rows: "Split",
    block: "Estimation",
    *,
    fitted: "Temperature",
    log_source: "Vector",
    test: "Split | None",
) -> _Scored:
    """Score the rows used for calibration, and the test rows if there are any."""
    from training.run.calibration import Calibration
    from training.run.publish import short_scores
    from training.run.report import report
    from training.scores.calibrate import choose_tau
    from training.scores.evaluate import score

    bundle, path = model.bundle, model.folder / "report.json"
    own = model.known.sha256 is not None and data.origin.get("sha256") == model.known.sha256
    before: dict[str, Any] = {"problems": data.notes}
    if own and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
    splits = {"val": rows} if test is None else {"val": rows, "test": test}
    logits = {name: model.logits(data, split) for name, split in splits.items()}
    choice = choose_tau(
        logits["val"],
        rows.labels,
        log_source_prior=block.log_source,
        temperature=block.temperature,
    )
    calibration = Calibration(fitted, choice.chosen, choice, block)
    scores = {
        name: score(
            logits[name],
            split.labels,
            log_source_prior=block.log_source,
            temperature=block.temperature,
            chosen_tau=choice.chosen,
            served_tau=bundle.tau,
            train_class_counts=bundle.class_counts,
        )
        for name, split in splits.items()
    }
    document = report(
        replace(data, class_names=tuple(bundle.class_names), val=rows, test=test),
        class_counts=bundle.class_counts,
        log_source_prior=log_source,
        calibration=calibration,
        logits=logits,
        scores=scores,
        samples=len(before.get("samples", [])) or SAMPLES,
        problems=before.get("problems", []),
    )
    short = {name: short_scores(each) for name, each in scores.items()} if own else {}
    return _Scored(document, short)


def _facts(model: "Published", data: "Dataset", rows: "Split", *, command: str) -> dict[str, str]:
    """Return facts about the new version's origin, by name, for its page."""
    from training.run.provenance import made_by

    found = made_by(command)
    return {
        **found,
        "calibrated from": f"version {model.bundle.version}",
        "data": f"{data.spec}; {len(rows):,} rows to calibrate on",
        "data, sha256": str(data.origin.get("sha256", "–")),
    }


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from training.run.published import Published

    model = Published.open(options.model)
    return calibrated(model, options.data, split=options.split, command=options.command)


def calibrated(
    model: "Published",
    spec: str,
    *,
    split: str | None,
    command: str,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a model on the rows of a specification and publish its next version.

    split: the rows that calibrate, as --split names them. command: the command line, for the
    report. quiet: say nothing about the data, which was said before. Raises WrongUse when there are
    no such rows, they have no labels, or they lack a class.
    """
    data, rows = model.rows(spec, split=split, quiet=quiet)
    if not data.labelled:
        raise WrongUse(f"--data {spec}: has no labels; a calibration needs labelled rows")
    test = None
    if split is None and data.origin.get("sha256") in (None, model.known.sha256):
        split = "val"
        data, rows = model.rows(spec, split=split, quiet=True)
    elif split is None and data.whole is not None and data.test is not None:
        split = "train"  # four fifths of rows that are all new to the model
        data, rows = model.rows(spec, split=split, quiet=True)
    if split in {"val", "train"} and data.test is not None and len(data.test):
        test = model.rows(spec, split="test", quiet=True)[1]
    return recalibrate(model, data, rows, spec=spec, command=command, test=test)


def recalibrate(
    model: "Published",
    data: "Dataset",
    rows: "Split",
    *,
    spec: str,
    command: str,
    test: "Split | None" = None,
) -> dict[str, Any]:
    """Measure the block on labelled rows and publish it as the model's next version.

    The rows must be new to the network. If the model has no class_counts, the implied source prior
    is taken to be uniform, and the fitted bias makes up for the difference. spec: the rows'
    specification, for messages. command: the command line, for the report. test: rows that were not
    used for the fit, which the new version's report scores. Raises WrongUse when a class has no
    row.
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
    scored = _scored(model, data, rows, block, fitted=fitted, log_source=log_source, test=test)
    facts = _facts(model, data, rows, command=command)
    home = model.folder.resolve().parent
    written = publish(
        home.parent,
        bundle.name,
        fields=_fields(model, data, rows, block, scored, spec=spec),
        write_files=partial(_write_files, model, scored, facts),
    )
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


def _fields(
    model: "Published",
    data: "Dataset",
    rows: "Split",
    block: "Estimation",
    scored: _Scored,
    *,
    spec: str,
) -> dict[str, Any]:
    """Return the fields of the next version's model.json: the model's, with the new calibration."""
    bundle = model.bundle
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
    if "statistics" not in fields["input"]:
        statistics = model.statistics(data, rows)
        if statistics is not None:
            fields["input"]["statistics"] = statistics.model_dump(exclude_none=True)
    scores = {"scores": scored.short} if scored.short else {}
    fields["provenance"] = (
        bundle.provenance
        | scores
        | {
            "calibrated": {
                "from_version": bundle.version,
                "data": {"spec": spec, "sha256": data.origin.get("sha256"), "rows": len(rows)},
            }
        }
    )
    return fields


def _write_files(model: "Published", scored: _Scored, facts: dict[str, str], folder: Path) -> None:
    """Copy the model's files into the next version's folder, and write its two reports."""
    from training.learning.weights import WEIGHTS_FILE
    from training.pages.run_page import run_page

    bundle = model.bundle
    for name in bundle.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.folder / name, folder / name)
    if (model.folder / WEIGHTS_FILE).is_file():  # they are those of this graph too
        shutil.copyfile(model.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    text = json.dumps(scored.report, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    html = run_page(
        scored.report,
        facts,
        title=f"Model {bundle.name}",
        lead=f"Version {bundle.version} with a new calibration. {bundle.description or ''}",
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
