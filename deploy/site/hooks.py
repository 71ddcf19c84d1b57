"""MkDocs hooks: add pages from outside docs/, and reference pages that are made from code."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the command `mkdocs` does not search this folder for modules

from service import settings  # noqa: E402 - the path comes first
from service.observe import families  # noqa: E402

OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "reference/architecture.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "DECISIONS.md": "reference/decisions.md",
    "models/README.md": "reference/model-json.md",
}
"""Pages from outside docs/, and their paths on the site."""
REPOSITORY = "https://github.com/priordial/priordial/blob/main"
COMMANDS = (
    ("",),
    ("serve",),
    ("import",),
    ("check",),
    ("doctor",),
    ("key",),
    ("priors",),
    ("train",),
    ("train", "fit"),
    ("train", "compare"),
    ("train", "evaluate"),
    ("train", "estimate"),
    ("train", "synthetic"),
    ("train", "data"),
    ("score",),
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/ and those made from code."""
    for source, place in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_with_links(text, source, place)))
    made = {
        "reference/settings.md": _settings(),
        "reference/metrics.md": _metrics(),
        "reference/command-line.md": _command_line(),
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links from pages in docs/ to files outside it, so that they work on the site."""
    if page.file.generated_by:
        return markdown
    return _with_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def _with_links(text: str, source: str, place: str) -> str:
    """Return a file's text with links rewritten for `place`, its path on the site."""
    here = (ROOT / source).parent

    def moved(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[0]
        path = (here / target).resolve().relative_to(ROOT).as_posix()
        up = "../" * place.count("/")
        if path in OUTSIDE:
            link = up + OUTSIDE[path]
        elif path.startswith("docs/"):
            link = up + path.removeprefix("docs/")
        else:
            link = f"{REPOSITORY}/{path}"
        return f"]({link}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def _settings() -> str:
    rows = [
        f"| `{flag}` | `{variable}` | `{default}` | {text.replace('|', chr(92) + '|')} |"
        for flag, variable, default, text in settings.describe()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "Flags of `priordial serve` and `priordial doctor`, and their environment variables.",
            "A flag takes precedence over its variable.",
            "",
            "| flag | variable | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _metrics() -> str:
    kinds = {
        "counter": {f"{name}_total": text for name, text in families.COUNTERS.items()},
        "histogram": {name: text for name, (text, _) in families.HISTOGRAMS.items()},
        "gauge": {name: text for name, (text, _) in families.GAUGES.items()}
        | families.VECTOR_GAUGES,
    }
    rows = [
        f"| `{name}` | {kind} | {text} |"
        for kind, named in kinds.items()
        for name, text in named.items()
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            (
                "As `/metrics` exports them. [Watching the service](../metrics.md) explains labels "
                "and use."
            ),
            "",
            "| metric | kind | help |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _command_line() -> str:
    parts = ["# The command line", ""]
    for command in COMMANDS:
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "priordial", *filter(None, command), "--help"],
            cwd=ROOT,
            env={"COLUMNS": "100", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        title = " ".join(["priordial", *filter(None, command)])
        parts += [f"## {title}", "", "```text", done.stdout.rstrip(), "```", ""]
    return "\n".join(parts)
