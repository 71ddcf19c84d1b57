"""Draws the figures of a comparison, as SVG text, from the object of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes

from service.contract.adjustment import Vector
from service.contract.scores import GROUPS, group_of
from training.pages.drawing import (
    DASHES,
    GREY,
    PALETTE,
    band,
    charts,
    label_axes,
    legend,
    legend_beside,
    svg,
)
from training.studies.curves import ADJUSTMENTS, SHIFTS

Document: TypeAlias = Mapping[str, Any]

SHOWN = (
    "erm",
    "weight-norm τ chosen",
    "post-hoc τ=1",
    "logit-adjusted",
    "ldam-drw",
    "sampler-balanced",
)
"""The methods in the figures by class and by group; more lines would be hard to tell apart."""
MAX_CLASSES = 20
DECILES = 10
TAU_SHOWN = 2.0
"""The largest tau drawn. Beyond it, the error of post-hoc adjustment grows so far that the minimum
would be invisible.
"""
FEWEST_IN_BIN = 5e-4
"""Bins with a smaller share of the examples are not drawn: their accuracy is too uncertain."""


def overview(document: Document) -> str:
    """Draw the balanced error of every method: mean and sd over the seeds."""
    names = list(document["methods"])
    figure, (axes,) = charts(width=7.6, height=0.6 + 0.25 * len(names))
    for row, name in enumerate(names):
        entry = document["methods"][name]["summary"]["balanced_error"]
        each = [one["balanced_error"] for one in document["methods"][name]["seeds"].values()]
        axes.plot(
            [100 * e for e in each],
            [row] * len(each),
            "o",
            color=PALETTE[1],
            alpha=0.35,
            markersize=3.5,
        )
        axes.errorbar(
            100 * entry["mean"],
            row,
            xerr=100 * (entry["sd"] or 0),
            fmt="o",
            color=PALETTE[1],
            markersize=5,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    if "erm" in document["methods"]:
        mean = 100 * document["methods"]["erm"]["summary"]["balanced_error"]["mean"]
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1)
    label_axes(axes, x="balanced error on the test split, %", y="method")
    return svg(figure, title="Balanced error by method")


def tau_sweep(document: Document) -> str:
    """Draw balanced error against tau, for adjustment and weight normalisation (paper, Fig. 3)."""
    optimisers = [
        (key, title)
        for key, title in (("tau_erm", "SGD"), ("tau_adam", "Adam"))
        if all(key in curves for curves in document["curves"])
    ]
    figure, axes = charts(len(optimisers), width=4.1 * len(optimisers), height=3.6)
    for chart in axes[1:]:
        chart.sharey(axes[0])
    for chart, (key, title) in zip(axes, optimisers, strict=True):
        for name, colour in (("post-hoc", PALETTE[1]), ("weight-norm", PALETTE[2])):
            for split, dash in (("test", "-"), ("val", ":")):
                curves = [one[key].get(f"{name} {split}") for one in document["curves"]]
                _sweep(chart, curves, name=f"{name} {split}", colour=colour, dash=dash)
        label_axes(chart, x="τ (no unit)", y="balanced error, %", title=f"ERM trained with {title}")
    legend(axes[0])
    return svg(figure, title="Balanced error against tau")


def _sweep(axes: Axes, curves: Sequence[Any], *, name: str, colour: str, dash: str) -> None:
    if any(curve is None for curve in curves):
        return
    points = np.array(curves)
    points = points[:, points[0, :, 0] <= TAU_SHOWN]
    taus, points = points[0, :, 0].tolist(), 100 * points
    mean = points[:, :, 1].mean(axis=0)
    axes.plot(taus, mean, color=colour, linestyle=dash, label=name)
    if dash == "-":
        band(axes, taus, mean, _sd(points[:, :, 1]), colour=colour)


def by_class(document: Document) -> str:
    """Draw the error by class in order of frequency (paper, Fig. 4); by decile if many classes."""
    order, labels = frequency_order(document)
    figure, (axes,) = charts(width=8.2, height=4.0)
    for index, name in enumerate(shown(document)):
        values = document["methods"][name]["per_class"]
        errors = [[values[i] for i in group if values[i] is not None] for group in order]
        axes.plot(
            range(len(order)),
            [100 * float(np.mean(group)) if group else np.nan for group in errors],
            marker="o",
            markersize=3.5,
            color=PALETTE[index],
            linestyle=DASHES[index % len(DASHES)],
            label=name,
        )
    axes.set_xticks(range(len(order)), labels, rotation=35, ha="right")
    axes.set_ylim(bottom=0)
    legend_beside(axes)
    unit = "class (training examples), most frequent first"
    label_axes(
        axes,
        x=unit
        if len(order[0]) == 1
        else "decile of classes (training examples), most frequent first",
        y="error, %",
    )
    return svg(figure, title="Error by class in order of frequency")


def by_group(document: Document) -> str:
    """Draw the error of the many, medium and few classes (paper, Fig. 11)."""
    counts = document["data"]["class_counts"]
    sizes = {g: sum(group_of(n) == g for n in counts) for g in GROUPS}
    groups = [name for name in GROUPS if sizes[name]]
    names = shown(document)
    figure, (axes,) = charts(width=8.2, height=3.8)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        entries = [document["methods"][name]["summary"][group] for group in groups]
        axes.bar(
            np.arange(len(groups)) + (index - (len(names) - 1) / 2) * width,
            [100 * e["mean"] for e in entries],
            width,
            yerr=[100 * (e["sd"] or 0) for e in entries],
            color=PALETTE[index],
            error_kw={"elinewidth": 1, "ecolor": GREY},
            label=name,
        )
    rules = {"many": "> 100", "medium": "20 … 100", "few": "< 20"}
    ticks = [f"{g}: {rules[g]} examples\n({sizes[g]} classes)" for g in groups]
    axes.set_xticks(range(len(groups)), ticks)
    legend_beside(axes)
    label_axes(axes, x="group of classes", y="mean error of the group's classes, %")
    return svg(figure, title="Error of the many, medium and few classes")


def weight_norms(document: Document) -> str:
    """Draw the norms of the classes' weights by class frequency and optimiser (paper, Fig. 1)."""
    order, labels = frequency_order(document)
    names = [n for n in ("SGD", "Adam") if all(n in one["norms"] for one in document["curves"])]
    figure, axes = charts(len(names), width=4.3 * len(names), height=3.9)
    unit = "class (training examples), most frequent first"
    unit = unit if len(order[0]) == 1 else unit.replace("class", "decile of classes")
    for index, (chart, name) in enumerate(zip(axes, names, strict=True)):
        every = np.array([one["norms"][name]["norms"] for one in document["curves"]])
        grouped = np.stack([every[:, group].mean(axis=1) for group in order], axis=1)
        mean, sd = grouped.mean(axis=0), _sd(grouped)
        chart.errorbar(
            range(len(order)), mean, yerr=sd, marker="o", markersize=4, color=PALETTE[1 + index]
        )
        chart.set_xticks(range(len(order)), labels, rotation=60, ha="right", fontsize=7.5)
        chart.set_ylim(bottom=0)
        title = (
            f"{name}: rank correlation {_stated(document, name, 'spearman')}\n"
            f"‖w_y‖ ∝ n_y^b, b = {_stated(document, name, 'slope')}"
        )
        label_axes(chart, x=unit, y="‖w_y‖ (no unit)", title=title)
    return svg(figure, title="Norms of the last layer's weights against class frequency")


