"""`priordial import --validation` publishes a foreign model once, with its calibration."""

import json

import numpy as np
import onnx
import pytest

from priordial.__main__ import main
from priordial.validation import spec_of
from service.contract.bundle import load_bundle
from tests.support.small_models import COUNTS, inputs, linear_model, weights

NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def foreign(tmp_path):
    """An ONNX file, its flags, and labelled rows of whose classes it is too sure."""
    onnx.save(linear_model(), tmp_path / "model.onnx")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    x = inputs(1500)
    w, b = weights()
    scores = (x @ w + b) / 2.5
    noise = np.random.default_rng(5).gumbel(size=scores.shape)
    y = (scores + noise).argmax(axis=1)
    np.savez(tmp_path / "rows.npz", x_test=x, y_test=np.array(NAMES)[y])
    flags = ["--name", "pets", "--class-names", str(tmp_path / "names.txt")]
    flags += ["--class-counts", str(tmp_path / "counts.json"), "--models", str(tmp_path / "models")]
    return ["import", str(tmp_path / "model.onnx"), *flags]


def test_the_model_is_published_once_with_the_block_of_the_rows(foreign, tmp_path, capsys):
    assert main([*foreign, "--validation", str(tmp_path / "rows.npz")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models" / "pets" / "1")
    bundle = load_bundle(tmp_path / "models" / "pets" / "1")
    assert bundle.estimation.validation.rows == 1500
    assert 1.8 < bundle.temperature < 3.4
    assert not (tmp_path / "models" / "pets" / "2").exists()
    assert main([*foreign, f"--validation={tmp_path}/rows.npz"]) == 0
    assert load_bundle(tmp_path / "models" / "pets" / "2").estimation is not None


def test_nothing_is_published_where_the_rows_cannot_be_read(foreign, tmp_path, capsys):
    assert main([*foreign, "--validation", str(tmp_path / "absent.npz")]) == 2
    assert "absent.npz" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    with pytest.raises(SystemExit):
        main([*foreign, "--validation"])


def test_the_service_alone_says_what_to_run_instead(foreign, tmp_path, capsys):
    from service.__main__ import main as serve

    assert serve([*foreign, "--validation", str(tmp_path / "rows.npz")]) == 1
    assert "priordial import" in capsys.readouterr().err


def test_the_ending_of_a_path_says_what_rows_it_holds(tmp_path):
    assert spec_of("rows.npz") == "npz:rows.npz"
    assert spec_of("rows.csv") == "table:rows.csv?label=label"
    assert spec_of(str(tmp_path)) == f"images:{tmp_path}"
    assert spec_of("fashion-mnist") == "fashion-mnist"
