"""Weight normalisation, cRT and LWS: from `training fit --afterwards` to what the service
answers.
"""

import contextlib
import io
import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from service.contract.bundle import load_bundle
from tests.support.server import running
from training.commands.cli import main
from training.loop.last_layer import features_of, last_layer
from training.loop.processes import Processes
from training.loop.train import Keeping
from training.run.prepare import prepare
from training.run.recipe import Recipe
from training.run.retrain import learn_scales, retrain_classifier
from training.run.run import fit_network

CLASSES, FEATURES = 6, 8
SETTINGS = {"network": "mlp", "steps": 120, "batch": 32}
MODELS = {
    "norm-chosen": ("weight-norm",),
    "norm-given": ("weight-norm", "--norm-tau", "0.7"),
    "crt": ("crt",),
    "lws": ("lws",),
}


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Six classes around points, 300 to 10 rows."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(CLASSES, FEATURES)) * 0.9

    def rows(counts):
        labels = np.repeat(np.arange(CLASSES), counts)
        return (centres[labels] + rng.normal(size=(len(labels), FEATURES))).astype(
            np.float32
        ), labels

    x_train, y_train = rows([300, 150, 80, 40, 20, 10])
    x_test, y_test = rows([40] * CLASSES)
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def answers(own_data, tmp_path_factory):
    """{name: the object of `training fit`}, all of one ERM network."""
    home = tmp_path_factory.mktemp("home")
    flags = [str(part) for key, value in SETTINGS.items() for part in (f"--{key}", value)]
    places = ["--models", str(home / "models"), "--runs", str(home / "runs")]
    found = {}
    for name, afterwards in MODELS.items():
        out = io.StringIO()
        given = ["fit", "--name", name, "--data", f"npz:{own_data}", "--afterwards", *afterwards]
        with contextlib.redirect_stdout(out):
            assert main([*given, *flags, *places, "--quiet", "--json", "--threads", "1"]) == 0
        found[name] = json.loads(out.getvalue())
    return found


@pytest.fixture(scope="module")
def trained(own_data):
    """The published network, trained here: what was prepared, its last layer, features by split."""
    recipe = Recipe(data=f"npz:{own_data}", name="own", **SETTINGS)
    ready, here = prepare(recipe), Processes(torch.device("cpu"))
    network = fit_network(recipe, ready, keeping=Keeping(quiet=True), processes=here)
    splits = {"train": ready.data.train, "test": ready.data.test}
    features = {
        name: features_of(network, ready.data, split, device=here.device)
        for name, split in splits.items()
    }
    return ready, last_layer(network), features


def expected_layer(name, answers, trained):
    ready, layer, features = trained
    if name.startswith("norm"):
        return layer.normalised(answers[name]["last_layer"]["norm_tau"])
    labels = ready.data.train.labels
    if name == "crt":
        return retrain_classifier(features["train"], labels, CLASSES, seed=0)
    return learn_scales(layer, features["train"], labels, seed=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_published_graph_gives_the_changed_layers_logits(name, answers, trained):
    ready, _, features = trained
    folder = Path(answers[name]["bundle"])
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    found = session.run(["logits"], {"input": np.asarray(ready.data.test.inputs, np.float32)})[0]
    expected = expected_layer(name, answers, trained).logits(features["test"])
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_nothing_is_added_to_the_graph(answers):
    graphs = [onnx.load(Path(a["bundle"]) / "model.onnx").graph.node for a in answers.values()]
    operations = [[node.op_type for node in nodes] for nodes in graphs]
    assert all(found == operations[0] for found in operations)
    assert operations[0][-1] == "Gemm"


@pytest.mark.parametrize(
    ("name", "exactness"),
    [("norm-chosen", "approximate"), ("crt", "exact"), ("lws", "approximate")],
)
def test_the_model_remembers_what_its_last_layer_has_divided_out(name, exactness, answers):
    bundle = load_bundle(Path(answers[name]["bundle"]))
    assert bundle.provenance["source_prior"] == exactness
    if name == "norm-chosen":
        assert 0 <= bundle.loss_tau <= 1
        assert bundle.provenance["settings"]["norm_tau"] == answers[name]["last_layer"]["norm_tau"]
    else:
        assert bundle.loss_tau == 1


def test_tau_of_weight_normalisation_is_the_best_on_validation_or_the_one_given(answers):
    chosen = answers["norm-chosen"]["last_layer"]
    assert dict(map(tuple, chosen["validation_curve"]))[chosen["norm_tau"]] == min(
        error for _, error in chosen["validation_curve"]
    )
    assert answers["norm-given"]["last_layer"]["norm_tau"] == 0.7


def test_what_is_served_is_the_changed_layer_with_the_recorded_prior(answers, trained, tmp_path):
    ready, _, features = trained
    x = np.asarray(ready.data.test.inputs, np.float32)
    models = Path(answers["crt"]["bundle"]).parents[1]
    with running(
        models,
        default_model="crt",
        store=f"sqlite:///{tmp_path}/priors.db",
        calibrated_source=False,
    ) as server:
        for name in MODELS:
            bundle = load_bundle(Path(answers[name]["bundle"]))
            logits = expected_layer(name, answers, trained).logits(features["test"])
            expected = softmax(
                adjust_logits(
                    logits,
                    log_source_prior=log_source_prior(
                        bundle.class_counts, loss_tau=bundle.loss_tau
                    ),
                    log_target_prior=log_target_prior(np.ones(CLASSES)),
                    tau=1.0,
                    temperature=bundle.temperature,
                )
            )
            for output, wanted in (("logits", logits), ("probabilities", expected)):
                found = served(server.url, name, x, output)
                np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


def served(url, name, rows, output):
    """[n, C] from the service, over the inference protocol."""
    tensor = {
        "name": "input",
        "shape": list(rows.shape),
        "datatype": "FP32",
        "data": rows.ravel().tolist(),
    }
    answer = httpx.post(
        f"{url}/v2/models/{name}/infer",
        json={"inputs": [tensor], "outputs": [{"name": output}]},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["outputs"]
    return np.array(found["data"]).reshape(found["shape"])
