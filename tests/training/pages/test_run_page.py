"""The page of a published model shows every figure that its report.json has data for."""

import json
import re
from pathlib import Path

import pytest

from training.pages.run_page import run_page

FACTS = {"date": "2026-01-02 03:04 UTC", "command": "`training fit --data <x>`", "data": "digits"}


@pytest.fixture(scope="module")
def document():
    return json.loads(Path("models/digits/2/report.json").read_text(encoding="utf-8"))


def page_of(document, **more):
    return run_page(document | more, FACTS, title="Model digits", lead="A small network.")


def test_the_page_says_how_the_model_was_made_and_has_all_figures(document):
    text = page_of(document)
    assert "2026-01-02 03:04 UTC" in text
    assert "<code>training fit --data &lt;x&gt;</code>" in text
    assert text.count("<svg") == 4
    for name in ("Choice of τ.", "By class.", "Reliability.", "Confusion."):
        assert f"<b>{name}</b>" in text


def test_names_in_any_script_are_drawn_without_a_warning(document, recwarn):
    names = [f"猫 {name}" for name in document["class_names"]]
    assert "猫 " in run_page(document | {"class_names": names}, {}, title="t", lead="l")
    assert not [str(warning.message) for warning in recwarn]


def test_the_type_of_all_charts_has_one_size(document):
    figures = re.findall(r'--w:(\d+)px"><div[^>]*><svg[^>]*\swidth="([\d.]+)pt"', page_of(document))
    assert len(figures) == 4
    for pixels, points in figures:
        assert abs(int(pixels) / float(points) - 1.4) < 0.01


def test_the_page_is_whole_in_itself_and_has_a_dark_scheme(document):
    text = page_of(document)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "<script" not in text


def test_the_page_does_without_the_splits_that_are_not_there(document):
    nothing = {"chosen": 1.0, "validation_curve": [], "bands": [], "interval": None, "n": 0}
    bare = {key: value for key, value in document.items() if key not in {"at_tau", "samples"}}
    text = page_of(bare, tau=nothing, validation=None, test=None)
    assert text.count("<svg") == 1


def test_warnings_about_the_data_stand_on_the_page(document):
    assert "rows are in both" in page_of(document, problems=["3 rows are in both"])
    assert "Warnings" not in page_of(document, problems=[])
