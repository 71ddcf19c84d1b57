"""docs/results.md states what comparisons found, and which expectations do not hold."""

import ast
import copy
import inspect
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.results import checks as results_checks
from benchmarks.results import coverage as results_coverage
from benchmarks.results import norms as results_norms
from benchmarks.results import page as results
from benchmarks.results import synthetic_section as results_synthetic
from benchmarks.results import tables as results_tables
from benchmarks.results import text as results_text
from benchmarks.results import thousand as results_thousand
from benchmarks.results import variant_tables as results_variants
from benchmarks.results import variants
from tests.documents.blocks import ROOT
from training.loop.processes import Processes
from training.run.recipe import Recipe
from training.studies import synthetic, synthetic_report
from training.studies.compare import compare
from training.studies.methods import choose

WRITERS = (
    results,
    results_checks,
    results_coverage,
    results_norms,
    results_synthetic,
    results_tables,
    results_thousand,
    results_variants,
)


def flat(text):
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def document(folder):
    recipe = Recipe(
        data="digits",
        profile="exp",
        imbalance_ratio=20.0,
        max_per_class=100,
        network="mlp",
        steps=60,
    )
    return compare(
        recipe,
        methods=choose("erm,post-hoc,weight-norm,logit-adjusted,erm-adam"),
        seeds=range(2),
        out=folder,
        processes=Processes(torch.device("cpu")),
        say=lambda _: None,
    )


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start} |"))


def test_every_method_stands_with_its_mean_and_its_difference_to_erm(document):
    text = results.overview([document])
    for name, method in document["methods"].items():
        assert results_text.spread(method["summary"]["balanced_error"]) in row(text, name)
    gain = 100 * document["methods"]["logit-adjusted"]["against_erm"]["mean"]
    assert f"({gain:+.1f})" in row(text, "logit-adjusted")


def test_an_expectation_that_does_not_hold_in_every_seed_is_told(document):
    changed = copy.deepcopy(document)
    for method in ("post-hoc τ=1", "logit-adjusted"):
        changed["methods"][method]["against_erm"]["each"] = [-0.05, 0.01]
    for seed, curves in enumerate(changed["curves"]):
        curves["norms"]["SGD"]["spearman"] = 0.9
        curves["norms"]["Adam"]["spearman"] = (-0.2, 0.1)[seed]
    lines = results_checks.expectations([changed]).splitlines()[4:]
    assert [line.split("|")[-2].strip() for line in lines if line.startswith("|")] == [
        "**no**: 1 of 2",
        "**no**: 1 of 2",
        "yes",
        "**no**: 1 of 2",
        "yes",
    ]
    assert "5.0, -1.0" in lines[0]


def test_the_whole_page_shows_figures_that_are_written(document, tmp_path):
    results.write_figures(document, tmp_path, every=True)
    trials = synthetic.run(n_train=500, trials=2)
    synthetic_report.write(trials, tmp_path / "synthetic")
    results_synthetic.copy_figures(tmp_path / "synthetic", tmp_path)
    text = results.page([document], experiment=results_synthetic.read(tmp_path / "synthetic"))
    written = {path.name for path in tmp_path.glob("*.svg")}
    assert len(written) == len(results.FIGURES) + len(results_synthetic.FIGURES)
    assert all(f"(results/{name})" in text for name in written)
    assert text.count("](results/") == len(written)
    assert "n = 2 seeds" in text
    assert "n = 500 training points a trial, 2 trials" in text
    erm = 100 * trials.errors["erm"].mean()
    assert f"| erm | {erm:.2f} ± " in text


def rows_of(document, group, *variants, **scores):
    """As benchmarks.results.variants writes them, for the setting of the document."""
    largest, ratio = results_text.key(document)
    return [
        {
            "group": group,
            "variant": name,
            "max_per_class": largest,
            "imbalance_ratio": ratio,
            "seed": seed,
        }
        | {key: values[seed] for key, values in scores.items()}
        for name in variants
        for seed in range(2)
    ]


OTHER = "Adam, rate 0.03, β₂ 0.999"


