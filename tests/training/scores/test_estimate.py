"""Label shift: the prior of unlabelled data is found, or refused where data cannot support it."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar, nnls

from service.contract.adjustment import softmax
from service.contract.shift import label_shift
from service.contract.shift.verdict import assess
from training.scores import estimate as module
from training.scores.estimate import EstimateRefused, HeldOut, estimate

CLASSES = 5
SOURCE = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])


def draw(n, prior, *, temperature=1.0, bias=0.0, seed=0, separation=2.0):
    """Logits [n, C] and labels that follow `prior`: the truth under SOURCE, then distorted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=prior)
    x = rng.normal(size=(n, CLASSES)) + separation * np.eye(CLASSES)[labels]
    return (separation * x + np.log(SOURCE) - bias) * temperature, labels


def held_out(n=2000, prior=None, **distortion):
    uniform = np.full(CLASSES, 1 / CLASSES)
    logits, labels = draw(n, uniform if prior is None else prior, seed=99, **distortion)
    return HeldOut(logits, labels, np.log(SOURCE))


@pytest.fixture(scope="module")
def block():
    return held_out().measured(class_frequencies=SOURCE)


def distance(prior, truth):
    return np.abs(np.asarray(prior) - truth).sum() / 2


@pytest.mark.parametrize("prior", [SOURCE, TARGET])
@pytest.mark.parametrize("held_out_prior", [None, SOURCE])
def test_every_estimator_finds_the_prior_of_the_unlabelled_data(prior, held_out_prior):
    logits, labels = draw(3000, prior)
    found = estimate(logits, held_out(prior=held_out_prior).measured())
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    for name, method in found["methods"].items():
        assert distance(method["prior"], truth) < (0.05 if name == "em" else 0.08), name


def test_the_answer_is_json_with_intervals_around_each_estimate(block):
    found = estimate(draw(1000, TARGET)[0], block, class_frequencies=SOURCE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["n"], found["n_held_out"], found["recommended"]) == (1000, 2000, "em")
    assert found["verdict"] == "usable"
    assert tuple(found["methods"]) == module.METHODS
    for method in found["methods"].values():
        assert sum(method["prior"]) == pytest.approx(1)
    em = found["methods"]["em"]
    for value, (low, high) in zip(em["prior"], em["interval"], strict=True):
        assert low <= value <= high
    assert 0 < em["effective_n"] <= 1000
    assert sum(found["candidate"]) == pytest.approx(1)


def test_the_estimate_is_the_services_own_to_the_last_digit(block):
    logits = draw(1000, TARGET)[0].astype(np.float32)
    uniform = np.full(CLASSES, 1 / CLASSES)
    offline = estimate(logits, block, class_frequencies=SOURCE, current=uniform)
    online = assess(
        logits,
        temperature=block.temperature,
        log_source=block.log_source,
        current=uniform,
        calibration=block,
        class_frequencies=SOURCE,
        capacity=4096,
    )
    assert offline["methods"]["em"]["prior"] == online.estimate.prior.tolist()
    assert offline["candidate"] == online.candidate.tolist()
    assert offline["evidence"] == online.evidence()


def test_temperature_saves_em_from_overconfident_logits():
    logits, labels = draw(3000, TARGET, temperature=3.0, separation=1.2)
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    found = estimate(logits, held_out(temperature=3.0, separation=1.2).measured())
    raw = label_shift.em_prior(softmax(logits), source_prior=SOURCE)
    assert distance(found["methods"]["em"]["prior"], truth) < 0.5 * distance(raw, truth)


def test_a_bias_per_class_saves_em_from_biased_logits():
    bias = np.array([0.8, -0.8, 0.0, 0.8, -0.8])
    logits, labels = draw(3000, TARGET, bias=bias, separation=1.2)
    measured = held_out(4000, bias=bias, separation=1.2).measured()
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    plain = label_shift.em_prior(softmax(logits), source_prior=SOURCE)
    corrected = estimate(logits, measured)["methods"]["em"]["prior"]
    assert measured.calibration == "bias"
    assert distance(corrected, truth) < 0.06
    assert distance(corrected, truth) < distance(plain, truth)