def _stated(document: Document, name: str, key: str) -> str:
    """Return one number about the norms as 'mean ± sd' over the seeds."""
    values = np.array([one["norms"][name][key] for one in document["curves"]], float)
    known = values[~np.isnan(values)]
    if not len(known):
        return "–"
    mean = f"{known.mean():+.2f}"
    return f"{mean} ± {known.std(ddof=1):.2f}" if len(known) > 1 else mean


def reliability(document: Document) -> str:
    """Draw accuracy against confidence on the test split, at a uniform target."""
    names = list(document["curves"][0]["reliability"])
    figure, axes = charts(len(names), width=2.5 * len(names), height=3.1)
    for chart, name in zip(axes, names, strict=True):
        seeds = [one["reliability"][name] for one in document["curves"]]
        share = np.array([one["share"] for one in seeds])
        accuracy = _pooled(share, [one["accuracy"] for one in seeds])
        confidence = _pooled(share, [one["confidence"] for one in seeds])
        ece = float(np.mean([one["ece"] for one in seeds]))
        bins = share.shape[1]
        chart.bar((np.arange(bins) + 0.5) / bins, share.mean(axis=0), 1 / bins, color="#d0d5dd")
        chart.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        enough = share.mean(axis=0) >= FEWEST_IN_BIN
        chart.plot(confidence[enough], accuracy[enough], "o-", color=PALETTE[1], markersize=3)
        chart.set(xlim=(0, 1), ylim=(0, 1))
        label_axes(
            chart,
            x="confidence, 0 … 1",
            y="accuracy; bars: share, 0 … 1",
            title=f"{name}\nECE {ece:.1%}",
        )
    return svg(figure, title="Reliability diagrams")


