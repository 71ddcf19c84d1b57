"""Publishes a trained network: exports it, checks the export, writes model.json and reports."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.contract.bundle import MODEL_FILE
from service.contract.inputs.columns import float_rows
from service.contract.inputs.familiarity import MEASURED_ROWS, measure
from service.contract.inputs.spec import RECORD
from service.contract.publication import publish as publish_folder
from training.data.columns import has_missing
from training.data.dataset import Dataset, Split
from training.data.feed import graph_feeds, graph_inputs, in_order
from training.data.problems import problems
from training.data.text import TOKENIZER_FILE, TOKENIZER_INPUTS
from training.learning.weights import WEIGHTS_FILE, save
from training.loop.train import logits_of
from training.pages.run_page import run_page
from training.run.calibration import Calibration
from training.run.candidates import Tried, described
from training.run.export import INPUT, OUTPUT, check_agreement, export
from training.run.prepare import Prepared
from training.run.provenance import code_revision, library_versions, made_by
from training.run.recipe import Recipe
from training.run.report import report

CHECKED_ROWS = 512
CPU = torch.device("cpu")


def publish(
    recipe: Recipe,
    ready: Prepared,
    network: nn.Module,
    *,
    logits: Mapping[str, NDArray[np.float32]],
    calibration: Calibration,
    scores: Mapping[str, Any],
    models: Path,
    samples: int,
    command: str = "",
    tried: Sequence[Tried] = (),
    learnt_again: int = 0,
) -> Path:
    """Write the model to the folder models/<name>/<next version>, and return the folder.

    logits: [n, C] by split. samples: how many test inputs report.json shows. command: the command
    line, for the report. tried: the candidates of network auto. learnt_again: how many of the
    training rows were the validation rows of the network before. Raises RunFailed when the exported
    graph does not give the network's logits in onnxruntime.
    """
    network = network.cpu().eval()
    rows = _check_rows(ready.data)
    document = report(
        ready.data,
        class_counts=ready.data.class_counts,
        log_source_prior=ready.log_source_prior,
        calibration=calibration,
        logits=logits,
        scores=scores,
        samples=samples,
        problems=problems(ready.data),
    )

    def write_files(folder: Path) -> None:
        file = folder / MODEL_FILE
        example = next(in_order(ready.data, rows, device=CPU))
        export(
            network,
            example,
            file,
            vocabulary=ready.data.vocabulary,
            columns=ready.data.columns,
        )
        check_agreement(
            file,
            graph_feeds(ready.data, rows),
            logits_of(network, ready.data, rows, device=CPU),
        )
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        save(network, ready.data.class_names, folder / WEIGHTS_FILE)
        if ready.data.vocabulary is not None and ready.data.vocabulary.tokenizer is not None:
            shutil.copyfile(ready.data.vocabulary.tokenizer, folder / TOKENIZER_FILE)
        (folder / "report.json").write_text(text, encoding="utf-8")
        html = run_page(
            document,
            _facts(recipe, ready, command=command, tried=tried, learnt_again=learnt_again),
            title=f"Model {recipe.name}",
            lead=recipe.description or _description(recipe),
        )
        (folder / "report.html").write_text(html, encoding="utf-8")

    return publish_folder(
        models,
        recipe.name,
        fields=manifest_fields(
            recipe,
            ready,
            calibration=calibration,
            scores=scores,
            tried=tried,
            learnt_again=learnt_again,
        ),
        write_files=write_files,
    )


def served_tau(recipe: Recipe, calibration: Calibration) -> float:
    """Return the tau that the published model uses for requests without one."""
    return calibration.tau if recipe.publish_tau == "chosen" else 1.0


def _estimation(calibration: Calibration) -> dict[str, Any]:
    block = calibration.estimation
    return {} if block is None else {"estimation": block.model_dump(mode="json", exclude_none=True)}


def _facts(
    recipe: Recipe, ready: Prepared, *, command: str, tried: Sequence[Tried], learnt_again: int
) -> dict[str, str]:
    """Return facts about the model's training, by name, for its page."""
    data = ready.data
    rows = ", ".join(f"{name} {len(split):,}" for name, split in _splits(data).items())
    if learnt_again:
        rows += (
            f"; {learnt_again:,} of the training rows were held out from a first network, which "
            "the validation figures and the calibration describe"
        )
    made = made_by(command)
    return {
        "date": made["date"],
        "command": made["command"],
        "recipe": recipe.recipe or "–",
        "data": f"{recipe.data}; {data.num_classes:,} classes; rows: {rows}",
        "data, sha256": str(data.origin.get("sha256", "–")),
        "network": described(recipe, tried),
        "loss": f"{recipe.loss}, sampler {recipe.sampler}, afterwards {recipe.afterwards}",
        "optimisation": (
            f"lbfgs, seed {recipe.seed}"
            if ready.plan.optimiser == "lbfgs"
            else f"{ready.plan.optimiser}, rate {recipe.lr:g}, {ready.plan.steps:,} steps of "
            f"{recipe.batch:,} rows, seed {recipe.seed}"
        ),
        "loss_tau": f"{ready.recorded.loss_tau:g}, source prior {ready.recorded.source_prior}",
        "code": made["code"],
        "libraries": made["libraries"],
    }


