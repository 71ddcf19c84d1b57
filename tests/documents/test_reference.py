"""Tables and pictures that are generated from code are those that the code generates."""

import json
import re
import runpy
from pathlib import Path

import yaml

from service import settings
from tests.documents.blocks import ROOT
from tests.documents.reference import with_settings


def test_the_table_of_settings_is_the_one_that_the_code_writes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_settings(readme) == readme, "run: python -m tests.documents.reference"


def test_the_picture_of_the_readme_shows_the_report_of_the_shipped_model():
    report = json.loads((ROOT / "models/fashion/2/report.json").read_text(encoding="utf-8"))
    draw = runpy.run_path(str(ROOT / "examples/before_after.py"))["picture"]
    assert draw(report) == (ROOT / "docs/before-after.svg").read_text(encoding="utf-8")


def test_every_flag_of_serve_in_the_documents_exists():
    flags = {flag for flag, *_ in settings.describe()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(--[\w-]+)` \|", readme, re.MULTILINE))
    assert table == flags


def test_templates_and_citation_are_valid_yaml():
    for path in [ROOT / "CITATION.cff", *Path(ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
