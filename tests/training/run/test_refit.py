"""A network that validation chose is trained again on all rows, where rows are few."""

import json
from dataclasses import replace

import numpy as np
import pytest

from service.contract.bundle import load_bundle
from tests.support import data_files as files
from tests.training.conftest import tail_counts
from training.faults import WrongUse
from training.run.prepare import prepare
from training.run.recipe import AUTO, Recipe
from training.run.refit import all_rows, moved
from training.scores.source import measure


@pytest.fixture(scope="module")
def fits(own_npz, tmp_path_factory):
    """One fit with --refit, one with --no-refit and one without validation rows."""
    from training.commands.cli import main

    home = tmp_path_factory.mktemp("refits")
    for name, flags in {
        "again": ("--refit",),
        "once": ("--no-refit",),
        "whole": ("--validation-per-class", "0", "--penalty", "PENALTY"),
    }.items():
        given = [
            *("fit", "--data", f"npz:{own_npz}", "--network", "linear", "--name", name),
            *("--models", str(home / "models"), "--runs", str(home / "runs"), "--quiet", *flags),
        ]
        if "PENALTY" in given:
            given[given.index("PENALTY")] = _penalty(own_npz)
        assert main(given) == 0
    return home


def _penalty(own_npz):
    """The penalty that validation chooses, as the loop reports it."""
    from training.loop.processes import Processes
    from training.loop.train import Keeping
    from training.run.prepare import make_network
    from training.run.run import train_network

    recipe = Recipe(f"npz:{own_npz}", network="linear").resolved()
    ready = prepare(recipe)
    network = make_network(recipe, ready)
    return str(train_network(recipe, ready, network, Keeping(quiet=True), Processes.join("cpu")))


def bundle(fits, name):
    return load_bundle(fits / "models" / name / "1")


def answers(fits, name, rows):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(fits / "models" / name / "1" / "model.onnx"))
    return session.run(None, {session.get_inputs()[0].name: rows})[0]


def test_the_published_network_is_that_of_a_fit_on_all_rows(fits, own_npz):
    rows = np.load(own_npz)["x_test"].astype(np.float32)
    again, whole, once = (answers(fits, name, rows) for name in ("again", "whole", "once"))
    assert np.allclose(again, whole, atol=1e-4)
    assert not np.allclose(again, once, atol=1e-2)
    assert bundle(fits, "again").class_counts == list(tail_counts())
    assert sum(bundle(fits, "once").class_counts) < sum(tail_counts())


def test_what_the_held_out_rows_measured_is_kept(fits):
    again, once = bundle(fits, "again"), bundle(fits, "once")
    assert again.temperature == once.temperature
    assert again.estimation.bias == once.estimation.bias
    assert again.estimation.validation == once.estimation.validation
    assert again.provenance["scores"]["val"] == once.provenance["scores"]["val"]
    assert again.provenance["refit"] == {"validation_rows": once.estimation.validation.rows}
    assert "refit" not in once.provenance


def test_the_measured_source_prior_moves_with_the_training_counts(fits):
    again, once = bundle(fits, "again"), bundle(fits, "once")

    def ratio(found):
        source = np.array(found.estimation.source_prior) / np.array(found.class_counts)
        return source / source.sum()

    assert np.allclose(ratio(again), ratio(once), rtol=1e-6)


def test_its_validation_rows_are_refused_because_it_has_learnt_them(fits, own_npz, command):
    model = str(fits / "models" / "again" / "1")
    for verb in ("evaluate", "calibrate"):
        code, _, err = command(verb, model, "--data", f"npz:{own_npz}", "--split", "val")
        assert code == 2
        assert "trained again on all rows" in err
        assert "--no-refit" in err
    code, _, err = command("evaluate", model, "--data", f"npz:{own_npz}")
    assert code == 0, err


def test_no_checkpoint_is_left(fits):
    assert not list((fits / "runs").rglob("checkpoint.pt"))


