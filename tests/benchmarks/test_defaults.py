"""The models that programs, documents and the wheel name by default are in the repository."""

import re
from pathlib import Path

NAMED = re.compile(r"\bmodels/((?:digits|fashion|fashion-la)/\d+)\b")
FILES = [
    *Path("benchmarks").rglob("*.py"),
    *Path("examples").rglob("*.py"),
    *Path("examples").rglob("*.md"),
    *Path("docs").rglob("*.md"),
    Path("README.md"),
    Path(".dockerignore"),
]


def test_every_shipped_model_that_is_named_exists():
    missing = [
        f"{file}: models/{model}"
        for file in FILES
        for model in NAMED.findall(file.read_text(encoding="utf-8"))
        if not Path("models", model, "model.json").is_file()
    ]
    assert not missing
