"""The whole way: data → training → published model → service → adjusted answers, each step as a
user takes it.
"""

import io
import json
import subprocess
import sys

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from service.contract.bundle import load_bundle
from tests.support.server import ROOT, running

CLASSES, FEATURES = 24, 30


def training(*arguments):
    """`training ARGUMENTS --json` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "training", *map(str, arguments), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A user's own .npz: a few dozen features, dozens of classes, some with two rows."""
    rng = np.random.default_rng(0)
    counts = np.maximum(2, (120 * 0.75 ** np.arange(CLASSES)).astype(int))
    centres = rng.normal(size=(CLASSES, FEATURES)) * 1.1
    y_train = np.repeat(np.arange(CLASSES), counts)
    y_test = np.repeat(np.arange(CLASSES), 10)
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(
        path,
        x_train=(centres[y_train] + rng.normal(size=(len(y_train), FEATURES))).astype(np.float32),
        y_train=y_train,
        x_test=(centres[y_test] + rng.normal(size=(len(y_test), FEATURES))).astype(np.float32),
        y_test=y_test,
        class_names=np.array([f"fault-{i:02d}" for i in range(CLASSES)]),
    )
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory, own_data):
    folder = tmp_path_factory.mktemp("models")
    for name, loss in (("own", "erm"), ("own-la", "logit-adjusted")):
        training(
            "fit",
            "--name",
            name,
            "--data",
            f"npz:{own_data}",
            "--network",
            "linear",
            "--loss",
            loss,
            "--steps",
            200,
            "--models",
            folder,
        )
    return folder


@pytest.fixture(scope="module")
def test_rows(own_data):
    with np.load(own_data) as data:
        return data["x_test"], data["y_test"]


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "priors.db"
    with running(
        models, default_model="own", store=f"sqlite:///{store}", calibrated_source=False
    ) as server:  # the formula over class_counts; the calibrated source has tests of its own
        yield server


@pytest.fixture(scope="module")
def calibrated(models, tmp_path_factory):
    """The service with its defaults: it adjusts with the source prior that the models measured."""
    store = tmp_path_factory.mktemp("store") / "priors.db"
    with running(models, default_model="own", store=f"sqlite:///{store}") as server:
        yield server


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ask(url, rows, **parameters):
    answer = httpx.post(
        url,
        content=npy(rows),
        params=parameters,
        headers={"content-type": "application/x-npy"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def probabilities(answer):
    """[n, C] from an answer with top_k = C."""
    found = np.zeros((len(answer["predictions"]), CLASSES))
    for row, prediction in enumerate(answer["predictions"]):
        for entry in prediction["top"]:
            found[row, entry["index"]] = entry["probability"]
    return found


def formula(models, name, rows, *, tau, source=None, target=None):
    """The contract's float64 formula on the plain graph's logits."""
    bundle = load_bundle(models / name / "1")
    session = ort.InferenceSession(
        str(models / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    logits = session.run([bundle.output.name], {bundle.input.name: rows})[0]
    return softmax(
        adjust_logits(
            logits,
            log_source_prior=log_source_prior(
                source or bundle.class_counts, loss_tau=bundle.loss_tau
            ),
            log_target_prior=log_target_prior(target or np.ones(CLASSES)),
            tau=tau,
            temperature=bundle.temperature,
        )
    )


@pytest.mark.parametrize("tau", [0, 0.5, 1, 2])
def test_served_answers_equal_the_formula_in_float64(served, models, test_rows, tau):
    x, _ = test_rows
    found = probabilities(ask(f"{served.url}/predict", x, tau=tau, top_k=CLASSES))
    np.testing.assert_allclose(found, formula(models, "own", x, tau=tau), atol=1e-5)


def test_tau_changes_nothing_for_a_model_whose_loss_has_adjusted_already(served, test_rows):
    x, _ = test_rows
    plain, adjusted = (
        probabilities(ask(f"{served.url}/models/own-la/predict", x, tau=tau, top_k=CLASSES))
        for tau in (0, 1)
    )
    np.testing.assert_allclose(plain, adjusted, atol=1e-6)


@pytest.mark.parametrize("tau", [0, 1])
def test_what_is_served_is_what_was_evaluated_to_the_row(
    calibrated, models, own_data, test_rows, tau
):
    x, y = test_rows
    evaluated = training(
        "evaluate", models / "own" / "1", "--data", f"npz:{own_data}", "--tau", tau
    )
    predictions = ask(f"{calibrated.url}/predict", x, tau=tau)["predictions"]
    labels = np.array([prediction["index"] for prediction in predictions])
    errors = [float(np.mean(labels[y == c] != c)) for c in range(CLASSES)]
    assert errors == pytest.approx(evaluated["per_class"])


def test_adjustment_lowers_the_balanced_error_of_a_long_tailed_model(served, test_rows):
    x, y = test_rows

    def balanced_error(tau):
        found = [p["index"] for p in ask(f"{served.url}/predict", x, tau=tau)["predictions"]]
        return float(np.mean(np.array(found) != y))  # the test split is balanced

    assert balanced_error(1) < balanced_error(0)


def test_a_new_prior_counts_at_once_and_survives_a_kill(models, test_rows, tmp_path):
    x, _ = test_rows
    bundle = load_bundle(models / "own" / "1")
    counts = bundle.class_counts[::-1]
    store = f"sqlite:///{tmp_path}/priors.db"
    want = formula(models, "own", x, tau=1, source=counts)

    def check(url):
        answer = ask(f"{url}/predict", x, tau=1, top_k=CLASSES)
        assert answer["prior"] == {"name": "default", "revision": 1}
        np.testing.assert_allclose(probabilities(answer), want, atol=1e-5)

    with running(models, default_model="own", store=store) as server:
        body = {"label_frequencies": dict(zip(bundle.class_names, counts, strict=True))}
        put = httpx.put(f"{server.url}/models/own/priors/default", json=body)
        assert (put.status_code, put.headers["etag"]) == (201, '"1"')
        check(server.url)
        server.process.kill()
        server.exit()
    with running(models, default_model="own", store=store) as server:
        check(server.url)


def test_serving_needs_no_torch(models):
    code = (
        "import sys; from service.server.assembly.service import Service; "
        "from service.server.serve import serve; "
        "heavy = {'torch', 'training', 'onnx', 'scipy', 'sklearn', 'PIL', 'numpy.random'} & "
        "set(sys.modules); sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
