"""The documentation site builds, offline, with every link and anchor leading somewhere."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents.blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_the_documents_is_built(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()


def test_a_numbered_list_counts_on_after_a_block():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        narrow = re.findall(r"^ {1,3}```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert narrow == [], f"{page.name}: MkDocs wants four spaces before a block in a list"


def test_the_reference_pages_are_made_from_code(site):
    for name, text in {
        "settings": "PRIORDIAL_MAX_BATCH_ROWS",
        "metrics": "priordial_predictions_total",
        "command-line": "logit-adjusted",
        "model-json": "loss_tau",
    }.items():
        assert text in (site / f"reference/{name}.html").read_text(encoding="utf-8")


def test_the_site_can_be_searched_offline(site):
    assert (site / "search/search_index.js").exists()


def test_no_page_loads_anything_from_another_host(site):
    loads = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:)?//[^\"]+\"[^>]*>")
    for page in site.rglob("*.html"):
        found = [tag[0] for tag in loads.finditer(page.read_text(encoding="utf-8"))]
        assert [tag for tag in found if 'rel="canonical"' not in tag] == []
