"""Runs the cells of notebooks; `python -m tests.documents.notebooks` records what they print."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.documents.blocks import ROOT
from tests.documents.test_examples import make_desk, served

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MARK = "\x1e"
"""Stands between the outputs of two cells."""


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a notebook that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stored(cell: dict[str, Any]) -> str:
    """What a cell printed when its notebook was recorded."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def run(notebook: dict[str, Any], *, folder: Path, url: str) -> list[str]:
    """Run the code cells in one process, in order; returns what each prints."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    program = f"\nprint({MARK!r}, end='')\n".join(sources)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PRIORDIAL_URL": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(MARK)


def main() -> None:
    """Write into every notebook what its cells print."""
    with tempfile.TemporaryDirectory() as name:
        desk = make_desk(Path(name))
        with served(desk) as server:
            for path in NOTEBOOKS:
                notebook = json.loads(path.read_text(encoding="utf-8"))
                printed = run(notebook, folder=desk.folder, url=server.url)
                for number, (cell, text) in enumerate(
                    zip(code_cells(notebook), printed, strict=True), 1
                ):
                    cell["execution_count"] = number
                    cell["outputs"] = [
                        {
                            "name": "stdout",
                            "output_type": "stream",
                            "text": text.splitlines(keepends=True),
                        }
                    ] * bool(text)
                path.write_text(
                    json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
                )


if __name__ == "__main__":
    main()
