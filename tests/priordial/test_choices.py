"""The help of `train fit` and `train compare` lists every name that their flags take."""

import re
import subprocess
import sys

import pytest

from tests.documents.blocks import ROOT
from training.commands import choices
from training.data.sources.load import FORMS
from training.learning.losses import LOSSES
from training.learning.networks import NAMES
from training.learning.samplers import SAMPLERS
from training.run.recipe_file import names as recipe_names
from training.studies.methods import METHODS


@pytest.mark.parametrize(
    ("listed", "taken"),
    [
        (choices.LOSSES, LOSSES),
        (choices.SAMPLERS, SAMPLERS),
        (choices.NETWORKS, (*NAMES, "auto", "module:function")),
    ],
    ids=["losses", "samplers", "networks"],
)
def test_every_name_that_a_flag_takes_has_a_line(listed, taken):
    assert sorted(listed) == sorted(taken)


@pytest.mark.parametrize(
    ("names", "page"),
    [([*LOSSES, *SAMPLERS], "docs/methods.md"), (FORMS, "docs/training.md")],
    ids=["losses and samplers", "forms of --data"],
)
def test_every_name_has_a_row_in_its_page(names, page):
    rows = [
        line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("| `")
    ]
    found = {cell for row in rows for cell in re.findall(r"`([\w+-]+)", row.split(" | ")[0])}
    assert [name for name in names if name not in found] == []


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("fit", [*LOSSES, *SAMPLERS, *NAMES, *recipe_names()]),
        ("compare", [*(method.name for method in METHODS), *NAMES, *recipe_names()]),
    ],
)
def test_help_lists_every_name_that_a_flag_takes(verb, names):
    command = [sys.executable, "-m", "priordial", "train", verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [name for name in names if f"\n  {name} " not in done.stdout] == []


def test_help_of_training_does_not_wait_for_torch():
    code = (
        "import contextlib, sys\n"
        "from training.commands.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['fit', '--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
