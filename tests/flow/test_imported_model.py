"""An imported foreign classifier is scored and used for estimates like a model trained here."""

import contextlib
import io
import json

import numpy as np
import onnxruntime
import pytest

from service.__main__ import main as service
from service.contract.adjustment import softmax
from tests.support.small_models import CLASSES, inputs, linear_model
from training.commands.cli import main as training

NAMES = [f"kind {index}" for index in range(CLASSES)]


@pytest.fixture(scope="module", params=["logits", "probabilities"])
def imported(request, tmp_path_factory):
    """(model folder, npz of data whose labels follow the model's posteriors, raw outputs and labels
    of its test rows).
    """
    home = tmp_path_factory.mktemp(request.param)
    file = home / "foreign.onnx"
    ending = "Softmax" if request.param == "probabilities" else None
    file.write_bytes(linear_model(ending=ending).SerializeToString())
    x = inputs(4000)
    raw = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0]
    posteriors = softmax(raw if ending is None else np.log(raw))
    rng = np.random.default_rng(0)
    labels = np.array([rng.choice(CLASSES, p=row) for row in posteriors])
    data = home / "own.npz"
    np.savez(
        data,
        x_train=x[:1500],
        y_train=labels[:1500],
        x_val=x[1500:2500],
        y_val=labels[1500:2500],
        x_test=x[2500:],
        y_test=labels[2500:],
        class_names=NAMES,
    )
    (home / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    counts = np.bincount(labels, minlength=CLASSES).tolist()
    (home / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        status = service(
            [
                "import",
                str(file),
                "--name",
                "foreign",
                "--models",
                str(home / "models"),
                "--class-names",
                str(home / "names.txt"),
                "--class-counts",
                str(home / "counts.json"),
            ]
        )
    assert status == 0
    return home / "models" / "foreign" / "1", data, raw[2500:], labels[2500:]


def asked(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert training([*map(str, arguments), "--json"]) == 0
    return json.loads(out.getvalue())


def test_an_imported_model_is_scored_by_its_own_answers_at_tau_0(imported):
    folder, data, raw, labels = imported
    scores = asked("evaluate", folder, "--data", f"npz:{data}", "--tau", 0)
    wrong = raw.argmax(axis=1) != labels
    assert scores["n"] == len(labels)
    assert scores["error"] == pytest.approx(wrong.mean())
    assert scores["per_class"] == pytest.approx([wrong[labels == c].mean() for c in range(CLASSES)])
    low, high = scores["balanced_error_interval"]
    assert low < scores["balanced_error"] < high


@pytest.mark.parametrize("target", ["uniform", "training", "forward-5", "backward-5"])
def test_any_target_is_scored_with_an_interval(imported, target):
    folder, data, raw, _ = imported
    scores = asked("evaluate", folder, "--data", f"npz:{data}", "--tau", 1, "--target", target)
    low, high = scores["balanced_error_interval"]
    assert low <= scores["balanced_error"] <= high
    assert 0 < scores["n"] <= len(raw)


def test_the_class_mix_of_unlabelled_data_is_estimated_through_it(imported):
    folder, data, _, labels = imported
    found = asked("estimate", folder, "--data", f"npz:{data}")
    assert found["recommended"] == "em"
    true = np.bincount(labels, minlength=CLASSES) / len(labels)
    em = found["methods"]["em"]
    assert np.abs(np.array(em["prior"]) - true).sum() / 2 < 0.1
    assert all(
        low <= share <= high for share, (low, high) in zip(em["prior"], em["interval"], strict=True)
    )