def manifest_fields(
    recipe: Recipe,
    ready: Prepared,
    *,
    calibration: Calibration,
    scores: Mapping[str, Any],
    tried: Sequence[Tried] = (),
    learnt_again: int = 0,
) -> dict[str, Any]:
    """Return the fields of model.json except name, version and files."""
    data = ready.data
    return {
        "description": recipe.description or _description(recipe),
        "class_names": list(data.class_names),
        "class_counts": [int(count) for count in data.class_counts],
        "loss_tau": ready.recorded.loss_tau,
        "temperature": calibration.temperature,
        "default_tau": served_tau(recipe, calibration),
        "input": input_fields(data),
        **_columns_fields(data),
        "output": {"name": OUTPUT, "kind": "logits"},
        **_estimation(calibration),
        "provenance": {
            "recipe": recipe.recipe or None,
            "settings": _settings(recipe),
            "seed": recipe.seed,
            "steps": ready.plan.steps,
            "source_prior": ready.recorded.source_prior,
            **({"tried": [asdict(each) for each in tried]} if tried else {}),
            **({"refit": {"validation_rows": learnt_again}} if learnt_again else {}),
            "data": {
                "spec": recipe.data,
                **data.origin,
                "rows": {name: len(split) for name, split in _splits(data).items()},
            },
            "scores": {name: short_scores(score) for name, score in scores.items()},
            "code_revision": code_revision(),
            "libraries": library_versions(),
        },
    }


def input_fields(data: Dataset) -> dict[str, Any]:
    """Return `input` of model.json."""
    found = _form(data)
    rows = _measured_rows(data) if data.kind != "text" else np.empty((0, 0))
    if rows.size:
        statistics = measure(rows, layout=found.get("layout"))
        if statistics is not None:
            found["statistics"] = statistics.model_dump(exclude_none=True)
    return found


def _measured_rows(data: Dataset) -> NDArray[Any]:
    """Sample training rows as the graph takes them; for records, only the float columns."""
    rows = np.linspace(0, len(data.train) - 1, min(len(data.train), MEASURED_ROWS))
    split = data.train.take(np.unique(rows.astype(np.int64)))
    found = np.concatenate(list(graph_inputs(split, data.image)))
    if data.columns is None:
        return found
    floats = [c.name for c in data.columns.columns if c.dtype.startswith("float")]
    return float_rows(found, floats) if floats else np.empty((0, 0))


def _form(data: Dataset) -> dict[str, Any]:
    """Return the member `input` of model.json, without the statistics of the training rows."""
    if data.image is not None:
        height, width = data.image.size
        return {
            "name": INPUT,
            "kind": "image",
            "shape": [None, data.image.channels, height, width],
            "dtype": "float32",
            "size": [height, width],
            "color": data.image.color,
            "resize": data.image.resize,
            "mean": list(data.image.mean),
            "std": list(data.image.std),
            "layout": "NCHW",
        }
    if data.kind == "text":
        text = {"name": INPUT, "kind": "text", "shape": [None], "dtype": "string"}
        if data.vocabulary is None or data.vocabulary.tokenizer is None:
            return text
        return text | {"tokenizer": {"file": TOKENIZER_FILE, "inputs": dict(TOKENIZER_INPUTS)}}
    if data.kind == "columns":
        return {"name": INPUT, "kind": "columns", "shape": [None], "dtype": RECORD}
    one = np.asarray(data.train.inputs[:1])
    spec = {
        "name": INPUT,
        "kind": "tensor",
        "shape": [None, *one.shape[1:]],
        "dtype": one.dtype.name,
    }
    gaps = has_missing(*(np.asarray(split.inputs) for split in _splits(data).values()))
    return spec | ({"missing": True} if gaps else {})


def _columns_fields(data: Dataset) -> dict[str, Any]:
    """Return `inputs` of model.json for a table with columns of strings."""
    if data.columns is None:
        return {}
    return {
        "inputs": [
            {
                "name": column.name,
                "kind": "tensor" if column.values is None else "text",
                "shape": [None, 1],
                "dtype": column.dtype,
                # training takes a missing category as the empty string
                **({"missing": True} if column.missing or column.values is not None else {}),
            }
            for column in data.columns.columns
        ]
    }


def _description(recipe: Recipe) -> str:
    then = "" if recipe.afterwards == "nothing" else f", then {recipe.afterwards}"
    return f"{recipe.network} trained with {recipe.loss} on {recipe.data}{then}"


def _settings(recipe: Recipe) -> dict[str, Any]:
    settings = asdict(recipe) | {"milestones": list(recipe.milestones)}
    for other in ("name", "recipe", "description", "seed"):
        del settings[other]
    return settings


def short_scores(score: Mapping[str, Any]) -> dict[str, Any]:
    """Return `n` and the main scores, as trained and after adjustment."""
    kept = ("error", "balanced_error", "ece", "nll")
    return {
        "n": score["n"],
        "at_tau": {
            tau: {"tau": at["tau"]} | {key: at[key] for key in kept}
            for tau, at in score["at_tau"].items()
        },
    }


def _splits(data: Dataset) -> dict[str, Split]:
    found = {"train": data.train, "val": data.val, "test": data.test}
    return {name: split for name, split in found.items() if split is not None}


def _check_rows(data: Dataset) -> Split:
    """Sample rows to check the export, from a split not trained on if there is one."""
    split = data.test or data.val or data.train
    spread = np.unique(np.linspace(0, len(split) - 1, CHECKED_ROWS).astype(np.int64))
    return split.take(spread)