def shifted(document: Document) -> str:
    """Draw the ERM model's error on LADE's shifted test sets, for each target it is adjusted to."""
    keys = (
        [f"backward-{k}" for k in reversed(SHIFTS)] + ["uniform"] + [f"forward-{k}" for k in SHIFTS]
    )
    figure, (axes,) = charts(width=8.2, height=4.0)
    for index, name in enumerate(ADJUSTMENTS):
        values = 100 * np.array(
            [[one["shifted"][k][name] for k in keys] for one in document["curves"]],
            dtype=float,  # a refused estimate is None, and becomes a gap
        )
        mean = values.mean(axis=0)
        colour = PALETTE[index]
        axes.plot(range(len(keys)), mean, "o-", markersize=3.5, color=colour, label=name)
        band(axes, list(range(len(keys))), mean, _sd(values), colour=colour)
    sizes = [document["curves"][0]["shifted"][k]["n"] for k in keys]
    ticks = [f"{k} ({size:,})" for k, size in zip(keys, sizes, strict=True)]
    axes.set_xticks(range(len(keys)), ticks, rotation=35, ha="right")
    axes.set_ylim(bottom=0)
    legend_beside(axes, title="adjustment")
    label_axes(axes, x="shifted test set (examples)", y="error, %")
    return svg(figure, title="Error on shifted test sets")


def shown(document: Document) -> list[str]:
    """Return the compared methods that are in SHOWN; if none is, the first few methods."""
    found = [name for name in SHOWN if name in document["methods"]]
    return found or list(document["methods"])[: len(SHOWN)]


def frequency_order(document: Document) -> tuple[list[list[int]], list[str]]:
    """Return groups of class indices, most frequent first, and their labels.

    A group is a single class or, if there are many, a decile of the classes.
    """
    data = document["data"]
    counts = np.array(data["class_counts"])
    order = np.argsort(-counts, kind="stable")
    if len(order) <= MAX_CLASSES:
        labels = [f"{data['class_names'][i][:16]} ({counts[i]:,})" for i in order]
        return [[int(i)] for i in order], labels
    parts: Sequence[Any] = np.array_split(order, DECILES)
    labels = [f"{counts[p].max():,} … {counts[p].min():,}" for p in parts]
    return [[int(i) for i in p] for p in parts], labels


def _pooled(share: Vector, values: Sequence[Sequence[float | None]]) -> Vector:
    """Return [bins] means over the seeds, weighted by the bin's share; NaN for an empty bin."""
    table = np.array([[0.0 if v is None else v for v in row] for row in values])
    total = share.sum(axis=0)
    pooled: Vector = np.divide(
        (table * share).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return pooled


def _sd(values: Vector) -> Vector:
    """Return the standard deviation over the seeds (first axis); 0 for one seed."""
    spread: Vector = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return spread
