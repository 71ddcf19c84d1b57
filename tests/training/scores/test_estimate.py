"""Label shift: the prior of unlabelled data is found again, and what the data cannot carry is refused."""

import json

import numpy as np
import pytest

from service.contract.label_shift import PriorEstimate
from training.scores import estimate as module
from training.scores.estimate import EstimateRefused, HeldOut, estimate

CLASSES = 5
SOURCE = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])


def draw(n, prior, *, temperature=1.0, bias=0.0, seed=0, separation=2.0):
    """Logits [n, C] and labels that follow `prior`, of a model that knows the truth under SOURCE, then distorted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=prior)
    x = rng.normal(size=(n, CLASSES)) + separation * np.eye(CLASSES)[labels]
    return (separation * x + np.log(SOURCE) - bias) * temperature, labels


def held_out(n=2000, prior=None, **distortion):
    uniform = np.full(CLASSES, 1 / CLASSES)
    logits, labels = draw(n, uniform if prior is None else prior, seed=99, **distortion)
    return HeldOut(logits, labels, np.log(SOURCE))


def distance(prior, truth):
    return np.abs(np.asarray(prior) - truth).sum() / 2


@pytest.mark.parametrize("prior", [SOURCE, TARGET])
@pytest.mark.parametrize("held_out_prior", [None, SOURCE])
def test_every_estimator_finds_the_prior_of_the_unlabelled_data(prior, held_out_prior):
    logits, labels = draw(3000, prior)
    found = estimate(logits, held_out(prior=held_out_prior), resamples=20)
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    for name, method in found["methods"].items():
        assert distance(method["prior"], truth) < (0.05 if name[:2] == "em" else 0.08), name


def test_the_answer_is_json_with_intervals_around_each_estimate():
    found = estimate(draw(1000, TARGET)[0], held_out(), resamples=50)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["n"], found["n_held_out"], found["recommended"]) == (1000, 2000, "em")
    assert tuple(found["methods"]) == module.METHODS
    for method in found["methods"].values():
        assert sum(method["prior"]) == pytest.approx(1)
        for value, (low, high) in zip(method["prior"], method["interval"], strict=True):
            assert low <= value <= high
        assert 0 < method["effective_n"] <= 1000


def test_temperature_saves_em_from_overconfident_logits():
    logits, labels = draw(3000, TARGET, temperature=3.0, separation=1.2)
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    calibrated = module.by_em(logits, held_out(temperature=3.0, separation=1.2), resamples=2).prior
    raw = module.estimate_prior(module.softmax(logits), source_prior=SOURCE, resamples=2).prior
    assert distance(calibrated, truth) < 0.5 * distance(raw, truth)


def test_a_bias_per_class_saves_em_from_biased_logits():
    bias = np.array([0.8, -0.8, 0.0, 0.8, -0.8])
    logits, labels = draw(3000, TARGET, bias=bias, separation=1.2)
    held = held_out(4000, bias=bias, separation=1.2)
    truth = np.bincount(labels, minlength=CLASSES) / len(labels)
    plain = module.by_em(logits, held, resamples=2).prior
    corrected = module.by_em(logits, held, bcts=True, resamples=2).prior
    assert distance(corrected, truth) < 0.06
    assert distance(corrected, truth) < distance(plain, truth)


def test_too_few_unlabelled_examples_are_refused_by_every_estimator():
    found = estimate(draw(49, TARGET)[0], held_out())
    for method in found["methods"].values():
        assert method == {"refused": "49 unlabelled examples; 5 classes need at least 50"}
    assert found["recommended"] is None


def test_a_class_without_a_held_out_example_is_refused_by_every_estimator():
    found = estimate(draw(500, TARGET)[0], held_out(prior=[0.3, 0.3, 0.4, 0, 0]))
    for method in found["methods"].values():
        assert method["refused"].startswith("2 of 5 classes (the first is class 3) have no")


def test_a_small_held_out_split_refuses_the_bias_per_class_and_keeps_the_rest():
    labels = np.repeat(np.arange(CLASSES), 12)
    logits = held_out(prior=None).logits[:60] * 0 + 4 * np.eye(CLASSES)[labels]
    found = estimate(draw(500, TARGET)[0], HeldOut(logits, labels, np.log(SOURCE)), resamples=5)
    assert "needs 20 validation examples" in found["methods"]["em-bcts"]["refused"]
    assert "prior" in found["methods"]["em"]


def test_a_classifier_that_cannot_tell_two_classes_apart_is_refused_by_the_confusion_methods():
    held = held_out()
    logits, _ = draw(500, TARGET)
    for array in (held.logits, logits):
        array[:, 4] = array[:, 3] - 50
    found = estimate(logits, held, resamples=5)
    for name in ("bbse", "rlls"):
        refused = found["methods"][name]["refused"]
        assert "ill-conditioned" in refused
        assert refused.endswith("classes are never predicted right")


def test_an_ill_conditioned_matrix_is_refused_also_when_every_class_is_sometimes_right():
    mixed = np.array([[50.0, 49.9], [50.0, 50.1]])
    with pytest.raises(EstimateRefused, match=r"ill-conditioned \(1e\+03, at most 100\)$"):
        module.refuse_ill_conditioned(mixed)


def test_bbse_inverts_an_exact_confusion_matrix_exactly():
    rates = np.array([[0.8, 0.3], [0.2, 0.7]])
    prior, target = np.array([0.6, 0.4]), np.array([0.1, 0.9])
    joint = rates * prior
    assert module.solve_bbse(joint, rates @ target, 1, 1) == pytest.approx(target / prior)


def test_bbse_gives_no_negative_weight():
    joint = np.array([[0.4, 0.15], [0.1, 0.35]])
    assert (module.solve_bbse(joint, np.array([0.05, 0.95]), 1, 1) >= 0).all()


def test_rlls_is_bbse_when_data_are_plenty_and_no_shift_when_they_are_none():
    rates = np.array([[0.8, 0.3], [0.2, 0.7]])
    prior, target = np.array([0.6, 0.4]), np.array([0.1, 0.9])
    joint, seen = rates * prior, rates @ target
    plenty = module.solve_rlls(joint, seen, 10**12, 10**12)
    assert plenty == pytest.approx(target / prior, rel=1e-3)
    assert module.solve_rlls(joint, seen, 1, 1) == pytest.approx([1, 1], abs=0.01)


def test_rlls_is_bbse_exactly_until_its_penalty_outweighs_a_misfit():
    rates = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [0.0, 0.1, 0.8]])
    joint = rates / 3
    seen = rates @ np.array([0.2, 0.3, 0.5])
    exact = module.solve_bbse(joint, seen, 1, 1)
    dual = np.linalg.solve(joint.T, exact - 1)
    limit = np.linalg.norm(exact - 1) / np.linalg.norm(dual)

    def strength(size):
        return 0.01 * 2 * 3 * (2 * np.log(120) / (3 * size) + np.sqrt(2 * np.log(120) / size))

    sizes = np.arange(1, 2000)
    fewest = int(sizes[strength(sizes) <= limit][0])  # examples with which the penalty gives way
    for size in (fewest + 5, 100 * fewest):
        assert module.solve_rlls(joint, seen, size, size) == pytest.approx(exact, abs=1e-5)
    shrunk = module.solve_rlls(joint, seen, fewest // 2, fewest // 2)
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

    found = module.solve_rlls(joint, seen, m, n)
    for _ in range(200):
        other = np.maximum(found + 0.05 * rng.normal(size=3), 0)
        assert objective(other) >= objective(found) - 1e-9


def test_intervals_widen_when_the_held_out_split_shrinks():
    logits, _ = draw(2000, TARGET)

    def width(held):
        found = module.by_confusion(logits, held, solve=module.solve_bbse, resamples=100)
        assert isinstance(found, PriorEstimate)
        return (found.high - found.low).mean()

    assert width(held_out(300)) > 1.3 * width(held_out(4000))
