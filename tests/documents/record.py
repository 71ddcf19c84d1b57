"""Writes what the examples of pages print into the pages: `python -m tests.documents.record PAGE …`."""

import sys
import tempfile
from pathlib import Path

from tests.documents.blocks import RUN, Desk, blocks_of, differences, examples_of, wrapped
from tests.documents.test_examples import make_desk
from tests.support.server import running


def record(page: Path) -> int:
    """Run the examples of a page and replace the outputs that differ; the number replaced."""
    replaced = 0
    with tempfile.TemporaryDirectory() as folder:
        desk: Desk = make_desk(Path(folder))
        store = f"sqlite:///{folder}/priordial.db"
        with running(desk.folder / "models", default_model="fashion", store=store) as server:
            desk.address = server.url.removeprefix("http://")
            text = page.read_text(encoding="utf-8")
            for block in blocks_of(page):
                if block.language not in RUN or block.not_run:
                    continue
                for example in examples_of(block):
                    printed = desk.run(example, block.language)
                    if not differences(example.expected, printed):
                        continue
                    replaced += 1
                    if block.language == "python":
                        print(f"{block.place} prints:\n{printed}")
                        continue
                    text = _with_output(text, example, wrapped(printed))
            page.write_text(text, encoding="utf-8")
    return replaced


def _with_output(text: str, example, printed: str) -> str:
    first, *rest = example.command.splitlines()
    lines = text.splitlines()
    start = lines.index(f"$ {first}") + 1 + len(rest)
    end = start + len(example.expected.splitlines())
    return "\n".join([*lines[:start], *printed.splitlines(), *lines[end:]]) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, record(Path(name).resolve()), "outputs replaced")
