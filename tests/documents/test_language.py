"""README and docs are in short sentences, and name only what exists."""

import re
import subprocess

import pytest

from tests.documents.blocks import ROOT
from tests.documents.prose import sentences, too_long, words

MOST_WORDS = 35
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "DECISIONS.md",
    ROOT / "models/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TURNS_OF_PHRASE = ("is told of", "has not got", "come to pass", "served no more", "made no end")
LOGGERS = {"service/audit"}


def _id(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_no_sentence_is_longer_than_35_words(page):
    found = too_long(page, MOST_WORDS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!\nThree?", ["One.", "Two!", "Three?"]),
        ("# Head\n\nA sentence\nof two lines.", ["Head", "A sentence of two lines."]),
        ("* First.\n* Second, which\n  goes on.", ["First.", "Second, which goes on."]),
        ("| a b | c |\n| --- | --- |", ["a b", "c", "---", "---"]),
        ("Text.\n\n    code is. Left out\n\n```\nso is. This\n```\nMore.", ["Text.", "More."]),
        ("As Menon et al. say, `a.b` is 1.5. Yes.", ["As Menon et al say, `x` is 1.5.", "Yes."]),
    ],
)
def test_a_page_is_split_into_sentences(text, expected):
    assert [sentence for _, sentence in sentences(text)] == expected


def test_punctuation_on_its_own_is_no_word():
    assert words("z = f/T + τ · `x`") == 4


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_the_page_has_no_turn_of_phrase_that_was_translated(page):
    text = page.read_text(encoding="utf-8")
    assert [phrase for phrase in TURNS_OF_PHRASE if phrase in text] == []


def _tracked():
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in found.stdout.split("\0") if name and (ROOT / name).exists()}


def _paths(text):
    """Paths of this project in backquotes or after `python -m`."""
    folders = "service|training|benchmarks|tests|docs|deploy|models|examples|priordial"
    for path in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text):
        if not re.search(r"[A-Z]{4}", path):  # a placeholder, such as NAME
            yield path.rstrip("/")
    for path in re.findall(r"python (benchmarks/[\w/]+\.py)", text):
        yield path
    for module in re.findall(r"(?:python -m |`)((?:service|training|benchmarks)(?:\.\w+)+)", text):
        yield module.replace(".", "/")


def _exists(path, tracked):
    pattern = re.compile(re.escape(path).replace(r"\*", "[^/]*"))
    names = tracked | {name.rsplit(".", 1)[0] for name in tracked}
    folders = {"/".join(name.split("/")[:i]) for name in tracked for i in range(1, 6)}
    parts = path.split("/")
    return any(pattern.fullmatch(name) for name in names | folders) or (
        "/".join(parts[:-1]) in names | folders  # an attribute of a module or package
    )


@pytest.mark.parametrize("page", [*PAGES, ROOT / "DECISIONS.md"], ids=_id)
def test_the_page_names_only_files_and_modules_that_exist(page):
    tracked = _tracked()
    named = set(_paths(page.read_text(encoding="utf-8"))) - LOGGERS
    assert sorted(path for path in named if not _exists(path, tracked)) == []


def test_no_file_points_to_a_section_of_a_document_that_is_not_here():
    found = subprocess.run(
        [
            "git",
            "grep",
            "-lniE",
            "contract,? (section|§)",
            "--",
            "*.py",
            "*.md",
            ":!tests/documents",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
