"""Writes a set of texts in 58 classes with a long tail: descriptions of Debian's packages.

python -m benchmarks.sets.section_data FOLDER [--seed 0]

The class of a description is the section of its package. Of those that apt knows, 18,043 are drawn:
7,641 to learn from, 5,094 to calibrate on and 5,308 to test, each class in these proportions, so
that all three splits have the same long tail. The rarest class has about two rows to learn from and
one to calibrate on. FOLDER/sections-text.npz holds the texts, and FOLDER/sections-numbers.npz has
64 numbers a text: the largest components of its tf-idf, fitted on the rows to learn from.

FOLDER/sections-text-broken.npz and FOLDER/sections-numbers-broken.npz hold rows of no class, for
`benchmarks.results.alarms --broken`: German manual pages, entries of changelogs, Python source,
random letters, and for the numbers also noise and rows whose numbers come from different texts.
"""

import argparse
import gzip
import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sets.people_data import changelogs, plain
from benchmarks.sets.unseen_data import sections

TRAIN, VALIDATION, TEST = 7_641, 5_094, 5_308
CLASSES = 58
NUMBERS = 64
BROKEN = 1_000
"""The most rows of each kind that are of no class."""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    texts, labels = drawn(options.seed)
    parts = divided(labels[1], options.seed)
    rows = {part: texts[own] for part, own in parts.items()}
    targets = {f"y_{part}": labels[0][labels[1][own]] for part, own in parts.items()}
    others = broken(texts, np.random.default_rng(options.seed))
    reduced = components(rows["train"])
    vectors = {part: _vectors(reduced, own) for part, own in rows.items()}
    strange = {kind: _vectors(reduced, own) for kind, own in others.items()}
    strange |= broken_numbers(vectors["test"], np.random.default_rng(options.seed))
    for kind, split, odd in (("text", rows, others), ("numbers", vectors, strange)):
        written = {f"x_{part}": own for part, own in split.items()}
        np.savez_compressed(options.folder / f"sections-{kind}.npz", **written, **targets)
        np.savez_compressed(options.folder / f"sections-{kind}-broken.npz", **odd)
    for part, own in parts.items():
        counts = np.bincount(labels[1][own], minlength=len(labels[0]))
        print(f"{part}: {len(own):,} rows, {len(counts)} classes, {counts.min()} in the rarest")


def drawn(seed: int) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[np.intp]]]:
    """Texts [N], each once, and their classes: the names [C] and the labels [N].

    Where apt knows more sections, the CLASSES with the most texts are kept.
    """
    once = {text: section for text, section in sections() if len(text) >= 20}
    names, labels = np.unique(list(once.values()), return_inverse=True)
    most = np.sort(np.argsort(-np.bincount(labels), kind="stable")[:CLASSES])
    kept = np.flatnonzero(np.isin(labels, most))
    chosen = np.random.default_rng(seed).permutation(kept)[: TRAIN + VALIDATION + TEST]
    found = np.searchsorted(most, labels[chosen])
    return np.array(list(once))[chosen], (names[most], found)


def divided(labels: NDArray[np.intp], seed: int) -> dict[str, NDArray[np.intp]]:
    """The rows of each split: of each class, the same shares, and at least one row where it can."""
    shares = np.array([TRAIN, VALIDATION, TEST]) / (TRAIN + VALIDATION + TEST)
    rng = np.random.default_rng([seed, 1])
    found: dict[str, list[NDArray[np.intp]]] = {"train": [], "val": [], "test": []}
    for label in range(int(labels.max()) + 1):
        own = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.maximum(np.round(np.cumsum(shares)[:2] * len(own)).astype(int), [1, 2])
        for part, rows in zip(found.values(), np.split(own, cuts), strict=True):
            part.append(rows)
    return {part: rng.permutation(np.concatenate(own)) for part, own in found.items()}


def broken(texts: NDArray[Any], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Texts of no class, by kind. Their lengths are those of random `texts` [N]."""
    pages = []
    for file in sorted(Path("/usr/share/man/de").glob("man*/*.gz")):
        with gzip.open(file, "rt", errors="replace") as page:
            text = re.sub(r"^[.'].*$", "", page.read(100_000), flags=re.MULTILINE)
        pages.append(plain(re.sub(r"\\f.|\\", "", text), 20_000))
    sources = [
        plain(file.read_text(encoding="utf-8", errors="replace"), 20_000)
        for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ]
    letters = list("abcdefghijklmnopqrstuvwxyz     ")
    found = {
        "German": pages,
        "changelogs": [entry for entry, _ in changelogs()],
        "source": sources,
        "letters": ["".join(rng.choice(letters, 400)) for _ in range(BROKEN)],
    }
    pieces: dict[str, NDArray[Any]] = {}
    for kind, own in found.items():
        long = [text for text in own if len(text) >= 100]
        some = []
        for text in (long[i] for i in rng.integers(len(long), size=BROKEN)):
            length = len(texts[rng.integers(len(texts))])
            start = rng.integers(max(1, len(text) - length))
            some.append(text[start : start + length].strip() or "-")
        pieces[kind] = np.array(some)
    return pieces


def broken_numbers(
    vectors: NDArray[np.float32], rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Rows of no class, by kind, made from vectors [n, NUMBERS]."""
    noise = rng.normal(vectors.mean(axis=0), vectors.std(axis=0), (BROKEN, vectors.shape[1]))
    mixed = rng.permuted(vectors, axis=0)[:BROKEN]
    return {"noise": noise.astype(np.float32), "mixed rows": mixed}


def components(texts: NDArray[Any]) -> Any:
    """scikit-learn's tf-idf and the NUMBERS largest components of it, fitted to texts [n]."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(min_df=2, sublinear_tf=True), TruncatedSVD(NUMBERS, random_state=0)
    ).fit(texts)


def _vectors(reduced: Any, texts: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = reduced.transform(texts).astype(np.float32)
    return found


if __name__ == "__main__":
    main()
