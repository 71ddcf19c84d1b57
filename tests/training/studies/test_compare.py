"""`training compare`: methods x seeds, resumable, with numbers and a self-contained report."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from html import escape

import numpy as np
import pytest
import torch

from service.contract.adjustment import log_softmax
from service.contract.shift.label_shift import NotConverged
from training.faults import RunFailed, WrongUse
from training.loop.interrupt import Interrupted
from training.loop.processes import Processes
from training.run.recipe import Recipe
from training.run.recipe_file import make
from training.scores.calibrate import log_validation_prior_of
from training.studies import compare as module
from training.studies import curves as comparison_curves
from training.studies import figures as comparison_figures
from training.studies import report as comparison_report
from training.studies.methods import ADAM_RATE, METHODS, RUNS, choose, runs_of
from training.studies.numbers import answer, temperature_of
from training.studies.outcomes import Outcome

RECIPE = Recipe(
    data="digits",
    profile="exp",
    imbalance_ratio=20.0,
    max_per_class=100,
    network="mlp",
    steps=120,
    lr=0.05,
)
HERE = Processes(torch.device("cpu"))


COMMAND = "training compare --data digits --network mlp --out 'a folder'"


def compared(out, methods="erm,post-hoc,weight-norm,crt,logit-adjusted", seeds=2, recipe=RECIPE):
    said = []
    document = module.compare(
        recipe,
        methods=choose(methods),
        seeds=range(seeds),
        out=out,
        processes=HERE,
        say=said.append,
        command=COMMAND,
    )
    return document, said


def copy_seed_0(source, target):
    (target / "runs").mkdir()
    for path in (source / "runs").glob("*seed0*"):
        (target / "runs" / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def unreported(monkeypatch):
    """Draw no figures: that takes seconds, and the test is about the runs."""
    monkeypatch.setattr(comparison_report, "write", lambda *_, **__: None)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    document, _ = compared(out)
    return out, document


def test_every_method_has_a_score_of_every_seed_and_their_mean(done):
    _, document = done
    assert list(document["methods"]) == [
        "erm",
        "weight-norm τ=1",
        "weight-norm τ chosen",
        "crt",
        "post-hoc τ=1",
        "post-hoc τ chosen",
        "logit-adjusted",
    ]
    for method in document["methods"].values():
        each = [one["balanced_error"] for one in method["seeds"].values()]
        summary = method["summary"]["balanced_error"]
        assert summary["n"] == len(each) == 2
        assert summary["mean"] == pytest.approx(np.mean(each))
        assert summary["sd"] == pytest.approx(np.std(each, ddof=1))


def test_post_hoc_methods_use_the_erm_run_and_nothing_is_trained_twice(done):
    out, _ = done
    names = sorted(path.name for path in (out / "runs").iterdir())
    assert names == [
        "erm-seed0.npz",
        "erm-seed1.npz",
        "logit-adjusted-seed0.npz",
        "logit-adjusted-seed1.npz",
    ]


def test_differences_are_paired_by_seed(done):
    _, document = done
    erm = document["methods"]["erm"]["seeds"]
    own = document["methods"]["logit-adjusted"]
    expected = [own["seeds"][s]["balanced_error"] - erm[s]["balanced_error"] for s in erm]
    found = own["against_erm"]
    assert found["each"] == pytest.approx(expected)
    assert found["interval"][0] <= found["mean"] <= found["interval"][1]


@pytest.mark.usefixtures("unreported")
def test_the_same_command_again_trains_nothing_and_says_the_same(done):
    out, document = done
    again, said = compared(out)
    assert said == ["scoring"]
    assert again == document


@pytest.mark.usefixtures("unreported")
def test_a_method_and_a_seed_can_be_added_later(done, tmp_path):
    copy_seed_0(done[0], tmp_path)
    _, said = compared(tmp_path, methods="erm,balanced", seeds=1)
    assert [line.split(":")[0] for line in said] == ["[2/2] balanced, seed 0", "scoring"]


def test_another_setting_in_the_same_folder_is_refused(done):
    out, _ = done
    with pytest.raises(WrongUse, match="another comparison: lr was"):
        compared(out, recipe=replace(RECIPE, lr=0.3))


@pytest.mark.usefixtures("unreported")
def test_data_that_have_changed_since_are_not_mixed_with_those_of_the_finished_runs(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)), np.arange(90) % 3

    def write(shift):
        np.savez(tmp_path / "own.npz", x_train=x + shift, y_train=y, x_test=x[:30], y_test=y[:30])

    recipe = Recipe(data=f"npz:{tmp_path / 'own.npz'}", network="linear", steps=2)
    out = tmp_path / "out"
    write(0)
    compared(out, methods="erm", seeds=1, recipe=recipe)
    write(1)
    with pytest.raises(WrongUse, match="another comparison: the contents of --data have changed"):
        compared(out, methods="erm", seeds=2, recipe=recipe)
    settings = json.loads((out / "settings.json").read_text())
    del settings["data_sha256"]  # as before it was remembered
    (out / "settings.json").write_text(json.dumps(settings))
    compared(out, methods="erm", seeds=1, recipe=recipe)


@pytest.mark.usefixtures("unreported")
def test_adam_runs_that_were_trained_otherwise_are_refused_until_they_are_removed(done, tmp_path):
    copy_seed_0(done[0], tmp_path)
    settings = json.loads((done[0] / "settings.json").read_text())
    reported = settings.pop("erm-adam")
    assert reported["optimiser"] == "adamw"
    assert reported["lr"] == pytest.approx(ADAM_RATE * RECIPE.lr)
    assert (reported["adam_beta2"], settings["adam_beta2"]) == (0.95, RECIPE.adam_beta2)
    settings.pop("adam_beta2")  # as before it could be set
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    adam = tmp_path / "runs" / "erm-adam-seed0.npz"
    adam.write_bytes(b"")
    with pytest.raises(WrongUse, match=r"erm-adam was None .* \(remove runs/erm-adam-seed\* to"):
        compared(tmp_path, methods="erm", seeds=1)
    adam.unlink()
    assert compared(tmp_path, methods="erm", seeds=1)[1] == ["scoring"]
    assert json.loads((tmp_path / "settings.json").read_text())["erm-adam"] == reported


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_comparison_goes_on_from_its_checkpoint_to_the_same_numbers(
    tmp_path, monkeypatch, done
):
    _, document = done
    from training.loop import train as loop

    real, steps = loop.training_step, []

    class Stop(loop.StopSignal):
        @property
        def requested(self):
            return len(steps) == 50

        @requested.setter
        def requested(self, value):
            pass

    def counted(*arguments, **keywords):
        steps.append(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr(loop, "training_step", counted)
    monkeypatch.setattr(loop, "StopSignal", Stop)
    with pytest.raises(Interrupted, match="the same command resumes from it") as stopped:
        compared(tmp_path, methods="erm", seeds=1)
    assert "--resume" not in str(stopped.value)  # a flag that compare does not have
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["erm-seed0.pt"]
    again, _ = compared(tmp_path, methods="erm", seeds=1)
    assert len(steps) == 120
    mine = again["methods"]["erm"]["seeds"]["0"]
    theirs = document["methods"]["erm"]["seeds"]["0"]
    assert mine["per_class"] == theirs["per_class"]
    assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-9)


def test_the_report_stands_alone_and_every_figure_is_well_formed(done):
    out, document = done
    html = (out / "report.html").read_text(encoding="utf-8")
    assert f"<code>{escape(COMMAND)}</code>" in html
    assert f"{datetime.now(UTC):%Y-%m}-" in html
    assert "priordial 0." in html
    assert document["data"]["sha256"] in html
    assert f"torch {torch.__version__.split('+')[0]}" in html
    assert "imbalance_ratio" in html
    assert "erm-adam" not in html, "no run of this comparison reads its settings"
    for foreign in ("<script", "src=", "@import", "<link", "url(http"):
        assert foreign not in html
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"overview", "tau", "classes", "groups", "norms", "reliability", "shifted"}
    for path in (out / "figures").iterdir():
        ET.parse(path)
    assert html.count("<svg") == len(figures)
    widths = re.findall(r'--w:(\d+)px"><div[^>]*><svg[^>]*\swidth="([\d.]+)pt"', html)
    assert len(widths) == len(figures)
    assert {round(int(pixels) / float(points), 2) for pixels, points in widths} == {1.4}
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == len(figures)
    assert all("n = 2 seeds" in caption for caption in captions)
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == document
    assert "| logit-adjusted |" in (out / "table.md").read_text(encoding="utf-8")


def test_every_axis_of_every_figure_says_what_it_counts(done, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_figures, "svg", lambda figure, title: drawn.append(figure))
    comparison_report.draw(done[1])
    names = [
        name for figure in drawn for a in figure.axes for name in (a.get_xlabel(), a.get_ylabel())
    ]
    assert len(names) >= 2 * len(drawn) > 0
    quantities = ("%", "no unit", "0 … 1", "examples", "method", "group of classes")
    assert all(any(unit in name for unit in quantities) for name in names), names


def test_weight_normalisation_is_served_by_what_it_has_left_undone(done):
    """Its calibrated likelihood is that of the measured source prior: no worse than adjusting
    wholly, or not at all.
    """
    out, document = done
    outcome = Outcome.load(module.outcome_path(out, "erm", 0))
    method = next(m for m in METHODS if m.name == "weight-norm τ chosen")
    given = answer(method, outcome, seed=0)
    assert document["methods"][method.name]["seeds"]["0"]["norm_tau"] == given.norm_tau
    share = given.log_source_prior.std() / outcome.log_source_prior.std()
    assert 0 <= share <= 1

    def likelihood(log_source_prior):
        other = replace(given, log_source_prior=log_source_prior)
        return validation_nll(other, outcome.val, temperature_of(other, outcome.val))

    own = likelihood(given.log_source_prior)
    assert own <= likelihood(outcome.log_source_prior) + 1e-6
    assert own <= likelihood(np.zeros_like(outcome.log_source_prior)) + 1e-6


def validation_nll(given, val, temperature):
    log_prior = log_validation_prior_of(val.labels, given.val.shape[1])
    log_p = log_softmax(given.val / temperature + log_prior - given.log_source_prior)
    return -log_p[np.arange(len(log_p)), val.labels].mean()


def test_the_adam_run_decays_nothing_and_takes_its_own_rate_and_memory(tmp_path, monkeypatch):
    seen = []

    def stop(recipe, *_arguments, **_keywords):
        seen.append(recipe)
        raise Interrupted("enough")

    monkeypatch.setattr(module, "run", stop)
    with pytest.raises(Interrupted):
        compared(tmp_path, methods="erm-adam", seeds=1)
    assert (seen[0].optimiser, seen[0].weight_decay) == ("adamw", 0)
    assert seen[0].lr == pytest.approx(ADAM_RATE * RECIPE.lr)
    assert 1 / (1 - seen[0].adam_beta2) <= make("fashion-compare", {}).steps / 20


def test_only_the_adam_run_leaves_the_recipes_memory_of_squared_gradients():
    recipe = replace(RECIPE, adam_beta2=0.9)
    kept = {run for run in RUNS if module.recipe_for(recipe, run).adam_beta2 == 0.9}
    assert set(RUNS) - kept == {"erm-adam"}


def test_the_oracle_is_never_worse_than_the_tau_chosen_on_validation(done):
    _, document = done
    for index, curves in enumerate(document["curves"]):
        _, best = curves["tau_erm"]["oracle"]["post-hoc"]
        chosen = document["methods"]["post-hoc τ chosen"]["seeds"][str(index)]
        assert best <= chosen["balanced_error"] + 1e-12


def test_knowing_the_target_helps_on_a_shifted_test_set(done):
    _, document = done
    shifted = [one["shifted"]["backward-50"] for one in document["curves"]]
    none = np.mean([one["none"] for one in shifted])
    true = np.mean([one["true target"] for one in shifted])
    assert true < none


def test_an_estimate_that_is_refused_leaves_a_gap_and_not_a_failure(done, tmp_path, monkeypatch):
    copy_seed_0(done[0], tmp_path)

    def refuse(*_arguments, **_keywords):
        raise NotConverged("still moving")

    monkeypatch.setattr(comparison_curves, "em_prior", refuse)
    document, _ = compared(tmp_path, methods="erm", seeds=1)
    assert document["curves"][0]["shifted"]["uniform"]["estimated target"] is None
    assert document["curves"][0]["shifted"]["uniform"]["none"] is not None


def test_a_run_that_diverges_is_named_with_how_to_go_on_without_it(tmp_path):
    with pytest.raises(RunFailed, match=r"^erm, seed 0: the loss is[^\n]*\n.*without this method"):
        compared(tmp_path, methods="erm", seeds=1, recipe=replace(RECIPE, steps=30, lr=1e6))


def test_a_run_that_does_not_fit_the_disk_is_named_with_what_is_kept(tmp_path):
    small = replace(RECIPE, steps=30)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "erm-seed0.tmp").symlink_to("/dev/full")
    with pytest.raises(
        RunFailed, match=r"^erm, seed 0: .*No space left.*give another --out"
    ) as told:
        compared(tmp_path, methods="erm", seeds=1, recipe=small)
    assert "--methods" not in str(told.value)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_outcome_that_does_not_fit_the_disk_leaves_nothing_behind(done, tmp_path):
    outcome = Outcome.load(done[0] / "runs" / "erm-seed0.npz")
    (tmp_path / "own.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        outcome.save(tmp_path / "own.npz")
    assert list(tmp_path.iterdir()) == []


def test_messages_on_checkpoints_name_the_flags_that_compare_has(tmp_path):
    small = replace(RECIPE, steps=30)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "erm-seed0.pt").write_bytes(b"cut short")
    with pytest.raises(RunFailed, match=r"not a whole checkpoint.*; deleting the file discards"):
        compared(tmp_path, methods="erm", seeds=1, recipe=small)


@pytest.mark.filterwarnings("error")
def test_a_class_without_a_test_row_is_a_gap_in_the_figure_and_no_warning(done):
    document = json.loads(json.dumps(done[1]))
    for method in document["methods"].values():
        method["per_class"][3] = None
    assert "nan" not in comparison_figures.by_class(document).lower()


def test_a_finished_run_is_read_back_as_it_was(done):
    out, _ = done
    outcome = Outcome.load(module.outcome_path(out, "erm", 0))
    logits = outcome.layer.logits(outcome.test.features)
    assert logits == pytest.approx(outcome.test.logits, abs=1e-4)
    assert outcome.train_features.shape == (len(outcome.train_labels), 256)


def test_names_of_methods_are_found_with_or_without_their_tau():
    assert [m.name for m in choose("post-hoc")] == ["post-hoc τ=1", "post-hoc τ chosen"]
    assert [m.name for m in choose("post-hoc τ=1")] == ["post-hoc τ=1"]
    assert choose("all") == METHODS
    assert set(runs_of(METHODS)) == set(RUNS)
    with pytest.raises(WrongUse, match="no method 'focla'; expected all, or some of erm"):
        choose("erm,focla")


def test_the_verb_compares_as_a_user_calls_it(command, tmp_path):
    code, result, _ = command(
        *("compare", "--data", "digits", "--profile", "exp", "--imbalance-ratio", 20),
        *("--max-per-class", 100, "--steps", 20, "--methods", "erm", "--seeds", 1),
        *("--out", tmp_path, "--quiet", "--json"),
    )
    assert code == 0
    assert result["seeds"] == [0]
    code, _, reported = command("compare", "--data", "digits", "--seeds", 0, "--out", tmp_path)
    assert code == 2
    assert "--seeds 0" in reported
