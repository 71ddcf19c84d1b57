"""Records what examples print: `python -m tests.documents.record PAGE …` writes it into pages."""

import re
import sys
import tempfile
from pathlib import Path

from tests.documents.blocks import RUN, Desk, blocks_of, differences, examples_of, wrapped
from tests.documents.test_examples import make_desk, served


def record(page: Path) -> int:
    """Run the examples of a page and replace the outputs that differ; the number replaced."""
    replaced = 0
    with tempfile.TemporaryDirectory() as folder:
        desk: Desk = make_desk(Path(folder))
        with served(desk):
            text = page.read_text(encoding="utf-8")
            for block in blocks_of(page):
                if block.language not in RUN or block.not_run:
                    continue
                for example in examples_of(block):
                    printed = desk.run(example, block.language)
                    if not differences(example.expected, printed, numbers_vary=block.numbers_vary):
                        continue
                    replaced += 1
                    if block.language == "python":
                        print(f"{block.place} prints:\n{printed}")
                        continue
                    text = _with_output(text, example, wrapped(printed))
            page.write_text(text, encoding="utf-8")
    return replaced


def _with_output(text: str, example, printed: str) -> str:
    """The page with the output of this example replaced, found by all lines of the command."""
    lines = text.splitlines()
    command = [re.sub(r"^[$>] ", "", line) for line in lines]
    typed = example.command.splitlines()
    start = next(
        i + len(typed)
        for i in range(len(lines))
        if lines[i].startswith("$ ") and command[i : i + len(typed)] == typed
    )
    end = start + len(example.expected.splitlines())
    return "\n".join([*lines[:start], *printed.splitlines(), *lines[end:]]) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, record(Path(name).resolve()), "outputs replaced")
