"""Reads the prose of a Markdown page as sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

ENDS = re.compile(r"(?<=[.!?])[\"”)*_]*\s+(?=[\"“(*_`\[]*[A-ZÄÖÜτσρπ0-9`…])")
ABBREVIATIONS = ("et al.", "e.g.", "i.e.", "vs.", "eq.", "Fig.")
ITEM = re.compile(r"^\s*(?:[*+-]|\d+\.)\s+")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Every sentence of a page with the line on which its paragraph begins.

    Code is left out. A heading, a list item and a cell of a table are paragraphs of their own.
    Inline code counts as one word.
    """
    for line, paragraph in _paragraphs(text):
        plain = re.sub(r"`+[^`]+`+", "`x`", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        for abbreviation in ABBREVIATIONS:
            plain = plain.replace(abbreviation, abbreviation.rstrip("."))
        for sentence in ENDS.split(plain):
            yield line, sentence.strip()


def words(sentence: str) -> int:
    """The number of words; punctuation on its own is none."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def too_long(page: Path, most: int) -> list[str]:
    """The sentences of a page with more than `most` words, with their places."""
    return [
        f"{page.name}:{line} has {words(sentence)} words: {sentence}"
        for line, sentence in sentences(page.read_text(encoding="utf-8"))
        if words(sentence) > most
    ]


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    text = re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    gathered: list[str] = []
    start, fenced, indented, blank = 0, False, False, True
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""  # noqa: PLW2901 - a fence ends a paragraph
        indented = line.startswith("    ") and (
            indented or (blank and not gathered and not ITEM.match(line))
        )
        code = fenced or indented
        separate = line.startswith(("#", "|")) or bool(ITEM.match(line))
        if (not line.strip() or code or separate) and gathered:
            yield start, " ".join(gathered)
            gathered = []
        blank = not line.strip()
        if not line.strip() or code:
            continue
        if line.startswith("|"):
            yield from ((number, cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        elif line.startswith("#"):
            yield number, line.lstrip("# ")
        else:
            if not gathered:
                start = number
            gathered.append(ITEM.sub("", line).strip())
