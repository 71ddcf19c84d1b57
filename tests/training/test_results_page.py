"""docs/results.md is made of what comparisons found, and says so when an expectation does not hold."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks import (
    results,
    results_checks,
    results_norms,
    results_synthetic,
    results_text,
    results_variants,
    variants,
)
from training import synthetic, synthetic_report
from training.compare import compare
from training.methods import choose
from training.processes import Processes
from training.settings import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def document(folder):
    recipe = Recipe(
        data="digits", profile="exp", imbalance_ratio=20.0, max_per_class=100, network="mlp", steps=60
    )  # fmt: skip
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
    lines = results_checks.expectations([changed]).splitlines()[2:]
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
    """As benchmarks.variants writes them, for the setting of the document."""
    largest, ratio = results_text.key(document)
    return [
        {"group": group, "variant": name, "max_per_class": largest, "imbalance_ratio": ratio, "seed": seed}
        | {key: values[seed] for key, values in scores.items()}
        for name in variants
        for seed in range(2)
    ]  # fmt: skip


def test_rates_of_adam_stand_in_order_beside_the_compared_ones(document):
    rows = rows_of(
        document, "adam", "rate 0.1, 60 steps", "rate 0.001, 60 steps",
        spearman=[-0.25, 0.75], slope=[0.1, 0.2],
        balanced_error=[0.3, 0.5], weight_norm=[0.2, 0.2], post_hoc=[0.1, 0.1],
    )  # fmt: skip
    lines = results_norms.norms_under_adam([document], rows).splitlines()
    table = [line for line in lines if line.startswith("| largest")]
    rates = [line.split("|")[2].split(",")[1].split()[-1] for line in table]
    assert rates == ["0.05", "0.001", "0.015", "0.1"]
    assert "| 2 | -0.25, +0.75 | +0.15 ± 0.07 | 40.0 ± 14.1 | 20.0 ± 0.0 | 10.0 ± 0.0 |" in table[1]
    sgd = document["curves"][0]["norms"]["SGD"]["spearman"]
    assert f"{sgd:+.2f}" in table[0]


def test_the_network_with_a_hidden_layer_is_judged_like_the_compared_one(document):
    keys = ("slope", "balanced_error", "weight_norm", "post_hoc")
    scores = {key: [0.1, 0.2] for key in keys}
    rows = rows_of(
        document, "hidden layer", "SGD, rate 0.1, 60 steps", spearman=[0.8, 0.9], **scores
    )
    rows += rows_of(
        document, "hidden layer", "Adam, rate 0.03, 60 steps", spearman=[-0.8, 0.1], **scores
    )
    judged = results_checks.expectations([document], rows).splitlines()[-2:]
    assert [line.split("|")[-2].strip() for line in judged] == ["yes", "**no**: 1 of 2"]
    text = results_norms.norms_under_adam([document], rows)
    assert text.count("| -0.80, +0.10 |") == 1
    assert "hidden layer" not in results_norms.norms_under_adam([document], [])


def test_every_recipe_that_was_tried_stands_with_its_counts_beside_those_that_were_chosen(document):
    keys = ("slope", "balanced_error", "weight_norm", "post_hoc")
    scores = {key: [0.1, 0.2] for key in keys} | {"norms": [[3.0] * 6 + [4.0] + [1.0] * 3] * 2}

    def found(group, name, spearman):
        return rows_of(document, group, name, spearman=spearman, **scores)

    rows = found("hidden layer", "SGD, rate 0.1", [0.6, 0.8])
    rows += found("hidden layer", "Adam, rate 0.03", [-0.1, -0.2])
    rows += found("pilot", "no decay", [0.5, 0.72])[:1] + found("pilot", "more", [0.75, 0.72])
    for group in ("shifted images", "shifted images, short"):
        rows += found(group, "SGD, rate 0.1", [0.9, 0.69])
        rows += found(group, "Adam, rate 0.03", [-0.9, -0.8])
    text = results_norms.norms_under_adam([document], rows)
    table = [line for line in text.splitlines() if " of 2 |" in line or " of 1 |" in line]
    assert [line.split("|")[1].strip() for line in table] == [
        "as compared", "no decay", "more", "shifted images, decay 0.003", "shifted images, decay 0.003, 600 steps",
    ]  # fmt: skip
    assert table[1].split("|")[2:] == [" – ", " +0.50 (10.0) ", " 0 of 1 ", ""]
    assert "\n4 recipes were tried" in text or " 4 recipes were tried" in text
    assert "weights come in place 1, 1 by length" in text
    assert text.count("1 of 2 runs") == 2


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
