"""The parts of docs/results.md that explain, from the file of benchmarks.variants: Adam's norms, and other people's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.results_text import Document, key, mean, spread, title
from training.methods import ADAM_RATE
from training.page import markdown_table

Row = Mapping[str, Any]


NORMS_HEADER = (
    "setting", "training", "n", "rank correlation, each seed", "b of ‖w_y‖ ∝ n_y^b",
    "ERM, %", "weight-norm τ=1, %", "post-hoc τ=1, %",
)  # fmt: skip
HIDDEN_LAYER = """
The sign depends on the network. The comparison's has 432 features before its last layer; with a hidden layer of 64 (network `cnn`, all else the same; the paper's
ResNet-32 has 64 features, too) Adam's norms run against the counts in {negative} of {runs} runs, and weight normalisation changes the balanced error by {gain} points. Features are
positive, nearly every step pushes the weights of a rare class down along all of them a little, and Adam makes whole steps of small steady ones.

"""


def norms_under_adam(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """How norms follow counts, and what weight normalisation gains, by optimiser and rate."""
    by_setting = [(document, _trainings(document, rows)) for document in documents]
    lines = [
        [title(document), name, *_norm_cells(found)]
        for document, trainings in by_setting
        for name, found in trainings
    ]
    return (
        "Rank correlation (Spearman) of the last layer's ‖w_y‖ with n_y, the slope b between their logarithms, and balanced errors on test:\n"
        "mean ± standard deviation over n seeds.\n\n"
        + markdown_table(NORMS_HEADER, lines)
        + _on_norms([trainings for _, trainings in by_setting])
        + _with_hidden_layer(documents, rows)
    )


def _with_hidden_layer(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """The same of the network that has a hidden layer before its last one."""
    lines = [
        [title(document), name, *_norm_cells(found)]
        for document in documents
        for name, found in variants_of(rows, "hidden layer", *key(document)).items()
    ]
    adam = [row for row in rows if row["group"] == "hidden layer" and "Adam" in row["variant"]]
    if not adam:
        return ""
    negative = sum(row["spearman"] < 0 for row in adam)
    told = HIDDEN_LAYER.format(negative=negative, runs=len(adam), gain=_gain(adam, "weight_norm"))
    return told + markdown_table(NORMS_HEADER, lines)


def _trainings(document: Document, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(name, its seeds): the compared SGD, then Adam by rate."""
    settings = document["settings"]
    length = f"{settings['steps']} steps"
    adam = {
        f"rate {settings['lr'] * ADAM_RATE:g}, {length}": _compared(document, "Adam"),
        **variants_of(rows, "adam", *key(document)),
    }
    return [
        (f"SGD, rate {settings['lr']:g}, {length}", _compared(document, "SGD")),
        *((f"Adam, {name}", adam[name]) for name in sorted(adam, key=_rate)),
    ]


def _rate(name: str) -> float:
    return float(name.split()[1].rstrip(","))


def _on_norms(by_setting: Sequence[Sequence[tuple[str, list[Row]]]]) -> str:
    """What the table says, in words; the first training of a setting is SGD's."""
    sgd = [row for trainings in by_setting for row in trainings[0][1]]
    adam = [row for trainings in by_setting for _, seeds in trainings[1:] for row in seeds]
    negative = sum(row["spearman"] < 0 for row in adam)
    everywhere = [
        name
        for name, _ in by_setting[0][1:]
        if all(
            row["spearman"] < 0
            for trainings in by_setting
            for own, seeds in trainings
            if own == name
            for row in seeds
        )
    ]
    return f"""
Under SGD a class's weights grow by the sum of its gradients, so by its examples: b is {_range(sgd, "slope")}, and the order is that of the counts. Adam divides the
gradient of each weight by that gradient's own size, and how far a class's weights move no longer follows how much gradient there was: b is {_range(adam, "slope")}, and
{negative} of {len(adam)} rank correlations are negative. Their sign goes with the rate: small rates leave a slightly positive b, large ones none or a negative one.
{f"Negative in every seed of every setting: {', '.join(everywhere)}." if everywhere else "On this network no rate made all of them negative."} With ten classes one of less than 0.65 in size cannot be told from none (5 %, two-sided). The paper says
“anti-correlated or independent”; this is nearer to independent. What it concludes does hold, at every rate: weight normalisation changes the balanced error
of an Adam run by {_gain(adam, "weight_norm")} points on average (SGD: {_gain(sgd, "weight_norm")}), post-hoc adjustment by {_gain(adam, "post_hoc")} (SGD: {_gain(sgd, "post_hoc")}).
"""


def _range(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{min(values):+.2f} to {max(values):+.2f}"


def _gain(rows: Sequence[Row], name: str) -> str:
    return f"{100 * np.mean([row[name] - row['balanced_error'] for row in rows]):+.1f}"


def _compared(document: Document, optimiser: str) -> list[Row]:
    """The seeds of a comparison as rows of benchmarks.variants."""
    run, sweeps = {"SGD": ("erm", "tau_erm"), "Adam": ("erm-adam", "tau_adam")}[optimiser]
    found: list[Row] = []
    for seed, curves in zip(document["seeds"], document["curves"], strict=True):
        at_one = {
            sweep: next(error for tau, error in curves[sweeps][f"{sweep} test"] if tau == 1)
            for sweep in ("weight-norm", "post-hoc")
        }
        found.append(
            {
                "spearman": curves["norms"][optimiser]["spearman"],
                "slope": curves["norms"][optimiser]["slope"],
                "balanced_error": document["methods"][run]["seeds"][str(seed)]["balanced_error"],
                "weight_norm": at_one["weight-norm"],
                "post_hoc": at_one["post-hoc"],
            }
        )
    return found


def variants_of(
    rows: Sequence[Row], group: str, largest: int, ratio: float
) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if (row["group"], row["max_per_class"], row["imbalance_ratio"]) == (group, largest, ratio):
            found.setdefault(row["variant"], []).append(row)
    return found


def _norm_cells(found: Sequence[Row]) -> list[str]:
    slopes = np.array([row["slope"] for row in found])
    slope = f"{slopes.mean():+.2f}" + (f" ± {slopes.std(ddof=1):.2f}" if len(found) > 1 else "")
    errors = [
        spread(summary(found, name)) for name in ("balanced_error", "weight_norm", "post_hoc")
    ]
    ranks = ", ".join(f"{row['spearman']:+.2f}" for row in found)
    return [str(len(found)), ranks, slope, *errors]


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
