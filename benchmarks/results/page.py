r"""Writes docs/results.md and its figures from the results.json of finished comparisons.

None of our numbers is typed by hand.

    python -m benchmarks.results.page runs/exp100-5000 runs/exp1000-5000 runs/exp100-500 \
        --variants runs/variants.json --synthetic runs/synthetic

Each positional folder is the --out of a `training compare`. --variants names the file of
`benchmarks.results.variants`, and --synthetic the --out of a `training synthetic`. The script
writes DOCS/results.md and DOCS/results/*.svg.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.results import coverage, tables, thousand
from benchmarks.results.checks import beside_reference, expectations
from benchmarks.results.norms import norms_under_adam
from benchmarks.results.other_figures import PAPER, PAPER_DATA, PAPER_SOURCE
from benchmarks.results.synthetic_section import copy_figures, read, synthetic
from benchmarks.results.text import Document, mean, ns, slug, spread, title
from benchmarks.results.variant_tables import Row, concluded, on_weights, other_ways
from training.pages.page import markdown_table
from training.studies.methods import ADAM_RUN
from training.studies.report import HEADER, draw, sample, table_rows

FIGURES = {
    "classes": "Error by class, most frequent first",
    "tau": "Balanced error against τ, on test (solid) and on validation (dotted)",
    "groups": "Error of the many, medium and few classes",
    "norms": "Norms of the last layer's weights",
    "shifted": "Error of the ERM model on shifted test sets, by what is known of their class mix",
    "reliability": "Reliability at a uniform target",
}
"""The first folder gets all of these figures, the others all but the last."""
COMMON = (
    "network",
    "steps",
    "batch",
    "optimiser",
    "lr",
    "weight_decay",
    "schedule",
    "augment",
    "precision",
)


def main() -> None:
    """Read the folders, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folders", nargs="+", type=Path, help="folders that `training compare` wrote"
    )
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), help="the folder of results.md (default docs)"
    )
    parser.add_argument(
        "--variants", type=Path, help="the file that benchmarks.results.variants wrote"
    )
    parser.add_argument("--synthetic", type=Path, help="the folder that `training synthetic` wrote")
    options = parser.parse_args()
    documents = [
        json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for folder in options.folders
    ]
    rows = []
    if options.variants is not None:
        rows = json.loads(options.variants.read_text(encoding="utf-8"))
    place = options.docs / "results"
    place.mkdir(parents=True, exist_ok=True)
    for pattern in ("exp*.svg", "synthetic*.svg"):  # other scripts wrote the others
        for old in place.glob(pattern):
            old.unlink()
    for number, document in enumerate(documents):
        write_figures(document, place, every=number == 0)
    experiment = None
    if options.synthetic is not None:
        copy_figures(options.synthetic, place)
        experiment = read(options.synthetic)
    text = page(documents, rows, experiment)
    text = coverage.with_section(text, options.docs)
    text = tables.with_sections(text, options.docs)
    text = thousand.with_section(text, options.docs)
    (options.docs / "results.md").write_text(text, encoding="utf-8")


def write_figures(document: Document, place: Path, *, every: bool) -> None:
    """Write the SVG files of one setting, on white so that they are readable on a dark page."""
    drawn = draw(document)
    for name in list(FIGURES)[: None if every else -1]:
        text = drawn[name].replace("<svg ", '<svg style="background:#fff" ', 1)
        (place / f"{slug(document)}-{name}.svg").write_text(text + "\n", encoding="utf-8")


def page(
    documents: Sequence[Document], rows: Sequence[Row] = (), experiment: Document | None = None
) -> str:
    """The whole text of results.md."""
    parts = [
        INTRODUCTION,
        "## What was run\n",
        runs(documents),
        "## Balanced error of every method\n",
        overview(documents),
        on_weights(documents, rows),
        "## What was expected, and what was found\n",
        expectations(documents, rows),
        "## Weight norms by optimiser\n",
        norms_under_adam(documents, rows),
        "## Compared with an independent implementation\n",
        beside_reference(documents),
        *([EXPLAINED, other_ways(documents, rows), concluded(documents, rows)] if rows else []),
        *([] if experiment is None else ["## The synthetic experiment\n", synthetic(experiment)]),
        "## Each setting\n",
        *(details(document, every=number == 0) for number, document in enumerate(documents)),
        "## The paper's numbers, on data sets that were not available\n",
        papers(),
    ]
    return "\n".join(parts)


