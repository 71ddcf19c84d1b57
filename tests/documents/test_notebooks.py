"""The notebooks in examples/ run from top to bottom and print what they hold."""

import json

import pytest

from tests.documents.blocks import differences
from tests.documents.notebooks import NOTEBOOKS, code_cells, run, stored
from tests.documents.test_examples import make_desk, served


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    desk = make_desk(tmp_path_factory.mktemp("notebooks"))
    with served(desk) as server:
        yield desk.folder, server.url


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_prints_what_the_notebook_holds(path, answering):
    folder, url = answering
    notebook = json.loads(path.read_text(encoding="utf-8"))
    printed = run(notebook, folder=folder, url=url)
    for cell, text in zip(code_cells(notebook), printed, strict=True):
        assert differences(stored(cell), text) == ""


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3