def norms_of(document, group, name, spearman, **scores):
    """Rows with all scores that the part on norms reads."""
    given = {
        "slope": [0.1, 0.2], "on_validation": [0.3, 0.4], "balanced_error": [0.3, 0.5],
        "weight_norm": [0.2, 0.2], "post_hoc": [0.1, 0.1],
    }  # fmt: skip
    return rows_of(document, group, name, spearman=spearman, **given | scores)


def with_norms(document, *, sgd, adam):
    """The document as if its runs had these rank correlations."""
    changed = copy.deepcopy(document)
    for seed, curves in enumerate(changed["curves"]):
        curves["norms"]["SGD"]["spearman"] = sgd[seed]
        curves["norms"]["Adam"]["spearman"] = adam[seed]
    return changed


def test_each_training_stands_with_its_counts_over_all_settings_and_with_its_seeds(document):
    changed = with_norms(document, sgd=[0.9, 0.6], adam=[-0.6, -0.7])
    rows = norms_of(document, "adam", OTHER, [-0.25, 0.75])
    text = results_norms.norms_under_adam([changed], rows)
    compared = "Adam, rate 0.005, β₂ 0.95 (compared)"
    assert row(text, "SGD, rate 0.05").startswith("| SGD, rate 0.05 | 2 | +0.75 | 1 | 0 | 0 |")
    assert row(text, compared).startswith(f"| {compared} | 2 | -0.65 | 0 | 2 | 1 |")
    assert "Of the 2 compared runs with Adam, 1 are at -0.65 or below." in flat(text)
    assert row(text, OTHER) == f"| {OTHER} | 2 | +0.25 | 1 | 1 | 0 | -20.0 | -30.0 |"
    by_setting = [line for line in text.splitlines() if line.startswith("| largest")]
    assert [line.split(" | ")[1] for line in by_setting] == ["SGD, rate 0.05", compared, OTHER]
    errors = "35.0 ± 7.1 | 40.0 ± 14.1 | 20.0 ± 0.0 | 10.0 ± 0.0 |"
    assert by_setting[2].endswith(f"| -0.25, +0.75 | +0.15 ± 0.07 | {errors}")


def test_the_words_on_norms_name_the_trainings_that_run_against_the_counts_in_every_run(document):
    rows = norms_of(document, "adam", OTHER, [-0.1, 0.1])
    always = with_norms(document, sgd=[0.9, 0.9], adam=[-0.6, -0.7])
    text = results_norms.norms_under_adam([always], rows)
    assert "with Adam: Adam, rate 0.005, β₂ 0.95 (compared). The paper" in flat(text)
    assert "depends on learning rate and β₂" in flat(text)
    sometimes = with_norms(document, sgd=[0.9, 0.9], adam=[-0.6, 0.0])
    text = results_norms.norms_under_adam([sometimes], rows)
    assert "with Adam: none. The paper" in flat(text)
    assert "depends on learning rate and β₂" not in flat(text)


def test_the_compared_adam_stands_beside_the_best_of_the_others_on_validation(document):
    rows = norms_of(document, "adam", OTHER, [0.1, 0.1], on_validation=[0.2, 0.3])
    rows += norms_of(document, "adam", "Adam, rate 0.1, β₂ 0.999", [0.1, 0.1])
    rows += norms_of(document, "hidden layer", OTHER, [0.1, 0.1], on_validation=[0.1, 0.1])
    text = results_norms.norms_under_adam([document], rows)
    assert f", {OTHER} has the lowest error on validation: 25.0 % in " in flat(text)
    at_none = [dict(curves["tau_adam"]["post-hoc val"])[0] for curves in document["curves"]]
    assert f"against {100 * np.mean(at_none):.1f} % of the compared one" in flat(text)
    assert "not an independent test" not in results_norms.norms_under_adam([document], [])


def test_the_network_with_a_hidden_layer_is_judged_like_the_compared_one(document):
    rows = norms_of(document, "hidden layer", "SGD, rate 0.1", [0.8, 0.9])
    rows += norms_of(document, "hidden layer", "Adam, rate 0.01, β₂ 0.95", [-0.8, 0.1])
    judged = results_checks.expectations([document], rows).splitlines()[-2:]
    assert [line.split("|")[-2].strip() for line in judged] == ["yes", "**no**: 1 of 2"]
    text = results_norms.norms_under_adam([document], rows)
    assert row(text, "Adam, rate 0.01, β₂ 0.95, hidden layer").split(" | ")[2:5] == [
        "-0.35",
        "0",
        "1",
    ]
    assert "idden layer" not in results_norms.norms_under_adam([document], [])


