"""How often each 95 % interval contains the truth: simulations of splits with few rows in the tail.

python -m benchmarks.results.coverage [--runs 1000]
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_softmax
from service.contract.scores import error_intervals, negative_log_likelihood
from training.scores.calibrate import calibrate_temperature, choose_tau, log_validation_prior_of
from training.scores.estimate import HeldOut, estimate

Draw = Callable[[np.random.Generator], Vector]


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="simulations of a line")
    runs = parser.parse_args().runs
    for study in (balanced_errors, temperatures, taus, estimates):
        study(runs)


def long_tail(classes: int, largest: int, ratio: float) -> NDArray[np.int64]:
    """Examples of each class: an exponential profile."""
    shares = (1 / ratio) ** (np.arange(classes) / (classes - 1))
    return np.maximum(1, np.floor(largest * shares + 1e-9)).astype(np.int64)


def gaussians(
    rng: np.random.Generator, centres: Vector, labels: NDArray[np.int64], prior: Vector
) -> Vector:
    """Logits of Bayes' rule under `prior`, for points of unit Gaussians around the centres."""
    x = centres[labels] + rng.normal(size=(len(labels), centres.shape[1]))
    logits: Vector = -0.5 * ((x[:, None] - centres) ** 2).sum(axis=2) + np.log(prior)
    return logits


def balanced_errors(runs: int) -> None:
    """Simulate the interval of the balanced error."""
    print("balanced error: rows a class, errors, covered, mean width")
    tail = long_tail(20, 40, 100)
    cases: list[tuple[str, NDArray[np.int64], Draw]] = [
        ("long-tailed, 5-50 %", tail, lambda _: np.linspace(0.05, 0.5, 20)),
        ("long-tailed, 50-5 %", tail, lambda _: np.linspace(0.5, 0.05, 20)),
        (
            "19 of 1000, 1 of 1",
            np.array([1000] * 19 + [1]),
            lambda r: np.r_[[0.02] * 19, r.random()],
        ),
    ]
    for classes, rows in ((50, 1), (20, 2), (20, 3), (10, 5), (10, 10), (10, 40), (10, 1000)):
        for low, high in ((0.02, 0.1), (0.1, 0.6)):
            name = f"{classes} x {rows}, {100 * low:g}-{100 * high:g} %"
            cases.append((name, np.full(classes, rows), _uniform(low, high, classes)))
    for name, totals, draw in cases:
        rng, held, widths = np.random.default_rng(3), 0, 0.0
        for _ in range(runs):
            truth = draw(rng)
            low, high = error_intervals(rng.binomial(totals, truth) / totals, totals).balanced_error
            held += low <= truth.mean() <= high
            widths += high - low
        print(f"  {name:24}{held / runs:8.3f}{widths / runs:8.3f}")


def _uniform(low: float, high: float, classes: int) -> Draw:
    return lambda rng: rng.uniform(low, high, classes)


def temperatures(runs: int) -> None:
    """Simulate the interval of T, and what fitting T costs or gains compared with T = 1."""
    print("temperature: spread, true T, rows, covered, stays 1, NLL fitted, NLL at 1")
    prior, centres = np.array([0.6, 0.3, 0.1]), np.random.default_rng(5).normal(size=(3, 4))
    for spread in (1.0, 2.2):
        for truth in (0.5, 1.0, 2.0):
            for rows in (30, 120, 300):
                found = [
                    _temperature(
                        np.random.default_rng([9, run]), spread * centres, prior, truth, rows
                    )
                    for run in range(runs)
                ]
                held, stays, fitted, plain = np.mean(found, axis=0)
                line = f"  {spread:4}{truth:6}{rows:6}{held:8.3f}{stays:8.3f}"
                print(f"{line}{fitted:9.4f}{plain:9.4f}")


def _temperature(
    rng: np.random.Generator, centres: Vector, prior: Vector, truth: float, rows: int
) -> tuple[float, ...]:
    labels = rng.choice(3, rows + 1000, p=prior)
    f = truth * gaussians(rng, centres, labels, prior)
    log_validation = log_validation_prior_of(labels[:rows], 3)
    found = calibrate_temperature(
        f[:rows],
        labels[:rows],
        log_source_prior=np.log(prior),
        log_validation_prior=log_validation,
    )
    losses = [
        negative_log_likelihood(log_softmax(f[rows:] / t), labels[rows:]) for t in (found.value, 1)
    ]
    held = found.interval[0] <= truth <= found.interval[1]
    return float(held), float(found.why_one is not None), losses[0], losses[1]


def taus(runs: int) -> None:
    """Simulate the interval of the best tau, and what choosing it costs compared with tau = 1."""
    print(
        "tau: classes, largest, covered, worse than tau 1 by over a point, better by over a point"
    )
    for classes, largest in ((10, 500), (50, 200), (2, 1000)):
        found = []
        for run in range(runs):
            rng = np.random.default_rng([7, run])
            counts = np.maximum(2, long_tail(classes, largest, 100))
            prior = counts / counts.sum()
            centres = 0.9 * rng.normal(size=(classes, 8 if classes > 2 else 3))
            val = np.repeat(np.arange(classes), np.maximum(1, counts // 5))
            test = np.repeat(np.arange(classes), 20_000 // classes // 5)
            f, fresh = (gaussians(rng, centres, y, prior) for y in (val, test))
            choice = choose_tau(f, val, log_source_prior=np.log(prior))
            errors = {
                tau: float(((fresh - tau * np.log(prior)).argmax(1) != test).mean())
                for tau, _ in choice.curve
            }
            best = min(errors, key=errors.__getitem__)
            cost = 100 * (errors[choice.chosen] - errors[1.0])
            found.append((choice.interval[0] <= best <= choice.interval[1], cost > 1, cost < -1))
        print(f"  {classes:4}{largest:6}", *(f"{value:8.3f}" for value in np.mean(found, axis=0)))


def estimates(runs: int) -> None:
    """Simulate the intervals and effective rows of a prior estimate, for small validation
    splits.
    """
    print("estimate: validation rows, covered, effective rows said, really, usable")
    centres = 1.1 * np.random.default_rng([5, 99]).normal(size=(5, 4))
    counts = long_tail(5, 1000, 20)
    prior = counts / counts.sum()
    target = prior[::-1]
    for validation in ([400, 188, 89, 42, 20], [20] * 5, [200] * 5):
        hits, said, errors, usable = [], [], [], []
        for run in range(runs):
            rng = np.random.default_rng([11, run])
            val, new = np.repeat(np.arange(5), validation), rng.choice(5, 1500, p=target)
            held = HeldOut(1.7 * gaussians(rng, centres, val, prior), val, np.log(prior))
            found = estimate(1.7 * gaussians(rng, centres, new, prior), held.measured())
            em = found["methods"]["em"]
            low, high = np.transpose(em["interval"])
            hits.append(((low <= target) & (target <= high)).mean())
            said.append(em["effective_n"])
            errors.append(((np.array(em["prior"]) - target) ** 2).sum())
            usable.append(found["verdict"] == "usable")
        really = (target * (1 - target)).sum() / np.mean(errors)
        numbers = f"{np.mean(hits):8.3f}{np.mean(said):8.0f}{really:8.0f}{np.mean(usable):8.2f}"
        print(f"  {validation!s:28}{numbers}")


if __name__ == "__main__":
    main()
