"""Reads the fenced blocks of a page, runs its examples, and compares what they print."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:8000"
"""The address of the service in the pages; examples are run against the port of a test server."""
GRPC_ADDRESS = "127.0.0.1:8001"
"""The address of its gRPC front in the pages."""
RUN = ("console", "python")
"""Languages of the blocks that are run."""
NUMBER = r"-?\d+\.\d{3,}(?:e[-+]?\d+)?"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str
    """Why the block is not run, from a comment `<!-- not run: … -->` right above it; else empty."""
    numbers_vary: bool = False
    """Whether any number will do, from a comment `<!-- numbers vary -->` right above the block."""

    @property
    def place(self) -> str:
        """Where the block is, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Example:
    """A command as typed, and what the page prints below it."""

    command: str
    expected: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, fence, start, above = [], None, 0, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if fence is None and line.startswith("```"):
            fence, start = line[3:].strip(), number
            above = lines[number - 2].strip() if number > 1 else ""
        elif fence is not None and line.startswith("```"):
            why = re.match(r"<!-- not run: (.+) -->$", above)
            text = "\n".join(lines[start : number - 1])
            vary = above == "<!-- numbers vary -->"
            found.append(Block(page, start, fence, text, why[1] if why else "", vary))
            fence = None
    return found


def examples_of(block: Block) -> list[Example]:
    """The commands of a console block with their outputs; a Python block is one command."""
    if block.language == "python":
        expected = re.findall(r"print\(.*\)  # (.*)$", block.text, re.MULTILINE)
        return [Example(block.text, "\n".join(expected))]
    examples: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        command = examples[-1][0] if examples else []
        output = examples[-1][1] if examples else []
        if line.startswith("$ "):
            examples.append(([line[2:]], []))
        elif line.startswith("> ") or (command and command[-1].endswith("\\") and not output):
            command.append(line.removeprefix("> "))
        else:
            output.append(line)
    return [Example("\n".join(command), "\n".join(output)) for command, output in examples]


def differences(expected: str, printed: str, *, numbers_vary: bool = False) -> str:
    """How `printed` differs from the page's output; empty when it does not.

    Spaces and line breaks do not count. `…` stands for any text. Numbers with three or more
    decimals may differ by 1e-4, since processors round differently. With numbers_vary any
    number is as good as another.
    """
    wanted, got = ("".join(text.split()) for text in (expected, printed))
    if numbers_vary:
        wanted, got = (re.sub(r"[\d.,]*\d", "0", text) for text in (wanted, got))
    parts = re.split(rf"(…|{NUMBER})", wanted)
    pattern = "".join(
        ".*?" if part == "…" else f"({NUMBER}|-?\\d+\\.\\d+)" if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, got, re.DOTALL)
    if match is None:
        return f"the page says:\n{expected}\n\nthe command printed:\n{printed}"
    numbers = [part for i, part in enumerate(parts) if i % 2 and part != "…"]
    for wanted_number, number in zip(numbers, match.groups(), strict=True):
        if abs(float(wanted_number) - float(number)) > TOLERANCE:
            return f"the page says {wanted_number}, the command printed {number}"
    return ""


class Desk:
    """A folder like a fresh checkout, in which the commands of a page are typed.

    A folder that already holds models is used unchanged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ADDRESS
        self.grpc_address = GRPC_ADDRESS
        for name in ("models", "examples"):
            if not (folder / name).exists():
                shutil.copytree(ROOT / name, folder / name)
        programs = folder / ".venv/bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name in ("priordial", "service", "training"):
            self._program(programs / name, f'{sys.executable} -m {name} "$@"')
        self._program(programs / "python", f'{sys.executable} "$@"')

    def run(self, example: Example, language: str) -> str:
        """What a command prints on stdout and stderr, with the address of the pages."""
        command = example.command.replace(ADDRESS, self.address)
        command = command.replace(GRPC_ADDRESS, self.grpc_address)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
        done = subprocess.run(
            [sys.executable, "-c", command] if language == "python" else ["bash", "-c", command],
            cwd=self.folder,
            env={
                **kept,
                "PATH": f"{self.folder}/.venv/bin:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PRIORDIAL_URL": f"http://{self.address}",
                "COLUMNS": "100",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0 or language != "python", done.stdout
        return done.stdout.replace(self.address, ADDRESS).replace("\r", "")

    @staticmethod
    def _program(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\nexec {line}\n", encoding="utf-8")
        path.chmod(0o755)


def wrapped(printed: str, width: int = 92) -> str:
    """Output for a page: long lines of JSON are broken behind commas."""
    lines = []
    for line in printed.rstrip("\n").splitlines():
        try:
            json.loads(line)
        except ValueError:
            lines.append(line)
            continue
        spaced = re.sub(r",(?=[\"{\[])", ", ", line)
        lines += textwrap.wrap(
            spaced, width, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)
