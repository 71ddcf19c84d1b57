"""Makes report.json: the measurements of a run, for the console and for programs."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, adjust_logits, softmax
from service.contract.scores import group_of, reliability, target_weights
from training.data.dataset import Dataset, Split, rows_by_class
from training.run.calibration import Calibration

MAX_CONFUSION_CLASSES = 100
MAX_SAMPLE_NUMBERS = 4096


def report(
    data: Dataset,
    *,
    class_counts: Sequence[float] | NDArray[Any] | None,
    log_source_prior: Vector,
    calibration: Calibration,
    logits: Mapping[str, NDArray[np.float32]],
    scores: Mapping[str, Any],
    samples: int,
    problems: Sequence[str],
) -> dict[str, Any]:
    """Return the document; models/README.md describes its members.

    class_counts: [C] of training; None if unknown. log_source_prior: [C], as they imply it.
    logits: [n, C] by split; those of `test` are scored. samples: how many test inputs to show.
    problems: warnings about the data, as sentences.
    """
    counts = None if class_counts is None else [int(count) for count in class_counts]
    choice = calibration.choice
    document: dict[str, Any] = {
        "format_version": 1,
        "class_names": list(data.class_names),
        "class_counts": counts,
        "groups": None if counts is None else [group_of(count) for count in counts],
        "temperature": calibration.temperature,
        "temperature_interval": calibration.temperature_interval,
        "tau": {
            "chosen": calibration.tau,
            "validation_curve": [list(point) for point in choice.curve] if choice else [],
            "bands": [list(band) for band in choice.bands] if choice else [],
            "interval": list(choice.interval) if choice else None,
            "n": choice.n if choice else 0,
        },
        "validation": scores.get("val"),
        "test": scores.get("test"),
        "problems": list(problems),
    }
    if data.test is not None and "test" in logits:
        document["at_tau"] = {
            name: _outcome(
                logits["test"],
                data.test,
                log_source=calibration.log_source_prior(log_source_prior),
                temperature=calibration.temperature,
                tau=tau,
            )
            for name, tau in (("0", 0.0), ("1", 1.0), ("chosen", calibration.tau))
        }
        document["samples"] = _samples(data, data.test, samples)
    return document


def _outcome(
    logits: NDArray[np.float32],
    split: Split,
    *,
    log_source: Vector,
    temperature: float,
    tau: float,
) -> dict[str, Any]:
    """Compute reliability and confusion at one tau, on the test split with a uniform target."""
    num_classes = len(log_source)
    target = np.zeros(num_classes)
    probabilities = softmax(
        adjust_logits(
            logits,
            log_source_prior=log_source,
            log_target_prior=target,
            tau=tau,
            temperature=temperature,
        )
    )
    bins = reliability(probabilities, split.labels, target_weights(split.labels, np.exp(target)))
    outcome: dict[str, Any] = {
        "tau": tau,
        "reliability": {
            "edges": bins.edges.tolist(),
            "share": bins.share.tolist(),
            "confidence": _numbers(bins.confidence),
            "accuracy": _numbers(bins.accuracy),
        },
    }
    if num_classes <= MAX_CONFUSION_CLASSES:
        cells = split.labels * num_classes + probabilities.argmax(axis=1)
        confusion = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
        outcome["confusion"] = confusion.tolist()
    return outcome


def _samples(data: Dataset, split: Split, wanted: int) -> list[dict[str, Any]]:
    """Return `wanted` test inputs with their labels, taken from each class in turn."""
    first = rows_by_class(split.labels, data.num_classes)
    turns = max((len(rows) for rows in first), default=0)
    rows = [
        int(own[turn]) for turn in range(min(turns, wanted)) for own in first if len(own) > turn
    ]
    if len(first) > wanted:  # more classes than samples: spread over the classes
        rows = (
            [
                rows[i]
                for i in np.unique(
                    np.linspace(0, min(len(first), len(rows)) - 1, wanted).astype(int)
                )
            ]
            if rows and wanted
            else []
        )
    return [_sample(data, split, row) for row in rows[:wanted]]


def _sample(data: Dataset, split: Split, row: int) -> dict[str, Any]:
    index = int(split.labels[row])
    found: dict[str, Any] = {"label": data.class_names[index], "index": index}
    value = np.asarray(split.inputs[row : row + 1])[0]
    if data.kind == "image":
        found["png"] = png(np.asarray(value))
    elif data.kind == "text":
        found["instance"] = str(value)
    elif value.dtype.names is not None:
        found["instance"] = {name: _cell(value[name]) for name in value.dtype.names}
    elif value.size <= MAX_SAMPLE_NUMBERS:
        found["instance"] = instance(value)
        if data.picture is not None:
            shown = value.reshape(data.picture) / max(1e-9, float(value.max())) * 255
            found["png"] = png(shown.astype(np.uint8)[..., None])
    return found


def instance(row: NDArray[Any]) -> Any:
    """Convert a row of numbers for JSON: NaN becomes null, digits beyond the dtype are dropped."""
    if row.ndim > 1:
        return row.tolist()
    digits = ".7g" if row.dtype == np.float32 else ".17g"
    return [None if np.isnan(number) else float(f"{number:{digits}}") for number in row]


def _cell(value: Any) -> Any:
    """Convert one field of a record to a JSON value."""
    held = np.asarray(value)
    if held.size != 1:
        return held.tolist()
    if held.dtype.kind == "f":
        return instance(held.ravel())[0]
    one = held.ravel()[0]
    return one.item() if hasattr(one, "item") else one


def png(pixels: NDArray[np.uint8]) -> str:
    """Encode pixels, uint8 [H, W, 1 or 3], as a PNG file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        file, "PNG", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
