"""What a command says to do next can be pasted into a shell."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from service.contract.next_steps import program, to_serve, to_use_keys


@pytest.mark.parametrize(
    ("found", "expected"),
    [("/bin/priordial", ["priordial"]), (None, [sys.executable, "-m", "priordial"])],
)
def test_the_program_is_named_as_it_can_be_typed_here(monkeypatch, found, expected):
    monkeypatch.setattr(shutil, "which", lambda _: found)
    assert shlex.split(program()) == expected


def test_a_published_folder_is_loaded_by_its_name_or_served_from_its_repository():
    load, start = to_serve(Path("my models/cats/3")).splitlines()
    assert load.endswith("curl -X POST 127.0.0.1:8000/v2/repository/models/cats/load")
    assert shlex.split(start.partition(": ")[2])[-3:] == ["serve", "--models", "my models"]


def test_a_list_of_keys_is_given_to_the_service():
    assert shlex.split(to_use_keys(Path("my keys")))[-3:] == ["serve", "--keys", "my keys"]
