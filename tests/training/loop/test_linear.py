"""Linear networks are fitted to the minimum, with the penalty that validation chooses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from tests.support import data_files as files
from training.data.dataset import Dataset, Split
from training.faults import WrongUse
from training.learning.losses import make_loss
from training.loop.linear import Span, _fitted, fit_last_layer
from training.run import recipe_file
from training.run.candidates import candidates
from training.run.prepare import make_network, prepare
from training.run.recipe import Recipe
from training.scores.choose import uniform_nll
from training.scores.posthoc import LastLayer

CPU = torch.device("cpu")


def gaussians(counts, seed, *, spread=1.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(0).normal(size=(len(counts), 5)) * spread
    rows = centres[labels] + rng.normal(size=(len(labels), 5))
    return Split(rows.astype(np.float32), labels)


def fitted(train, val=None, *, loss="erm", penalty=None):
    names = tuple("abc")
    data = Dataset(spec="own", kind="tensor", class_names=names, train=train, val=val)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 3))
    found = fit_last_layer(
        network,
        data,
        make_loss(loss, data.class_counts),
        log_source_prior=np.log(data.class_counts / data.class_counts.sum()),
        penalty=penalty,
        device=CPU,
    )
    return network, found


def test_with_a_penalty_it_is_the_logistic_regression_of_scikit_learn():
    train = gaussians((60, 20, 5), seed=1)
    network, found = fitted(train, penalty=0.5)
    peer = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(train.inputs, train.labels)
    assert np.abs(network[1].weight.detach().numpy() - peer.coef_).max() < 0.02
    assert found.curve == ()


def test_it_is_the_minimum_of_any_loss():
    train = gaussians((60, 20, 5), seed=1)
    network, _ = fitted(train, loss="logit-adjusted", penalty=1.0)
    objective = make_loss("logit-adjusted", np.array([60, 20, 5]))
    weight = network[1].weight
    logits = network(torch.from_numpy(train.inputs))
    total = objective(logits, torch.from_numpy(train.labels)) + (weight * weight).sum() / 2 / 85
    total.backward()
    assert float(network[1].weight.grad.abs().max()) < 1e-4
    assert float(network[1].bias.grad.abs().max()) < 1e-4


def test_the_penalty_is_the_best_on_validation_at_the_uniform_target():
    train, val = gaussians((60, 20, 5), seed=1), gaussians((40, 40, 40), seed=2)
    network, found = fitted(train, val)
    nll = dict(found.curve)
    assert nll[found.penalty] == min(nll.values())
    with torch.no_grad():
        logits = network(torch.from_numpy(val.inputs)).numpy()
    source = np.log(np.array([60, 20, 5]) / 85)
    again = uniform_nll(logits, val.labels, log_source_prior=source)
    assert again == pytest.approx(nll[found.penalty], rel=1e-3)


def test_a_network_with_a_hidden_layer_is_refused():
    data = Dataset(spec="own", kind="tensor", class_names=("a", "b"), train=gaussians((5, 5), 1))
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(WrongUse, match="parameters before its last layer"):
        fit_last_layer(network, data, make_loss("erm", np.array([5, 5])),
                       log_source_prior=np.zeros(2), penalty=1.0, device=CPU)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimiser": "lbfgs", "sampler": "balanced"}, "takes every row"),
        ({"optimiser": "lbfgs", "loss": "ldam"}, "cosine head"),
        ({"optimiser": "sgd", "penalty": 1.0}, "--penalty is only for"),
        ({"penalty": 0.0}, "expected more than 0"),
    ],
)
def test_what_the_solver_cannot_do_is_refused(settings, said):
    with pytest.raises(WrongUse, match=said):
        Recipe(data="digits", network="linear", **settings)


def test_defaults_follow_the_network_unless_a_flag_of_the_optimisation_is_given():
    def of(**settings):
        found = Recipe(data="digits", **settings).resolved()
        return found.optimiser, found.lr, found.schedule

    assert of(network="linear") == ("lbfgs", 1e-3, "steps")
    assert of(network="linear", steps=50) == ("sgd", 0.05, "steps")
    assert of(network="linear", sampler="balanced") == ("sgd", 0.05, "steps")
    assert of(network="mlp") == ("adamw", 1e-3, "cosine")
    assert of(network="mlp", lr=0.1) == ("sgd", 0.1, "steps")
    assert of(network="cnn") == ("sgd", 0.05, "steps")


def test_a_default_fit_tries_networks_and_publishes_the_best(tmp_path, command, own_npz):
    code, answer, err = command(
        "fit", "--data", f"npz:{own_npz}", "--name", "own", "--steps", "60",
        "--models", tmp_path / "models", "--runs", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert code == 0, err
    tried = {each["name"]: each["uniform_nll"] for each in answer["tried"]}
    assert set(tried) == {"linear", "linear-pieces", "mlp", "mlp-pieces"}
    assert tried[answer["network"]] == min(tried.values())
    assert "validation NLL at the uniform target" in err
    model = json.loads((tmp_path / "models/own/1/model.json").read_text())
    assert model["provenance"]["settings"]["network"] == answer["network"]
    assert not list((tmp_path / "runs").rglob("checkpoint.pt"))


def test_scaled_categories_are_tried_where_there_are_any_and_refused_elsewhere(tmp_path, own_npz):
    path = tmp_path / "trees.csv"
    rows = [f"{i},{'xyz'[i % 3]},{'ab'[i % 2]}" for i in range(40)]
    path.write_text("\n".join(["height,bark,kind", *rows]) + "\n", encoding="utf-8")
    offered = candidates(recipe_file.make(None, {"data": f"table:{path}?label=kind"}))
    assert [each.network for each in offered] == [
        "linear", "linear-pieces", "linear-scaled", "mlp", "mlp-pieces", "mlp-scaled"
    ]  # fmt: skip
    plain = recipe_file.make(None, {"data": f"npz:{own_npz}", "network": "mlp-scaled"})
    assert "mlp-scaled" not in [each.network for each in candidates(replace(plain, network="auto"))]
    with pytest.raises(WrongUse, match="the data have none; use --network mlp"):
        make_network(plain.resolved(), prepare(plain.resolved()))


def test_texts_are_fitted_by_words_and_parts_of_words(tmp_path, command):
    reviews, labels = files.texts((60, 30, 12))
    path = tmp_path / "reviews.csv"
    lines = [f'"{text}",{label}' for text, label in zip(reviews, labels, strict=True)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    code, answer, err = command(
        "fit", "--data", f"table:{path}?label=label&text=text", "--name", "own",
        "--models", tmp_path / "models", "--runs", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert code == 0, err
    tried = {each["name"] for each in answer["tried"]}
    assert tried == {"tfidf-words", "tfidf-split-words", "tfidf-subwords"}
    assert answer["test"]["at_tau"]["1"]["balanced_error"] < 0.3


def test_in_the_span_of_the_rows_the_layer_is_that_of_the_features():
    rng = np.random.default_rng(0)
    x = csr_matrix(rng.normal(size=(30, 80)) * (rng.random((30, 80)) < 0.5), dtype=np.float32)
    labels = np.arange(30) % 3
    span = Span.of(x)
    assert np.allclose(span.rows @ span.rows.T, (x @ x.T).toarray(), atol=1e-4)
    assert np.allclose(span.coordinates(x), span.rows, atol=1e-4)
    objective = make_loss("erm", np.array([10, 10, 10]))
    zero = [LastLayer(np.zeros((3, size)), np.zeros(3)) for size in (80, 30)]
    plain = _fitted(x, labels, objective, zero[0], 0.5)
    inside = _fitted(span.rows, labels, objective, zero[1], 0.5)
    assert np.abs(span.weights(inside.weight) - plain.weight).max() < 1e-3
