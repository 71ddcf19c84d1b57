"""What users rely on has a line in the documents, and the documents speak of nothing that is not there."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from service import settings
from service.contract import bundle
from service.observe import families

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "models/README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def text():
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


@pytest.mark.parametrize("item", dataclasses.fields(settings.Settings), ids=lambda item: item.name)
def test_every_setting_is_documented_by_its_flag(text, item):
    assert f"`{settings.flag_of(item.name)}" in text


@pytest.mark.parametrize(
    "name", [*families.COUNTERS, *families.HISTOGRAMS, *families.GAUGES, *families.VECTOR_GAUGES]
)
def test_every_metric_is_documented(text, name):
    assert name in text


@pytest.mark.parametrize(
    "name",
    [*bundle.Bundle.model_fields, *bundle.InputSpec.model_fields, *bundle.OutputSpec.model_fields],
)
def test_every_field_of_model_json_is_documented(name):
    assert f"`{name}`" in (ROOT / "models/README.md").read_text(encoding="utf-8")


def _tracked(*patterns):
    found = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in found.stdout.split("\0") if name]


def test_every_link_between_the_documents_leads_somewhere():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in _tracked("*.md")
        for target in re.findall(
            r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8")
        )
        if not (path.parent / target).exists()
    ]
    assert broken == []


def test_every_module_of_the_code_map_exists():
    table = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:service|training)/[\w/]+\.py)`", table))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