INTRODUCTION = """# Results

`python -m benchmarks.results.page` writes this page from the results of `training compare`,
`training synthetic` and `python -m benchmarks.results.variants`. Edit that program, not this page.

Every method of [methods](methods.md) was trained and scored on long-tailed Fashion-MNIST. CIFAR-LT,
ImageNet-LT and iNaturalist were not available: the last section quotes the paper's figures for
them. “A thousand classes” uses pictures of letters in many fonts.
"""


EXPLAINED = """
To find what causes the differences, the methods that differ were also run in other ways, on the
same seeds (`python -m benchmarks.results.variants`):
"""


def runs(documents: Sequence[Document]) -> str:
    """Data, settings and commands."""
    rows = []
    for document in documents:
        n, counts = document["data"]["n"], document["data"]["class_counts"]
        sizes = [f"{n[split]:,}" for split in ("train", "val", "test")]
        listed = ", ".join(f"{count:,}" for count in counts)
        rows.append([title(document), *sizes, str(len(document["seeds"])), listed])
    header = (
        "setting",
        "training examples",
        "validation",
        "test",
        "seeds",
        "training examples by class",
    )
    shared = {key: documents[0]["settings"][key] for key in COMMON}
    adam = documents[0]["settings"][ADAM_RUN]
    reported = ", ".join(f"{key} {value}" for key, value in shared.items())
    commands = "".join(f"    {command(document)}\n" for document in documents)
    commands += (
        "    python -m benchmarks.results.variants runs/variants.json "
        "--compared runs/exp100-5000 runs/exp1000-5000\n"
    )
    return (
        markdown_table(header, rows)
        + "\nThe training examples follow an exponential profile. The validation split is "
        "balanced and is set aside before the profile is\n"
        f"applied. Every run has the settings {reported}.\n"
        "`erm-adam` is trained by AdamW without weight decay, with learning rate "
        f"{adam['lr']:g} and β₂ {adam['adam_beta2']:g}. The temperature, and every τ "
        "that is “chosen”, are chosen on validation.\n"
        f"The median run took {seconds(documents):.0f} s on one thread of a machine that did other "
        f"work as well.\n\n{commands}"
    )


def command(document: Document) -> str:
    """The shell command that creates a folder of results."""
    settings = document["settings"]
    return (
        f"training compare --recipe fashion-compare --methods all --seeds {len(document['seeds'])}"
        f" --imbalance-ratio {settings['imbalance_ratio']:g} --max-per-class "
        f"{settings['max_per_class']}"
        f" --threads 1 --out runs/{slug(document)}"
    )


def seconds(documents: Sequence[Document]) -> float:
    """The median duration of a run, in seconds."""
    each = sorted(
        score["seconds"]
        for document in documents
        for method in document["methods"].values()
        for score in method["seeds"].values()
    )
    return float(each[len(each) // 2])


def overview(documents: Sequence[Document]) -> str:
    """The table of methods by settings: mean and sd of the balanced error, and the difference to
    ERM.

    The best mean of a setting is bold.
    """
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
        + "\nBalanced error in percent: mean ± standard deviation over the seeds "
        f"({ns(documents)}), on {documents[0]['data']['n']['test']:,} test examples. In "
        "brackets is the difference to ERM in points, paired by seed; the tables of each setting\n"
        "below give its interval. The lowest mean of a setting is bold.\n"
    )


def details(document: Document, *, every: bool) -> str:
    """The full table of one setting, and its figures."""
    shown = list(FIGURES)[: None if every else -1]
    pictures = "\n".join(
        f"![{FIGURES[name]}; {title(document)}](results/{slug(document)}-{name}.svg)\n\n"
        f"{FIGURES[name]} ({title(document)}, {sample(document)}).\n"
        for name in shown
    )
    return (
        "### "
        f"{title(document)[0].upper()}{title(document)[1:]}\n\n"
        f"{markdown_table(HEADER, table_rows(document))}\n"
        f"{sample(document)}. “Served” figures are those of the answers that the service would "
        "give: calibrated by the temperature\n"
        f"of validation, and adjusted to a uniform target.\n\n{pictures}"
    )


def papers() -> str:
    """The paper's table."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in PAPER.items()]
    return f"Not measured here: {PAPER_SOURCE}, balanced error in percent.\n\n" + markdown_table(
        ["method (the paper's)", *(f"{name} (the paper's)" for name in PAPER_DATA)], rows
    )


if __name__ == "__main__":
    main()
