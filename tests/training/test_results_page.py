"""docs/results.md is made of what comparisons found, and says so when an expectation does not hold."""

import copy

import pytest
import torch

from benchmarks import results
from training.compare import compare
from training.methods import choose
from training.processes import Processes
from training.settings import Recipe


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    recipe = Recipe(
        data="digits", profile="exp", imbalance_ratio=20.0, max_per_class=100, network="mlp", steps=60
    )  # fmt: skip
    return compare(
        recipe,
        methods=choose("erm,post-hoc,weight-norm,logit-adjusted,erm-adam"),
        seeds=range(2),
        out=tmp_path_factory.mktemp("compare"),
        processes=Processes(torch.device("cpu")),
        say=lambda _: None,
    )


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start} |"))


def test_every_method_stands_with_its_mean_and_its_difference_to_erm(document):
    text = results.overview([document])
    for name, method in document["methods"].items():
        assert results.spread(method["summary"]["balanced_error"]) in row(text, name)
    gain = 100 * document["methods"]["logit-adjusted"]["against_erm"]["mean"]
    assert f"({gain:+.1f})" in row(text, "logit-adjusted")


def test_an_expectation_that_does_not_hold_in_every_seed_is_told(document):
    changed = copy.deepcopy(document)
    for method in ("post-hoc τ=1", "logit-adjusted"):
        changed["methods"][method]["against_erm"]["each"] = [-0.05, 0.01]
    for seed, curves in enumerate(changed["curves"]):
        curves["norms"]["SGD"]["spearman"] = 0.9
        curves["norms"]["Adam"]["spearman"] = (-0.2, 0.1)[seed]
    lines = results.expectations([changed]).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines if line.startswith("|")] == [
        "**no**: 1 of 2",
        "**no**: 1 of 2",
        "yes",
        "**no**: 1 of 2",
    ]
    assert "5.0, -1.0" in lines[0]


def test_the_whole_page_shows_figures_that_are_written(document, tmp_path):
    results.write_figures(document, tmp_path, every=True)
    text = results.page([document])
    written = {path.name for path in tmp_path.iterdir()}
    assert written
    assert all(f"(results/{name})" in text for name in written)
    assert text.count("](results/") == len(written)
    assert "n = 2 seeds" in text


def test_the_papers_numbers_are_marked_as_the_papers():
    text = results.papers()
    assert text.startswith("Not measured here")
    assert text.splitlines()[2].count("the paper's") == 5