def test_other_ways_stand_below_the_method_that_they_vary(document):
    rows = rows_of(document, "weight-norm", "τ = 0.5", balanced_error=[0.2, 0.4])
    lines = results_variants.other_ways([document], rows).splitlines()[2:]
    assert [line.split("|")[3].strip() for line in lines] == [
        "as compared",
        "as compared",
        "τ = 0.5",
    ]
    assert lines[2].endswith("| weight-norm | τ = 0.5 | 2 | 30.0 ± 14.1 |")
    assert results_variants.other_ways([document], []).count("\n") == 2


def test_what_comes_nearest_to_the_independent_figures_is_told_from_the_rows(document, monkeypatch):
    theirs = {"weight-norm τ=1": 14.0, "ldam": 20.0, "sampler-balanced": 30.0}
    monkeypatch.setattr(results_variants, "REFERENCE", {results_text.key(document): theirs})
    given = {"τ = 0.5": 0.15, "τ = 1": 0.11, "τ = 1, bias kept": 0.14}
    given |= {
        f"τ from a long-tailed validation split, by {by}": 0.2 for by in ("balanced error", "error")
    }
    rows = [
        row
        for name, error in given.items()
        for row in rows_of(document, "weight-norm", name, balanced_error=[error, error])
    ]
    text = results_variants.concluded([document], rows)
    assert "nearest to their 14.0 % with τ = 0.5 (15.0 %)" in text
    assert "Keeping the bias changes its error at τ = 1 by +3.0 points" in text
    gain = 100 * document["methods"]["erm"]["summary"]["balanced_error"]["mean"] - 20
    assert f"by plain error leaves {gain:.1f} of the " in text
    assert "LDAM" not in text
    assert "flips" not in text
    assert results_variants.concluded([document], []) == ""


def test_a_difference_within_what_another_run_may_give_is_told_from_a_larger_one(document):
    spreads = [
        document["methods"][name]["summary"]["balanced_error"] for name in ("erm", "logit-adjusted")
    ]
    names = {"erm": 0.0, "logit-adjusted": 0.0}
    reach = results_checks.reach_of_a_run(document, names)
    sd = 100 * np.sqrt(np.mean([entry["sd"] ** 2 for entry in spreads]))
    assert reach == pytest.approx(4.303 * sd * np.sqrt(1.5), rel=1e-3)  # t of 2 degrees of freedom
    assert results_checks.reach_of_a_run(document, {"absent": 0.0}) is None


def test_variants_are_told_apart_and_done_once(document):
    every = list(variants.runs())
    assert not any(variants.same(run, other) for run, other in pairwise(every))
    assert all(sum(variants.same(run, row) for row in every) == 1 for run in every)


def test_weights_are_normalised_in_several_ways_of_the_same_run(folder, document):
    rows = variants.normalised(folder)
    assert {row["seed"] for row in rows} == {0, 1}
    for seed in (0, 1):
        found = {row["variant"]: row["balanced_error"] for row in rows if row["seed"] == seed}
        compared = document["methods"]["weight-norm τ=1"]["seeds"][str(seed)]["balanced_error"]
        assert found["τ = 1"] == pytest.approx(compared)
    labels, counts = np.repeat([0, 1, 2], 100), np.array([1000, 100, 1])
    kept = variants.long_tailed(labels, counts, np.random.default_rng(0))
    assert np.bincount(labels[kept]).tolist() == [100, 10, 1]


def test_the_papers_numbers_are_marked_as_the_papers():
    text = results.papers()
    assert text.startswith("Not measured here")
    assert text.splitlines()[2].count("the paper's") == 5


