"""docs/results.md and its figures, from the results.json of finished comparisons: no number of ours is typed by hand.

    python -m benchmarks.results runs/exp100-5000 runs/exp1000-5000 runs/exp100-500

Each folder is the --out of a `training compare`. Writes DOCS/results.md and DOCS/results/*.svg.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.published_results import (
    PAPER,
    PAPER_DATA,
    PAPER_SOURCE,
    REFERENCE,
    REFERENCE_SOURCE,
)
from training.comparison_report import HEADER, draw, sample, table_rows
from training.page import markdown_table

Document = Mapping[str, Any]
FIGURES = {
    "classes": "Error by class, most frequent first",
    "tau": "Balanced error against τ, on test (solid) and on validation (dotted)",
    "norms": "Norms of the last layer's weights",
    "shifted": "Error of the ERM model on shifted test sets, by what is known of their class mix",
    "reliability": "Reliability at a uniform target",
}
"""Those of the first folder; of the others, all but the last."""
COMMON = ("network", "steps", "batch", "optimiser", "lr", "weight_decay", "schedule", "augment", "precision")  # fmt: skip


def main() -> None:
    """Read the folders, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="each a --out of training compare")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="default docs")
    options = parser.parse_args()
    documents = [
        json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for folder in options.folders
    ]
    place = options.docs / "results"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.svg"):
        old.unlink()
    for number, document in enumerate(documents):
        write_figures(document, place, every=number == 0)
    (options.docs / "results.md").write_text(page(documents), encoding="utf-8")


def write_figures(document: Document, place: Path, *, every: bool) -> None:
    """The SVG files of one setting, on white, so that they can be read on a dark page."""
    drawn = draw(document)
    for name in list(FIGURES)[: None if every else -1]:
        text = drawn[name].replace("<svg ", '<svg style="background:#fff" ', 1)
        (place / f"{slug(document)}-{name}.svg").write_text(text + "\n", encoding="utf-8")


def page(documents: Sequence[Document]) -> str:
    """The whole of results.md."""
    parts = [
        INTRODUCTION,
        "## What was run\n",
        runs(documents),
        "## Balanced error of every method\n",
        overview(documents),
        "## What was expected, and what was found\n",
        expectations(documents),
        "## Beside an independent implementation\n",
        beside_reference(documents),
        "## Each setting\n",
        *(details(document, every=number == 0) for number, document in enumerate(documents)),
        "## The paper's numbers, on data that were not at hand\n",
        papers(),
    ]
    return "\n".join(parts)


INTRODUCTION = """# Results

Written by `python -m benchmarks.results` from the results of `training compare`; edit that, not this page.

Every method of [methods](methods.md), trained and scored here on long-tailed Fashion-MNIST. CIFAR-LT, ImageNet-LT and iNaturalist could not be had; the
paper's own numbers for them stand at the end, marked as the paper's.
"""


def runs(documents: Sequence[Document]) -> str:
    """Data, settings and commands."""
    rows = []
    for document in documents:
        n, counts = document["data"]["n"], document["data"]["class_counts"]
        sizes = [f"{n[split]:,}" for split in ("train", "val", "test")]
        listed = ", ".join(f"{count:,}" for count in counts)
        rows.append([title(document), *sizes, str(len(document["seeds"])), listed])
    header = ("setting", "training examples", "validation", "test", "seeds", "training examples by class")  # fmt: skip
    shared = {key: documents[0]["settings"][key] for key in COMMON}
    told = ", ".join(f"{key} {value}" for key, value in shared.items())
    commands = "".join(f"    {command(document)}\n" for document in documents)
    return (
        markdown_table(header, rows)
        + f"\nExponential profile; validation is balanced and set aside before the profile is applied. Every run: {told}.\n"
        f"`erm-adam` is AdamW without decay. Temperature and every τ but 1 are chosen on validation. A run took about "
        f"{seconds(documents):.0f} s of one core.\n\n{commands}"
    )


def command(document: Document) -> str:
    """The shell line that makes a folder."""
    settings = document["settings"]
    return (
        f"training compare --recipe fashion-compare --methods all --seeds {len(document['seeds'])}"
        f" --imbalance-ratio {settings['imbalance_ratio']:g} --max-per-class {settings['max_per_class']}"
        f" --threads 1 --out runs/{slug(document)}"
    )


