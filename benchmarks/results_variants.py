"""The parts of docs/results.md that explain other people's figures, from the file of benchmarks.variants."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.results_text import Document, key, mean, spread, title
from training.page import markdown_table

Row = Mapping[str, Any]


def variants_of(
    rows: Sequence[Row], group: str, largest: int, ratio: float
) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if (row["group"], row["max_per_class"], row["imbalance_ratio"]) == (group, largest, ratio):
            found.setdefault(row["variant"], []).append(row)
    return found


def summary(found: Sequence[Row], name: str = "balanced_error") -> dict[str, float | None]:
    """Mean and sd of a score of rows."""
    values = [row[name] for row in found]
    return {"mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}  # fmt: skip


OF = {
    "weight-norm": ("weight-norm τ=1", "weight-norm τ chosen"),
    "ldam": ("ldam",),
    "sampler": ("sampler-balanced",),
    "balanced": ("balanced",),
}
"""Group of benchmarks.variants → the methods of the comparison that it varies."""


def other_ways(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """A table of what other choices give, beside the method as it was compared."""
    lines = []
    for document in documents:
        largest, ratio = key(document)
        for group, methods in OF.items():
            found = variants_of(rows, group, largest, ratio)
            if not found:
                continue
            lines += [
                [title(document), method, "as compared", *_cells(document, method)]
                for method in methods
                if method in document["methods"]
            ]
            lines += [
                [
                    title(document),
                    methods[0].split(" ")[0],
                    name,
                    str(len(own)),
                    spread(summary(own)),
                ]
                for name, own in found.items()
            ]
    return markdown_table(("setting", "method", "how", "n", "balanced error, %"), lines)


def _cells(document: Document, method: str) -> list[str]:
    entry = document["methods"][method]["summary"]["balanced_error"]
    return [str(entry["n"]), spread(entry)]


def on_weights(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """A remark where weighting the loss by 1 / pi does worse than not weighting it."""
    told = ""
    for document in documents:
        if "balanced" not in document["methods"] or mean(document, "balanced") <= mean(
            document, "erm"
        ):
            continue
        largest, ratio = key(document)
        counts = document["data"]["class_counts"]
        weight = sum(counts) / (len(counts) * min(counts))
        others = [
            f"{spread(summary(own))} {name}"
            for name, own in variants_of(rows, "balanced", largest, ratio).items()
        ]
        told += (
            f"\n`balanced` fails at {title(document)}: one example of the rarest class weighs as much as {weight:.0f} average ones, and a step\n"
            "for it undoes many others at this learning rate. Sampling the classes equally often asks for the same mix and does not fail.\n"
            + (
                f"It is the step, not the formula or the precision: {', '.join(others)}.\n"
                if others
                else ""
            )
        )
    return told
