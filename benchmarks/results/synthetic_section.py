"""The part of docs/results.md on the synthetic experiment.

It reads the folder that `training synthetic` writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.pages.page import markdown_table, percent

EXPECTED = {
    "erm": 18.1,
    "adaptive": 16.2,
    "equalised": 8.73,
    "logit-adjusted": 7.881,
    "post-hoc": 7.881,
}
"""Balanced errors in percent of the independent reproduction, at 10,000 training points."""
FIGURES = {
    "errors": "Balanced error of each loss above Bayes' over the trials, logarithmic "
    "(paper, Fig. 2 left)",
    "separators": "Mean separators (paper, Fig. 2 middle)",
    "tau": "Balanced error against τ (paper, Fig. 2 right)",
}


def synthetic(document: Mapping[str, Any]) -> str:
    """The section: a table, the figures, and the finding on weight normalisation."""
    rows = [
        [
            name,
            f"{percent(found['mean'], digits=2)} ± {percent(found['sd'], digits=2)}",
            percent(found["mean"] - document["bayes"], digits=2),
            f"{EXPECTED[name]:g}" if name in EXPECTED else "–",
        ]
        for name, found in document["balanced_error"].items()
    ]
    sweep, norms = dict(document["tau_sweep"]), dict(document["weight_norm"]["tau_sweep"])
    taus = ", ".join(f"{percent(sweep[tau])} at τ = {tau:g}" for tau in (0.0, 0.5, 1.0, 1.5, 2.0))
    negative = document["weight_norm"]["negative_share"]
    sample = f"n = {document['n_train']:,} training points a trial, {document['trials']} trials"
    header = ("method", "balanced error, %", "above Bayes, points", "independent reproduction, %")
    pictures = "\n".join(
        f"![{text}](results/synthetic-{name}.svg)\n\n{text}; {sample}.\n"
        for name, text in FIGURES.items()
    )
    return (
        "    training synthetic --out runs/synthetic\n\n"
        "The two classes are Gaussians around (1, 1) and (−1, −1), 5 % of the points are positive, "
        "and the classifiers are affine.\n"
        "Errors are exact: that of a half-space has a closed form. The table has mean ± standard "
        f"deviation over the trials ({sample}).\n"
        f"The Bayes error is {percent(document['bayes'], digits=3)} %.\n\n"
        + markdown_table(header, rows)
        + f"\nThe balanced error of post-hoc adjustment, in percent, is {taus}. Weight "
        "normalisation of two\n"
        f"weight vectors that start at random gives {percent(norms[0.0])} at τ = 0 and "
        f"{percent(norms[3.0])} at τ = 3. It cannot help: of the rare class's points,\n"
        f"{percent(negative['rare'], digits=0)} % have a negative logit for their own class, and "
        "no division by a positive number makes that the largest.\n\n" + pictures
    )


def copy_figures(folder: Path, place: Path) -> None:
    """Copy the SVG files, with a white background."""
    for name in FIGURES:
        text = (folder / f"{name}.svg").read_text(encoding="utf-8")
        text = text.replace("<svg ", '<svg style="background:#fff" ', 1)
        (place / f"synthetic-{name}.svg").write_text(text, encoding="utf-8")


def read(folder: Path) -> Mapping[str, Any]:
    """The content of the folder's results.json."""
    found: Mapping[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found
