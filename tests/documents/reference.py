"""Tables made from code: `python -m tests.documents.reference` writes them into the documents."""

import re
from pathlib import Path

from service import settings

ROOT = Path(__file__).parents[2]


def settings_table() -> str:
    """The table of settings in README.md."""
    rows = [
        f"| `{flag}` | {_code(default)} | {_cell(text)} |"
        for flag, _, default, text in settings.describe()
    ]
    return "\n".join(["| flag | default | meaning |", "| --- | --- | --- |", *rows])


def _code(default: str) -> str:
    return "" if default in ("", "None") else f"`{default}`"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def with_settings(readme: str) -> str:
    """README with its table of settings as the code has it."""
    return re.sub(
        r"^\| flag \| default \| meaning \|\n(?:\|.*\n)+",
        lambda _: settings_table() + "\n",
        readme,
        flags=re.MULTILINE,
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_settings(readme.read_text(encoding="utf-8")), encoding="utf-8")