def prose_of(module):
    """The texts of a module that the page may hold: five words or more between two values."""
    tree = ast.parse(inspect.getsource(module))
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    left_out = {
        id(body.value)
        for node in ast.walk(tree)
        for body in (getattr(node, "body", None) if isinstance(node, documented) else None) or ()
        if isinstance(body, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {
            "ArgumentParser", "add_argument",
        }:  # fmt: skip
            left_out |= {id(each) for each in ast.walk(node)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in left_out and len(node.value.split()) >= 5:
            yield flat(node.value)


@pytest.mark.parametrize("module", WRITERS, ids=lambda module: module.__name__)
def test_the_page_has_the_words_that_its_programs_write(module):
    page = flat((ROOT / "docs/results.md").read_text(encoding="utf-8"))
    assert [text for text in prose_of(module) if text not in page] == []


def defaults_of(name, *errors):
    """As benchmarks.results.tables gathers them: a set, and ours and a peer's errors by seed."""
    one = {"set": name, "rows": [9, 9], "classes": 2, "counts": [6, 3], "network": "linear"}
    return {
        name: [
            one | {"errors": {results_tables.OURS: [0, ours], "a peer": [0, theirs]}}
            for ours, theirs in errors
        ]
    }


def test_sets_that_no_default_was_chosen_on_have_a_section_of_their_own(tmp_path):
    (tmp_path / "results").mkdir()
    for name, found in (
        (results_tables.SEEN, defaults_of("old", (20, 30), (22, 30))),
        (results_tables.UNSEEN, defaults_of("new", (40, 30), (42, 36))),
    ):
        (tmp_path / "results" / name).write_text(json.dumps(found))
    page = "# Results\n\n## Each setting\n"
    text = results_tables.with_sections(page, tmp_path)
    assert results_tables.with_sections(text, tmp_path) == text
    _, seen, unseen, rest = text.split("\n## ")
    assert "**21.0 ± 1.4**" in row(seen, "old")
    assert "on 1 of 1 sets" in seen
    assert "41.0 ± 1.4" in row(unseen, "new")
    assert "new (8.0 points behind a peer)" in unseen
    assert "Not measured now: attrition, cells," in unseen
    assert "Not measured" not in seen
    assert rest == "Each setting\n"


def test_errors_of_peers_are_taken_from_an_earlier_run_where_it_has_them(tmp_path, monkeypatch):
    labels = np.arange(8) % 2
    rows = np.arange(8)
    data = results_tables.Set("new", ["a"], np.empty((8, 1)), labels, ["x", "y"], rows, rows)
    source = np.log([0.5, 0.5])
    monkeypatch.setattr(results_tables, "drawn", lambda *_: data)
    monkeypatch.setattr(
        results_tables, "ours", lambda *_: (np.eye(2)[labels], source, {"network": "mlp"})
    )
    asked = []
    peers = {name: lambda name=name: asked.append(name) or np.zeros((8, 2)) for name in "ab"}
    monkeypatch.setattr(results_tables, "peers", lambda *_: peers)
    earlier = {"rows": [8, 8], "errors": {"a": [1.0, 2.0]}, "seconds": {"a": 3.0}}
    found = results_tables.measured(tmp_path, 0, tmp_path, earlier)
    assert asked == ["b"]
    assert found["errors"]["a"] == [1.0, 2.0]
    assert found["errors"][results_tables.OURS] == [0, 0]
    other = results_tables.measured(tmp_path, 0, tmp_path, earlier | {"rows": [7, 8]})
    assert asked == ["b", "a", "b"]  # a set that was made anew has other rows
    assert other["errors"]["a"] != [1.0, 2.0]


def test_texts_measured_before_the_present_candidates_are_named(tmp_path):
    (tmp_path / "results").mkdir()
    found = defaults_of("manual", (20, 30)) | defaults_of("source", (20, 30))
    for name, runs in found.items():
        runs[0]["tried"] = ["tfidf-words", *([results_tables.LATEST] if name == "source" else [])]
    (tmp_path / "results" / results_tables.SEEN).write_text(json.dumps(found))
    text = results_tables.with_sections("# Results\n\n## Each setting\n", tmp_path)
    assert "Earlier defaults for texts: manual.\n" in text
    assert "Fewer than 5 seeds so far: manual (1), source (1).\n" in text
