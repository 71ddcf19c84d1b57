"""Commands that the documents show but that are not run have verbs and flags that exist."""

import re
import shlex

import pytest

from priordial.completion import subcommands
from service.__main__ import make_parser as service_parser
from tests.documents.blocks import ROOT, blocks_of
from training.commands.cli import make_parser as training_parser

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "models/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAM = re.compile(
    r"(?:\.venv/bin/)?(?:python3? -m )?(priordial train|priordial|training|service) (?=[a-z])"
)


def shown(page):
    """The commands of indented lines and of blocks that are not run, continuations joined."""
    lines = page.read_text(encoding="utf-8").splitlines()
    texts = ["\n".join(line[4:] for line in lines if line.startswith("    "))]
    texts += [block.text.replace("\n$ ", "\n") for block in blocks_of(page) if block.not_run]
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            if match := PROGRAM.match(line.strip().removeprefix("$ ")):
                typed = line.strip().removeprefix("$ ")[match.end() :]
                words = shlex.split(re.split(r"[|>;]|&&", typed)[0], comments=True)
                yield match[1], words


def test_commands_are_found_in_the_documents():
    assert sum(len([*shown(page)]) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_is_not_run_is_one_that_the_program_takes(page, capsys):
    training, service = training_parser("training"), service_parser("priordial")
    wrong = []
    for program, words in shown(page):
        parser, given = service, words
        if program in ("training", "priordial train"):
            parser = training
        elif words[0] == "train":
            parser, given = training, words[1:]
        elif words[0] == "score":
            parser, given = subcommands(training)["score"], words[1:]
        elif words[0] in ("demo", "completion"):
            continue
        if "…" in words or any(word.startswith("[") for word in given):
            continue  # a form, not a command
        try:
            parser.parse_args(given)
        except SystemExit as left:
            if left.code:
                wrong.append(f"{program} {shlex.join(words)}\n{capsys.readouterr().err[-300:]}")
    assert not wrong, "\n".join(wrong)