def test_the_report_says_which_rows_the_validation_figures_are_from(fits):
    text = (fits / "models" / "again" / "1" / "report.html").read_text(encoding="utf-8")
    assert "were held out from a first network" in text
    report = json.loads((fits / "models" / "again" / "1" / "report.json").read_text())
    assert report["validation"]["n"] == bundle(fits, "once").estimation.validation.rows


@pytest.fixture
def few(own_npz):
    recipe = Recipe(f"npz:{own_npz}", network=AUTO)
    return recipe, prepare(replace(recipe, network="linear"))


def asked(few, **changed):
    recipe, ready = few
    recipe = replace(recipe, **changed)
    chosen = replace(recipe, network="linear")
    return all_rows(recipe, chosen, ready, penalty=3.0, world=1)


def test_texts_are_learnt_again_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("training.run.refit.FEW_ROWS", 1)
    reviews, labels = files.texts((40, 20, 10))
    path = tmp_path / "reviews.npz"
    names = {"x_train": reviews, "x_test": reviews[:3], "y_train": labels, "y_test": labels[:3]}
    np.savez(path, **{name: np.array(value) for name, value in names.items()})
    recipe = Recipe(f"npz:{path}", network=AUTO)
    chosen = replace(recipe, network="tfidf", tokens="split-words")
    again = all_rows(recipe, chosen, prepare(chosen), penalty=0.1, world=1)
    assert (again.tokens, again.penalty, again.validation_per_class) == ("split-words", 0.1, 0)


def test_without_a_flag_only_few_rows_of_network_auto_are_learnt_again(few, monkeypatch):
    assert asked(few).penalty == 3.0
    assert asked(few, network="linear") is None
    assert asked(few, refit=False) is None
    assert asked(few, network="linear", refit=True) is not None
    monkeypatch.setattr("training.run.refit.FEW_ROWS", sum(tail_counts()))
    assert asked(few) is None
    assert asked(few, refit=True) is not None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"profile": "exp"}, "--profile leaves rows out"),
        ({"afterwards": "weight-norm"}, "--afterwards weight-norm"),
    ],
)
def test_a_refit_that_cannot_be_done_is_left_out_or_refused(few, changed, said):
    assert asked(few, **changed) is None
    with pytest.raises(WrongUse, match=said):
        asked(few, refit=True, **changed)


def test_validation_rows_of_the_data_are_never_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    parts = {name: rng.normal(size=(60, 4)) for name in ("x_train", "x_val", "x_test")}
    path = tmp_path / "three.npz"
    np.savez(path, **parts, y_train=labels, y_val=labels, y_test=labels)
    recipe = Recipe(f"npz:{path}", network="linear", refit=True)
    with pytest.raises(WrongUse, match="the data's own"):
        all_rows(recipe, recipe, prepare(recipe), penalty=None, world=1)


def test_moving_a_block_shifts_its_replicates_by_the_same_factor():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), (60, 30, 10))
    logits = rng.normal(size=(100, 3)) + 2 * np.eye(3)[labels]
    before, after = np.log([0.6, 0.3, 0.1]), np.log([0.5, 0.3, 0.2])
    block, _ = measure(logits, labels, log_source_prior=before)
    found = moved(block, before=before, after=after)
    for old, new in zip(block.replicates.log_source, found.replicates.log_source, strict=True):
        moves = np.array(new) - np.array(old) - (after - before)
        assert np.ptp(moves) < 1e-6
    assert sum(found.source_prior) == pytest.approx(1)
    assert np.allclose(found.log_source, np.log(found.source_prior) - np.array(found.bias))


def test_the_test_scores_of_the_fit_are_those_of_the_published_model(fits, own_npz, command):
    folder = fits / "models" / "again" / "1"
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))["test"]
    code, found, err = command("evaluate", str(folder), "--data", f"npz:{own_npz}", "--json")
    assert code == 0, err
    for name in ("nll", "brier", "ece", "balanced_error"):
        assert told[name] == pytest.approx(found[name], abs=1e-5), name