def test_the_intervals_hold_the_truth_with_twenty_rows_in_the_rarest_class():
    """At least 90 of 100 do, and the effective number is near what the errors say."""
    hits, said, errors = [], [], []
    for seed in range(25):
        counts = np.array([240, 80, 40, 24, 20])
        rng = np.random.default_rng([11, seed])
        labels = np.repeat(np.arange(CLASSES), counts)
        x = rng.normal(size=(len(labels), CLASSES)) + 1.6 * np.eye(CLASSES)[labels]
        held = HeldOut((1.6 * x + np.log(SOURCE)) * 1.7, labels, np.log(SOURCE))
        logits, _ = draw(1500, TARGET, temperature=1.7, separation=1.6, seed=seed)
        found = estimate(logits, held.measured())["methods"]["em"]
        prior, interval = np.array(found["prior"]), np.array(found["interval"])
        hits.extend((interval[:, 0] <= TARGET) & (interval[:, 1] >= TARGET))
        said.append(found["effective_n"])
        errors.append(((prior - TARGET) ** 2).sum())
    really = (TARGET * (1 - TARGET)).sum() / np.mean(errors)
    assert np.mean(hits) >= 0.9
    assert 0.5 * really < np.median(said) < 2 * really


def test_too_few_unlabelled_examples_are_refused_by_every_estimator(block):
    found = estimate(draw(49, TARGET)[0], block)
    assert found["verdict"] == "too_little_traffic"
    assert found["methods"]["em"]["refused"].startswith("there are 49 rows, but 5 classes")
    assert found["recommended"] is None
    assert found["candidate"] is None


def test_a_class_without_a_held_out_example_is_refused_by_every_estimator():
    with pytest.raises(EstimateRefused, match=r"2 of 5 classes \(the first is class 3\) have no"):
        held_out(prior=[0.3, 0.3, 0.4, 0, 0]).measured()
    with pytest.raises(EstimateRefused, match=r"\(the first is 'lynx'\)"):
        held_out(prior=[0.3, 0.3, 0.4, 0, 0]).measured(
            class_names=("cat", "dog", "eel", "lynx", "owl")
        )


def test_a_small_held_out_split_refuses_the_bias_per_class_and_keeps_the_rest():
    """The whole estimate is refused, since its intervals would not hold; the cross-check stays."""
    labels = np.repeat(np.arange(CLASSES), 12)
    rng = np.random.default_rng(0)
    logits = 4 * np.eye(CLASSES)[labels] + rng.normal(size=(60, CLASSES))
    found = estimate(draw(500, TARGET)[0], HeldOut(logits, labels, np.log(SOURCE)).measured())
    assert found["verdict"] == "uncalibrated"
    assert "has 12 validation rows, but 20 are needed" in found["methods"]["em"]["refused"]
    assert "prior" in found["methods"]["bbse"]


def test_a_classifier_that_cannot_tell_two_classes_apart_is_refused_by_the_confusion_methods():
    held = held_out()
    logits, _ = draw(500, TARGET)
    for array in (held.logits, logits):
        array[:, 4] = array[:, 3] - 50
    refused = estimate(logits, held.measured())["methods"]["bbse"]["refused"]
    assert "ill-conditioned" in refused
    assert "classes are never predicted correctly; use the estimate by" in refused


def test_an_ill_conditioned_matrix_is_refused_also_when_every_class_is_sometimes_right(block):
    mixed = np.eye(CLASSES, dtype=int) + 50
    found = estimate(draw(500, TARGET)[0], block.model_copy(update={"confusion": mixed.tolist()}))
    assert found["methods"]["bbse"]["refused"] == (
        f"the confusion matrix is ill-conditioned ({label_shift.condition_of(mixed):.3g}, "
        "at most 100); use the estimate by expectation maximisation"
    )


def test_without_a_confusion_matrix_there_is_no_cross_check(block):
    found = estimate(draw(500, TARGET)[0], block.model_copy(update={"confusion": None}))
    assert "too many for a confusion matrix" in found["methods"]["bbse"]["refused"]
    assert found["evidence"]["em_bbse_l1"] is None


def solve_bbse(joint, rates):
    return nnls(joint, rates)[0]


def test_bbse_inverts_an_exact_confusion_matrix_exactly():
    rates = np.array([[0.8, 0.3], [0.2, 0.7]])
    prior, target = np.array([0.6, 0.4]), np.array([0.1, 0.9])
    found = label_shift.bbse_prior(1000 * rates * prior, 1000 * rates @ target)
    assert found == pytest.approx(target)
    assert solve_bbse(rates * prior, rates @ target) * prior == pytest.approx(found)


