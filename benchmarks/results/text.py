"""Helpers that the parts of docs/results.md share: numbers and settings in readable form."""

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
"""The object of a results.json."""


def mean(document: Document, method: str) -> float:
    """The mean balanced error of a method."""
    return float(document["methods"][method]["summary"]["balanced_error"]["mean"])


def spread(entry: Mapping[str, Any]) -> str:
    """'mean ± sd' in percent; only the mean for one seed."""
    text = f"{100 * entry['mean']:.1f}"
    return text if entry["sd"] is None else f"{text} ± {100 * entry['sd']:.1f}"


def ns(documents: Sequence[Document]) -> str:
    """'n = 3', or the n of each setting where they differ."""
    counts = [len(document["seeds"]) for document in documents]
    return f"n = {counts[0]}" if len(set(counts)) == 1 else f"n = {', '.join(map(str, counts))}"


def key(document: Document) -> tuple[int, float]:
    """The key of a setting: (largest class, imbalance ratio)."""
    settings = document["settings"]
    return int(settings["max_per_class"]), float(settings["imbalance_ratio"])


def title(document: Document) -> str:
    """The name of a setting, for readers."""
    return named(*key(document))


def named(largest: int, ratio: float) -> str:
    """The name of a setting, for readers, from its largest class and imbalance ratio."""
    return f"largest class {largest:,}, ratio {ratio:g}"


def slug(document: Document) -> str:
    """The name of a setting, for file names."""
    largest, ratio = key(document)
    return f"exp{ratio:g}-{largest}"


def spliced(page: str, heading: str, section: str, *, before: str) -> str:
    """The page with a section under "## heading" put in place of the one there is.

    Without one, it is put in front of the heading that begins with `before`.
    """
    start = page.find(f"\n## {heading}\n")
    if start >= 0:
        end = page.find("\n## ", start + 4)
        rest = page[end:] if end >= 0 else ""
    else:
        start = page.index(f"\n## {before}")
        rest = page[start:]
    return f"{page[:start]}\n## {heading}\n\n{section.strip()}\n{rest}"
