"""Makes report.html of a published model, for readers: its origin and every measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.contract.adjustment import Vector
from training.pages import page
from training.pages.drawing import GREY, LIGHT, PALETTE, band, charts, label_axes, legend, svg

Document = Mapping[str, Any]
SPLITS = {"validation": "validation", "test": "test"}
SCORES = (
    "split",
    "τ",
    "n",
    "error, %",
    "balanced error, %",
    "95 %",
    "many, %",
    "medium, %",
    "few, %",
    "ECE, %",
    "NLL, nats",
)
MAX_CLASS_ROWS = 100
SMALLEST_SHARE = 5e-4
"""Bins of a reliability diagram with a smaller share of the rows are not drawn."""


def run_page(document: Document, facts: Mapping[str, str], *, title: str, lead: str) -> str:
    """Return the HTML page for a report.json, `document`.

    facts: how the model was made (date, command, data, versions), by name.
    """
    blocks = [
        page.heading("How it was made"),
        page.table(("", "value"), [[name, value] for name, value in facts.items()]),
        *_warnings(document.get("problems", ())),
        page.heading("Scores"),
        page.table(SCORES, _score_rows(document), caption=_basis(document)),
        *_tau(document),
        page.heading("Classes"),
        *_classes(document),
        *_reliability(document),
        *_confusion(document),
    ]
    return page.page(title, lead, blocks)


def _warnings(problems: Sequence[str]) -> list[page.Block]:
    if not problems:
        return []
    return [page.heading("Warnings about the data"), *(page.paragraph(text) for text in problems)]


def _basis(document: Document) -> str:
    return (
        f"At a uniform target, with temperature {document['temperature']:.3f}. τ = 0 is the "
        f"network as trained; {document['tau']['chosen']:g} is the τ chosen on validation. "
        "Many, medium and few are the classes with more than 100, 20 to 100 and fewer than 20 "
        "training examples."
    )


def _score_rows(document: Document) -> list[list[str]]:
    rows = []
    for name in SPLITS:
        scores = document.get(name)
        if scores is None:
            continue
        seen: set[float] = set()
        for at in scores["at_tau"].values():
            if at["tau"] in seen:
                continue
            seen.add(at["tau"])
            groups = [page.percent(at.get(group)) for group in ("many", "medium", "few")]
            rows.append(
                [
                    name,
                    f"{at['tau']:g}",
                    f"{scores['n']:,}",
                    page.percent(at["error"], digits=2),
                    page.percent(at["balanced_error"], digits=2),
                    _interval(at.get("balanced_error_interval")),
                    *groups,
                    page.percent(at["ece"]),
                    f"{at['nll']:.3f}",
                ]
            )
    return rows


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "–"
    return f"{page.percent(interval[0])} … {page.percent(interval[1])}"


def _tau(document: Document) -> list[page.Block]:
    """Draw balanced error against τ on validation."""
    curve = np.array(document["tau"]["validation_curve"])
    if not len(curve):
        return []
    figure, (axes,) = charts(height=3.2)
    axes.plot(curve[:, 0], 100 * curve[:, 1], color=PALETTE[1])
    bands = np.array(document["tau"].get("bands") or [])
    if len(bands) == len(curve):
        middle, half = 50 * bands.sum(axis=1), 50 * (bands[:, 1] - bands[:, 0])
        band(axes, curve[:, 0].tolist(), middle, half, colour=PALETTE[1])
    chosen = document["tau"]["chosen"]
    axes.axvline(chosen, color=GREY, linestyle="--", linewidth=1, label=f"chosen: {chosen:g}")
    legend(axes)
    label_axes(axes, x="τ (no unit)", y="balanced error, %")
    return [
        page.figure(
            svg(figure, title="Balanced error on validation against tau"),
            f"Balanced error on validation against τ, with its band; {document['tau']['n']:,} "
            "rows.",
            name="Choice of τ.",
        )
    ]


def _classes(document: Document) -> list[page.Block]:
    names, counts = document["class_names"], document["class_counts"]
    known = counts is not None
    order = np.argsort(-np.array(counts), kind="stable") if known else np.arange(len(names))
    blocks = [_class_figure(document, order)] if known else []
    scores = {name: document.get(name) for name in SPLITS if document.get(name)}
    header = ["class", "training examples", "group", *(f"{name} error, %" for name in scores)]
    rows = [
        [
            str(names[index]),
            f"{counts[index]:,}" if known else "–",
            str(document["groups"][index]) if known else "–",
            *(page.percent(each["per_class"][index]) for each in scores.values() if each),
        ]
        for index in order[:MAX_CLASS_ROWS]
    ]
    caption = (
        "Most frequent first; errors at the published τ."
        if known
        else (
            "In the model's order, as their training examples are not known; errors at the "
            "published τ."
        )
    )
    if len(order) > MAX_CLASS_ROWS:
        caption += f" {len(order) - MAX_CLASS_ROWS:,} more classes are in report.json."
    return [*blocks, page.table(header, rows, caption=caption)]


def _class_figure(document: Document, order: np.ndarray[Any, Any]) -> page.Block:
    """Draw the training examples and errors of the classes, most frequent first."""
    figure, (left, right) = charts(2, width=9.2, height=3.2)
    counts = np.array(document["class_counts"])[order]
    place = np.arange(len(order))
    left.fill_between(place, counts, step="mid", color=LIGHT)
    left.plot(place, counts, color=PALETTE[0], drawstyle="steps-mid")
    left.set_yscale("log")
    label_axes(left, x="class, most frequent first", y="training examples")
    for name, colour in zip(SPLITS, PALETTE[1:], strict=False):
        if document.get(name):
            errors = [document[name]["per_class"][index] for index in order]
            shown = [np.nan if error is None else 100 * error for error in errors]
            right.plot(place, shown, color=colour, marker="o", markersize=3, label=name)
    label_axes(right, x="class, most frequent first", y="error, %")
    if right.get_lines():
        legend(right)
    return page.figure(
        svg(figure, title="Training examples and error by class"),
        "Training examples (logarithmic) and error of each class.",
        name="By class.",
    )


def _reliability(document: Document) -> list[page.Block]:
    """Draw accuracy against confidence on the test split, for each τ."""
    shown = {f"τ = {at['tau']:g}": at["reliability"] for at in document.get("at_tau", {}).values()}
    if not shown:
        return []
    figure, (axes,) = charts(width=4.6, height=4.0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    for (name, bins), colour in zip(shown.items(), PALETTE[1:], strict=False):
        kept = np.array(bins["share"]) >= SMALLEST_SHARE
        x, y = (_numbers(bins[key])[kept] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=colour, marker="o", markersize=3.5, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    legend(axes, loc="upper left")
    label_axes(axes, x="confidence", y="accuracy")
    return [
        page.heading("Calibration"),
        page.figure(
            svg(figure, title="Reliability on the test split"),
            f"Accuracy against confidence of the predicted class, {document['test']['n']:,} test "
            "rows weighted to a uniform class mix.",
            name="Reliability.",
        ),
    ]


def _confusion(document: Document) -> list[page.Block]:
    """Draw the test split's confusion matrix at τ = 1; each row has shares of a true class."""
    cells = document.get("at_tau", {}).get("1", {}).get("confusion")
    if cells is None:
        return []
    table = np.array(cells, np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = charts(width=5.4, height=4.8)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.grid(visible=False)
    names = [str(name)[:16] for name in document["class_names"]]
    if len(names) <= 25:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, label="share of the class's rows, %")
    label_axes(axes, x="predicted class", y="true class")
    return [
        page.heading("Confusion"),
        page.figure(
            svg(figure, title="Confusion matrix of the test split at tau 1"),
            "Test split at τ = 1, each row divided by the rows of its class.",
            name="Confusion.",
        ),
    ]


def _numbers(values: Sequence[float | None]) -> Vector:
    return np.array([np.nan if value is None else value for value in values], np.float64)