def test_bbse_gives_no_negative_weight():
    joint = np.array([[0.4, 0.15], [0.1, 0.35]])
    assert (label_shift.bbse_prior(joint, np.array([0.05, 0.95])) >= 0).all()


def solve_rlls(confusion, rates, m, n):
    """RLLS (Azizzadenesheli et al., ICLR 2019), which the product left out: see the tests below.

    min |C (1 + theta) - mu| + strength * |theta|, theta >= -1, with alpha = 0.01, delta = 0.05. A
    minimum of the sum of two norms is one of the sum of their squares for some ratio of the two.
    """
    classes = len(rates)
    log_term = np.log(2 * classes / 0.05)
    strength = 0.01 * sum(
        3 * (2 * log_term / (3 * size) + np.sqrt(2 * log_term / size)) for size in (m, n)
    )
    target = rates - confusion.sum(axis=1)

    def weights(log_ridge):
        root = np.exp(log_ridge / 2)
        design = np.concatenate([confusion, root * np.eye(classes)])
        return solve_bbse(design, np.concatenate([rates, np.full(classes, root)]))

    def objective(log_ridge):
        theta = weights(log_ridge) - 1
        return np.linalg.norm(confusion @ theta - target) + strength * np.linalg.norm(theta)

    best = minimize_scalar(objective, bounds=(-30, 10), method="bounded", options={"xatol": 0.05})
    return weights(float(best.x))


def test_rlls_is_bbse_when_data_are_plenty_and_no_shift_when_they_are_none():
    rates = np.array([[0.8, 0.3], [0.2, 0.7]])
    prior, target = np.array([0.6, 0.4]), np.array([0.1, 0.9])
    joint, seen = rates * prior, rates @ target
    plenty = solve_rlls(joint, seen, 10**12, 10**12)
    assert plenty == pytest.approx(target / prior, rel=1e-3)
    assert solve_rlls(joint, seen, 1, 1) == pytest.approx([1, 1], abs=0.01)


def test_rlls_is_bbse_exactly_until_its_penalty_outweighs_a_misfit():
    rates = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [0.0, 0.1, 0.8]])
    joint = rates / 3
    seen = rates @ np.array([0.2, 0.3, 0.5])
    exact = solve_bbse(joint, seen)
    dual = np.linalg.solve(joint.T, exact - 1)
    limit = np.linalg.norm(exact - 1) / np.linalg.norm(dual)

    def strength(size):
        return 0.01 * 2 * 3 * (2 * np.log(120) / (3 * size) + np.sqrt(2 * np.log(120) / size))

    sizes = np.arange(1, 2000)
    fewest = int(sizes[strength(sizes) <= limit][0])  # examples with which the penalty gives way
    for size in (fewest + 5, 100 * fewest):
        assert solve_rlls(joint, seen, size, size) == pytest.approx(exact, abs=1e-5)
    shrunk = solve_rlls(joint, seen, fewest // 2, fewest // 2)
    assert np.linalg.norm(shrunk - 1) < 0.9 * np.linalg.norm(exact - 1)


def test_no_other_weights_have_a_lower_rlls_objective():
    rng = np.random.default_rng(0)
    rates = np.array([[0.8, 0.3, 0.1], [0.1, 0.6, 0.2], [0.1, 0.1, 0.7]])
    joint = rates * np.array([0.5, 0.3, 0.2])
    seen = rates @ np.array([0.2, 0.2, 0.6])
    m = n = 50_000
    strength = 0.01 * 2 * 3 * (2 * np.log(120) / (3 * m) + np.sqrt(2 * np.log(120) / m))

    def objective(w):
        return np.linalg.norm(joint @ w - seen) + strength * np.linalg.norm(w - 1)

    found = solve_rlls(joint, seen, m, n)
    for _ in range(200):
        other = np.maximum(found + 0.05 * rng.normal(size=3), 0)
        assert objective(other) >= objective(found) - 1e-9


def test_intervals_widen_when_the_held_out_split_shrinks():
    logits, _ = draw(2000, TARGET)

    def width(held):
        interval = estimate(logits, held.measured())["methods"]["em"]["interval"]
        return np.mean([high - low for low, high in interval])

    assert width(held_out(300)) > 1.3 * width(held_out(4000))
