"""The parts of `make demo-shift`; the play itself takes two minutes and is run by hand."""

import runpy

import numpy as np
import pytest

from tests.documents.blocks import ROOT

DEMO = runpy.run_path(str(ROOT / "examples/demo_shift.py"), run_name="demo")


def test_the_mix_is_the_usual_one_but_for_the_sale():
    usual = np.array([0.7, 0.2, 0.1])
    for hour in (0, DEMO["SALE"], DEMO["NORMAL"] + 2, DEMO["HOURS"]):
        assert DEMO["mix_at"](hour, usual) == pytest.approx(usual)
    for hour in (DEMO["SALE"] + 2, DEMO["CAMERA"], DEMO["NORMAL"]):
        assert DEMO["mix_at"](hour, usual) == pytest.approx(usual[::-1])
    assert DEMO["mix_at"](DEMO["SALE"] + 1, usual).sum() == pytest.approx(1)


def test_it_says_in_words_what_happens():
    reported = [DEMO["what_happens"](hour) for hour in range(DEMO["HOURS"])]
    assert list(dict.fromkeys(reported)) == ["the usual", "a sale", "a camera is broken"]
    assert reported[-1] == "the usual"


def test_without_the_images_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(DEMO["main"].__globals__, "IMAGES", tmp_path / "absent")
    monkeypatch.setattr("sys.argv", ["demo_shift.py"])
    assert DEMO["main"]() == 1
    assert "apt install dataset-fashion-mnist" in capsys.readouterr().out