def seconds(documents: Sequence[Document]) -> float:
    """The median time of a run."""
    each = sorted(
        score["seconds"]
        for document in documents
        for method in document["methods"].values()
        for score in method["seeds"].values()
    )
    return float(each[len(each) // 2])


def overview(documents: Sequence[Document]) -> str:
    """Methods by settings: mean and sd of the balanced error, and the difference to ERM; the best mean in bold."""
    best = [min(mean(document, name) for name in document["methods"]) for document in documents]
    rows = []
    for name, method in documents[0]["methods"].items():
        cells = [name, method["note"]]
        for document, lowest in zip(documents, best, strict=True):
            own = document["methods"][name]
            text = spread(own["summary"]["balanced_error"])
            text = f"**{text}**" if mean(document, name) == lowest else text
            less = "" if name == "erm" else f" ({100 * own['against_erm']['mean']:+.1f})"
            cells.append(text + less)
        rows.append(cells)
    return (
        markdown_table(["method", "what", *(title(d) for d in documents)], rows)
        + f"\nPercent, mean ± standard deviation over the seeds ({ns(documents)}), {documents[0]['data']['n']['test']:,} test examples; in brackets the "
        "difference to ERM in points, paired by seed (its interval is in the tables below). The best mean of a setting is bold.\n"
        + "".join(on_weights(document) for document in documents)
    )


def on_weights(document: Document) -> str:
    """A remark where weighting the loss by 1 / pi does worse than not weighting it."""
    methods, counts = document["methods"], document["data"]["class_counts"]
    if "balanced" not in methods or mean(document, "balanced") <= mean(document, "erm"):
        return ""
    weight = sum(counts) / (len(counts) * min(counts))
    return (
        f"\n`balanced` fails at {title(document)}: one example of the rarest class weighs as much as {weight:.0f} average ones, and a step\n"
        "for it undoes many others at this learning rate. Sampling the classes equally often asks for the same mix and does not fail.\n"
    )


def expectations(documents: Sequence[Document]) -> str:
    """What the paper and the independent figures make one expect, seed by seed, and whether it is so."""
    rows = []
    for document in documents:
        least = 9 if document["settings"]["imbalance_ratio"] >= 1000 else 2
        for method in ("post-hoc τ=1", "logit-adjusted"):
            gains = [-100 * each for each in document["methods"][method]["against_erm"]["each"]]
            rows.append(
                _check(
                    document,
                    f"ERM − {method} ≥ {least} points",
                    gains,
                    lambda g, low=least: g >= low,
                )
            )
        for name, text, holds in (
            ("SGD", "‖w_y‖ follows n_y under SGD with momentum: Spearman > 0.7", lambda r: r > 0.7),
            ("Adam", "‖w_y‖ does not under Adam: Spearman < 0", lambda r: r < 0),
        ):
            ranks = [one["norms"][name]["spearman"] for one in document["curves"]]
            rows.append(_check(document, text, ranks, holds, digits=2))
    return markdown_table(("setting", "expected", "each seed", "so?"), rows) + ON_NORMS


ON_NORMS = """
Under SGD a class's weights grow by its gradients, so by its examples. Adam divides each gradient by its own size, and the norms lose the order: with ten
classes, a rank correlation of less than 0.65 in size cannot be told from none (5 %, two-sided), and its sign changes with the seed and with the
learning rate. That is why weight normalisation gains next to nothing there (`weight-norm-adam`), while post-hoc adjustment gains nearly as much as under SGD.
"""


def _check(
    document: Document,
    text: str,
    values: list[float],
    holds: Callable[[float], bool],
    *,
    digits: int = 1,
) -> list[str]:
    kept = sum(holds(value) for value in values)
    verdict = "yes" if kept == len(values) else f"**no**: {kept} of {len(values)}"
    return [title(document), text, ", ".join(f"{value:.{digits}f}" for value in values), verdict]


def beside_reference(documents: Sequence[Document]) -> str:
    """Ours less the independent implementation's, where it has figures."""
    rows = []
    for document in documents:
        theirs = REFERENCE.get(key(document), {})
        for name, reference in theirs.items():
            own = document["methods"].get(name)
            if own is None:
                continue
            ours = own["summary"]["balanced_error"]
            difference = 100 * ours["mean"] - reference
            gains = reference - theirs["erm"], 100 * own["against_erm"]["mean"]
            told = [f"{points:+.1f}" for points in (difference, *gains)]
            rows.append([title(document), name, f"{reference:.1f}", spread(ours), *told])
    return (
        f"Balanced error in percent of {REFERENCE_SOURCE}, which is not ours. Networks, augmentation and lengths differ, so the order and the gains over ERM\n"
        "should agree, not the digits.\n\n"
        + markdown_table(
            (
                "setting",
                "method",
                "theirs",
                f"ours ({ns(documents)})",
                "difference, points",
                "against ERM, theirs",
                "against ERM, ours",
            ),
            rows,
        )
    )


def details(document: Document, *, every: bool) -> str:
    """The whole table of one setting, and its figures."""
    shown = list(FIGURES)[: None if every else -1]
    pictures = "\n".join(
        f"![{FIGURES[name]}; {title(document)}](results/{slug(document)}-{name}.svg)\n\n"
        f"{FIGURES[name]} ({title(document)}, {sample(document)}).\n"
        for name in shown
    )
    return (
        f"### {title(document)[0].upper()}{title(document)[1:]}\n\n{markdown_table(HEADER, table_rows(document))}\n"
        f"{sample(document)}. “Served” is after the temperature of the validation split and the whole adjustment to a uniform target.\n\n{pictures}"
    )


def papers() -> str:
    """The paper's table."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in PAPER.items()]
    return f"Not measured here: {PAPER_SOURCE}, balanced error in percent.\n\n" + markdown_table(
        ["method (the paper's)", *(f"{name} (the paper's)" for name in PAPER_DATA)], rows
    )


def mean(document: Document, method: str) -> float:
    """Of a method's balanced error."""
    return float(document["methods"][method]["summary"]["balanced_error"]["mean"])


def spread(entry: Mapping[str, Any]) -> str:
    """'mean ± sd' in percent; the mean alone for one seed."""
    text = f"{100 * entry['mean']:.1f}"
    return text if entry["sd"] is None else f"{text} ± {100 * entry['sd']:.1f}"


def ns(documents: Sequence[Document]) -> str:
    """'n = 3', or each setting's n where they differ."""
    counts = [len(document["seeds"]) for document in documents]
    return f"n = {counts[0]}" if len(set(counts)) == 1 else f"n = {', '.join(map(str, counts))}"


def key(document: Document) -> tuple[int, float]:
    """(largest class, imbalance ratio)."""
    settings = document["settings"]
    return int(settings["max_per_class"]), float(settings["imbalance_ratio"])


def title(document: Document) -> str:
    """A setting's name for readers."""
    largest, ratio = key(document)
    return f"largest class {largest:,}, ratio {ratio:g}"


def slug(document: Document) -> str:
    """A setting's name for files."""
    largest, ratio = key(document)
    return f"exp{ratio:g}-{largest}"


if __name__ == "__main__":
    main()
