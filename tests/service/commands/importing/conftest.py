"""Importing files into a folder of its own."""

import pytest

from service.__main__ import main
from service.contract.bundle import load_bundle


@pytest.fixture
def import_file(tmp_path, capsys):
    """`import` in a folder of its own: (exit status, the bundle or None, stderr)."""

    def call(path, *flags, name="m"):
        models = tmp_path / "imported"
        status = main(
            ["import", str(path), "--name", name, "--models", str(models), *map(str, flags)]
        )
        captured = capsys.readouterr()
        folder = captured.out.strip()
        return status, load_bundle(tmp_path / folder) if folder else None, captured.err

    return call
