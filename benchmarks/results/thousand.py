"""The section of docs/results.md on a set of images with over a thousand classes.

python -m benchmarks.sets.glyphs FONTS SET
training compare --data list:SET/train.txt,SET/val.txt,SET/test.txt@SET/images --color L \
    --image-size 32 --network benchmarks.sets.glyph_network:residual --steps 2000 --batch 128 \
    --lr 0.1 --methods "erm,post-hoc τ=1,post-hoc τ chosen,weight-norm τ=1,\
    weight-norm τ chosen,logit-adjusted,ldam-drw" --seeds 3 --threads 1 --out RUNS
python -m benchmarks.results.thousand RUNS
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.text import Document, spliced
from training.pages.page import markdown_table
from training.studies.report import HEADER, draw, table_rows

HEADING = "A thousand classes"
FILE = "thousand.json"
FIGURES = {
    "tau": "Balanced error against τ, on test (solid) and on validation (dotted)",
    "groups": "Error of the many, medium and few classes",
}


def kept(document: Document) -> dict[str, Any]:
    """The parts of a results.json of `training compare` that the section shows."""
    counts = np.array(document["data"]["class_counts"])
    seconds = [
        one["seconds"] for method in document["methods"].values()
        for one in method["seeds"].values()
    ]  # fmt: skip
    settings = document["settings"]
    return {
        "classes": len(counts),
        "counts": [int(counts.max()), int(np.median(counts)), int(counts.min())],
        "groups": [
            int((counts > 100).sum()),
            int(((counts >= 20) & (counts <= 100)).sum()),
            int((counts < 20).sum()),
        ],
        "n": document["data"]["n"],
        "seeds": len(document["seeds"]),
        "longest_seconds": max(seconds),
        "steps": settings["steps"],
        "batch": settings["batch"],
        "lr": settings["lr"],
        "table": table_rows(document),
        "spearman": document["curves"][0]["norms"]["SGD"]["spearman"],
    }


def section(found: dict[str, Any]) -> str:
    """The section's Markdown."""
    largest, median, smallest = found["counts"]
    many, medium, few = found["groups"]
    n = found["n"]
    passes = found["steps"] * found["batch"] / n["train"]
    lines = [
        (
            "Each letter is a class, and each font family that has it gives one example "
            f"(`python -m benchmarks.sets.glyphs`). The {found['classes']:,} classes have "
            f"{largest} to {smallest} training examples, with a median of {median}. The fonts make "
            f"the long tail; no profile is applied. {many} classes have more than 100 examples "
            f"(“many”), {medium} have 20 to 100 (“medium”) and {few} have fewer (“few”)."
        ),
        "",
        (
            f"Training has {n['train']:,} pictures of 32 × 32 pixels in grey. Validation has "
            f"{n['val']:,}, one a class, and test {n['test']:,}, three a class. The network has "
            "three residual blocks (`benchmarks.sets.glyph_network:residual`)."
        ),
        "",
        (
            f"Each run takes {found['steps']:,} steps of {found['batch']} pictures, or "
            f"{passes:.1f} epochs, at learning rate {found['lr']:g}. It takes at most "
            f"{found['longest_seconds']:.0f} s on one thread. Such short runs end before the "
            "network has converged: they compare the methods, and longer ones may reach lower "
            "errors."
        ),
        "",
        markdown_table(HEADER, found["table"]),
        "",
        (
            f"Mean ± standard deviation over n = {found['seeds']} seeds. The difference to ERM is "
            "paired by seed, with a 95 % t interval. Temperature and τ are chosen on validation."
        ),
        "",
        f"Rank correlation of ‖w_y‖ and n_y under ERM, first seed: {found['spearman']:+.2f}.",
        "",
        *(f"![{text}](results/thousand-{name}.svg)\n" for name, text in FIGURES.items()),
    ]
    return "\n".join(lines)


def with_section(page: str, docs: Path) -> str:
    """The page with the section in place, where DOCS/results has its figures' file."""
    file = docs / "results" / FILE
    if not file.exists():
        return page
    found = json.loads(file.read_text(encoding="utf-8"))
    return spliced(page, HEADING, section(found), before="Each setting")


def main() -> None:
    """Save the shown parts of a comparison, draw its figures, and put the section into the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of the comparison")
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), help="the folder of results.md (default docs)"
    )
    options = parser.parse_args()
    document = json.loads((options.folder / "results.json").read_text(encoding="utf-8"))
    place = options.docs / "results"
    text = json.dumps(kept(document), indent=1, ensure_ascii=False) + "\n"
    (place / FILE).write_text(text, encoding="utf-8")
    drawn = draw(document)
    for name in FIGURES:
        white = drawn[name].replace("<svg ", '<svg style="background:#fff" ', 1)
        (place / f"thousand-{name}.svg").write_text(white + "\n", encoding="utf-8")
    page = options.docs / "results.md"
    page.write_text(with_section(page.read_text(encoding="utf-8"), options.docs), encoding="utf-8")


if __name__ == "__main__":
    main()
