"""Writes the parts of docs/results.md that explain the published figures of others.

They read the file that benchmarks.results.variants writes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.results.other_figures import REFERENCE
from benchmarks.results.text import Document, key, mean, spread, title
from training.pages.page import markdown_table

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
    """Mean and sd of a score over rows."""
    values = [row[name] for row in found]
    return {"mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}  # fmt: skip


OF = {
    "weight-norm": ("weight-norm τ=1", "weight-norm τ chosen"),
    "ldam": ("ldam",),
    "sampler": ("sampler-balanced",),
    "balanced": ("balanced",),
}
"""For each group of benchmarks.results.variants: the compared methods that it varies."""


def other_ways(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """A table of the alternatives, next to the method as it was compared."""
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


def concluded(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """The conclusions from that table about each difference to the independent figures.

    Alternatives that were not trained are left out.
    """
    reported = []
    for document in documents:
        theirs = REFERENCE.get(key(document), {})
        found = {
            group: {name: 100 * float(np.mean([row["balanced_error"] for row in own]))
                    for name, own in variants_of(rows, group, *key(document)).items()}
            for group in OF
        }  # fmt: skip
        sentences = [
            *_of_weight_norms(document, theirs, found["weight-norm"]),
            *_of_ldam(document, theirs, found["ldam"]),
            *_of_sampling(document, theirs, found["sampler"]),
        ]
        if sentences:
            reported.append(
                f"- {title(document)[0].upper()}{title(document)[1:]}: {' '.join(sentences)}\n"
            )
    return "\n" + "".join(reported) if reported else ""


Errors = Mapping[str, float]
"""Percent, by name."""


def _of_weight_norms(document: Document, theirs: Errors, found: Errors) -> list[str]:
    """Return sentences on the τ that the independent authors may have used, and on the effect of
    bias and validation split.
    """
    if not found or "weight-norm τ=1" not in theirs:
        return []
    reference = theirs["weight-norm τ=1"]
    fixed = {name: error for name, error in found.items() if name[-1].isdigit()}
    nearest = min(fixed, key=lambda name: abs(fixed[name] - reference))
    chosen, erm = 100 * mean(document, "weight-norm τ chosen"), 100 * mean(document, "erm")
    split = "τ from a long-tailed validation split, by"
    return [
        (
            f"Weight normalisation is nearest to their {reference:.1f} % with {nearest} "
            f"({fixed[nearest]:.1f} %)."
        ),
        (
            "Keeping the bias changes its error at τ = 1 by "
            f"{found['τ = 1, bias kept'] - found['τ = 1']:+.1f} points."
        ),
        (
            "Choosing τ on a long-tailed validation split in place of the balanced one changes it "
            f"by {found[f'{split} balanced error'] - chosen:+.1f} points."
        ),
        (
            "Choosing it there by plain error leaves "
            f"{erm - found[f'{split} error']:.1f} of the {erm - chosen:.1f} points that it gains "
            "over ERM."
        ),
    ]


def _of_ldam(document: Document, theirs: Errors, found: Errors) -> list[str]:
    """Return a sentence on the largest margin that the independent authors may have used."""
    if not found or "ldam" not in theirs:
        return []
    errors = {"as compared": 100 * mean(document, "ldam"), **found}
    nearest = min(errors, key=lambda name: abs(errors[name] - theirs["ldam"]))
    near = f"{_with(nearest)} ({errors[nearest]:.1f} %)"
    return [f"LDAM is nearest to their {theirs['ldam']:.1f} % {near}."]


def _with(name: str) -> str:
    return name if name == "as compared" else f"with a {name.replace('margin', 'margin of')}"


def _of_sampling(document: Document, theirs: Errors, found: Errors) -> list[str]:
    """A sentence on the effect of the random flips."""
    if not found or "sampler-balanced" not in theirs:
        return []
    ours = 100 * mean(document, "sampler-balanced")
    worse, of = found["without flips"] - ours, theirs["sampler-balanced"] - ours
    why = (
        " The network learns repeated examples by heart if they never change." if worse > 0 else ""
    )
    return [
        (
            f"Without random flips, the error of balanced sampling changes by {worse:+.1f} points; "
            f"theirs differs from ours by {of:+.1f} points.{why}"
        )
    ]


def on_weights(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """A note for settings in which weighting the loss by 1 / pi is worse than no weights."""
    reported = ""
    for document in documents:
        if "balanced" not in document["methods"] or mean(document, "balanced") <= mean(
            document, "erm"
        ):
            continue
        largest, ratio = key(document)
        counts = document["data"]["class_counts"]
        weight = sum(counts) / (len(counts) * min(counts))
        others = [
            f"{spread(summary(own))} % {name}"
            for name, own in variants_of(rows, "balanced", largest, ratio).items()
        ]
        reported += (
            f"\n`balanced` fails at {title(document)}. One example of the rarest class weighs as "
            f"much as {weight:.0f} average ones, so at this\n"
            "learning rate a step for it undoes many others. `sampler-balanced` asks for the same "
            "class mix and does not fail.\n"
            + (
                "The cause is the size of the step, not the formula or the precision. The balanced "
                f"error is {' and '.join(others)}.\n"
                if others
                else ""
            )
        )
    return reported
