"""How often each 95 % interval contains the truth: simulations of splits with few rows in the tail.

    python -m benchmarks.results.coverage OUT [--runs 1000] [--only errors ...] [--docs docs]

OUT keeps one file per study, so studies can run at the same time. With --docs, the finished ones
become a section of DOCS/results.md, and DOCS/results/coverage.json.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results.text import spliced
from service.contract.adjustment import Vector, log_softmax
from service.contract.scores import (
    error_intervals,
    negative_log_likelihood,
    proportion_interval,
)
from training.pages.page import markdown_table
from training.scores.calibrate import calibrate_temperature, choose_tau, log_validation_prior_of
from training.scores.estimate import HeldOut, estimate

Draw = Callable[[np.random.Generator], Vector]
Rows = list[list[Any]]
HEADING = "How often the intervals hold"


def main() -> None:
    """Run the requested simulations, save them, and show all saved results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--runs", type=int, default=1000, help="simulations for each line of a table"
    )
    parser.add_argument("--only", nargs="*", choices=tuple(STUDIES), default=tuple(STUDIES))
    parser.add_argument("--docs", type=Path, help="put the section into DOCS/results.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found = {"runs": options.runs, "rows": STUDIES[name](options.runs)}
        file = options.out / f"{name}.json"
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    files = {name: options.out / f"{name}.json" for name in STUDIES}
    found = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.exists()
    }
    print(section(found))
    if options.docs is not None:
        text = json.dumps(found, indent=1) + "\n"
        (options.docs / "results" / "coverage.json").write_text(text, encoding="utf-8")
        page = options.docs / "results.md"
        whole = with_section(page.read_text(encoding="utf-8"), options.docs)
        page.write_text(whole, encoding="utf-8")


def with_section(text: str, docs: Path) -> str:
    """Return the text of results.md with this section, if DOCS holds the section's figures."""
    file = docs / "results" / "coverage.json"
    if not file.exists():
        return text
    found = json.loads(file.read_text(encoding="utf-8"))
    return spliced(text, HEADING, section(found), before="Each setting")


def section(found: dict[str, Any]) -> str:
    """The tables of all studies, with the number of simulations of a line."""
    parts = [LEAD]
    for name, study in found.items():
        rows = [
            [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in study["rows"]
        ]
        parts += [
            f"{TITLES[name]} Each row has n = {study['runs']:,} simulations.",
            markdown_table(HEADERS[name], rows).strip(),
        ]
    return "\n\n".join(parts)


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


def errors(runs: int) -> Rows:
    """Wilson's interval of one class's error."""
    found: Rows = []
    for n in (1, 2, 5, 20, 100):
        for low, high in ((0.0, 0.1), (0.1, 0.6), (0.0, 1.0)):
            rng, held, widths = np.random.default_rng(2), 0, 0.0
            for _ in range(runs):
                truth = rng.uniform(low, high)
                least, most = proportion_interval(rng.binomial(n, truth) / n, n)
                held += least <= truth <= most
                widths += most - least
            percent = f"{100 * low:g} … {100 * high:g}"
            found.append([n, percent, 100 * held / runs, 100 * widths / runs])
    return found


def balanced_errors(runs: int) -> Rows:
    """The interval of the balanced error."""
    lines: Rows = []
    tail = long_tail(20, 40, 100)
    cases: list[tuple[str, NDArray[np.int64], Draw]] = [
        ("20 classes of 40 … 1, 5 … 50 %", tail, lambda _: np.linspace(0.05, 0.5, 20)),
        ("20 classes of 40 … 1, 50 … 5 %", tail, lambda _: np.linspace(0.5, 0.05, 20)),
        (
            "19 classes of 1,000 and 1 of 1, 2 % and 0 … 100 %",
            np.array([1000] * 19 + [1]),
            lambda r: np.r_[[0.02] * 19, r.random()],
        ),
    ]
    for classes, rows in ((50, 1), (20, 2), (20, 3), (10, 5), (10, 10), (10, 40), (10, 1000)):
        for low, high in ((0.02, 0.1), (0.1, 0.6)):
            name = f"{classes} classes of {rows:,}, {100 * low:g} … {100 * high:g} %"
            cases.append((name, np.full(classes, rows), _uniform(low, high, classes)))
    for name, totals, draw in cases:
        rng, held, widths = np.random.default_rng(3), 0, 0.0
        for _ in range(runs):
            truth = draw(rng)
            low, high = error_intervals(rng.binomial(totals, truth) / totals, totals).balanced_error
            held += low <= truth.mean() <= high
            widths += high - low
        lines.append([name, 100 * held / runs, 100 * widths / runs])
    return lines


def _uniform(low: float, high: float, classes: int) -> Draw:
    return lambda rng: rng.uniform(low, high, classes)


def temperatures(runs: int) -> Rows:
    """The interval of T, and the loss or gain of fitting T compared with T = 1."""
    lines: Rows = []
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
                numbers = [100 * float(held), 100 * float(stays), float(fitted), float(plain)]
                lines.append([f"{spread:g}", f"{truth:g}", rows, *numbers])
    return lines


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


def long_tailed_temperatures(runs: int) -> Rows:
    """The interval of T where most classes have few rows or none."""
    lines: Rows = []
    for classes, rows in ((20, 100), (20, 400), (100, 300), (300, 300), (300, 1000)):
        counts = np.maximum(2, long_tail(classes, 200, 100))
        prior, found, without = counts / counts.sum(), [], []
        for run in range(runs):
            rng = np.random.default_rng([9, run])
            centres = 0.9 * rng.normal(size=(classes, 8))
            labels = rng.choice(classes, rows, p=prior)
            fitted = calibrate_temperature(
                gaussians(rng, centres, labels, prior),
                labels,
                log_source_prior=np.log(prior),
                log_validation_prior=log_validation_prior_of(labels, classes),
            )
            low, high = fitted.interval
            found.append((low <= 1 <= high, high < 1, low > 1))
            without.append(classes - len(np.unique(labels)))
        shares = [100 * float(x) for x in np.mean(found, axis=0)]
        lines.append([classes, rows, float(np.mean(without)), *shares])
    return lines


def taus(runs: int) -> Rows:
    """The interval of the best tau, and the cost of choosing it compared with tau = 1."""
    lines: Rows = []
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
        lines.append([classes, largest, *(100 * float(x) for x in np.mean(found, axis=0))])
    return lines


def estimates(runs: int) -> Rows:
    """The intervals and effective rows of a prior estimate, for small validation splits."""
    lines: Rows = []
    centres = 1.1 * np.random.default_rng([5, 99]).normal(size=(5, 4))
    counts = long_tail(5, 1000, 20)
    prior = counts / counts.sum()
    target = prior[::-1]
    splits = ([400, 188, 89, 42, 20], [20] * 5, [200] * 5)
    for validation, size in itertools.product(splits, (500, 2000)):
        hits, said, errors, usable = [], [], [], []
        for run in range(runs):
            rng = np.random.default_rng([11, run])
            val, new = np.repeat(np.arange(5), validation), rng.choice(5, size, p=target)
            held = HeldOut(1.7 * gaussians(rng, centres, val, prior), val, np.log(prior))
            found = estimate(1.7 * gaussians(rng, centres, new, prior), held.measured())
            em = found["methods"]["em"]
            low, high = np.transpose(em["interval"])
            hits.append(((low <= target) & (target <= high)).mean())
            said.append(em["effective_n"])
            errors.append(((np.array(em["prior"]) - target) ** 2).sum())
            usable.append(found["verdict"] == "usable")
        really = (target * (1 - target)).sum() / np.mean(errors)
        covered, usual = 100 * float(np.mean(hits)), 100 * float(np.mean(usable))
        rows = ", ".join(map(str, validation))
        lines.append([rows, size, covered, float(np.mean(said)), float(really), usual])
    return lines


LEAD = """Every interval of `training` and of the service is meant to contain the truth with 95 %
probability. To check this, rows are simulated from a known truth
(`python -m benchmarks.results.coverage`). “Covered” is the share of simulations whose interval
contains it. The validation splits are as small as a long tail makes them."""
STUDIES: dict[str, Callable[[int], Rows]] = {
    "errors": errors,
    "balanced-errors": balanced_errors,
    "temperatures": temperatures,
    "long-tailed-temperatures": long_tailed_temperatures,
    "taus": taus,
    "estimates": estimates,
}
TITLES = {
    "errors": (
        "**Error of one class** (Wilson's interval). The true error is drawn evenly from a range."
    ),
    "balanced-errors": (
        "**Balanced error**. The true errors of the classes are drawn from a range, or spread over "
        "it evenly."
    ),
    "temperatures": (
        "**Temperature** T of three Gaussian classes whose logits are T times too large. “Stays 1” "
        "is the share of splits that do not determine T, which then stays 1. NLL is the negative "
        "log-likelihood of new rows, in nats."
    ),
    "long-tailed-temperatures": (
        "**Temperature** T of Gaussian classes with a profile of ratio 100, drawn at random, whose "
        "true T is 1. Most classes have few validation rows or none."
    ),
    "taus": (
        "**τ** of Gaussian classes whose validation rows are a fifth of a profile of ratio 100. "
        "“Worse” and “better” are the shares of simulations in which the balanced error of the "
        "chosen τ is over a point above or below that of τ = 1."
    ),
    "estimates": (
        "**Estimate of a class mix** by expectation maximisation, from unlabelled rows of five "
        "Gaussian classes whose mix is that of training reversed. “Said” and “really” are how "
        "many labelled rows would give an equally exact estimate, by its own account and in truth. "
        "“Usable” is the share of estimates with that verdict, and only those are recommended."
    ),
}
HEADERS = {
    "errors": ["rows", "true error, %", "covered, %", "mean width, points"],
    "balanced-errors": ["split, and true errors", "covered, %", "mean width, points"],
    "temperatures": [
        *("spread", "T", "rows", "covered, %", "stays 1, %", "NLL fitted", "NLL at T = 1"),
    ],
    "long-tailed-temperatures": [
        *("classes", "rows", "classes without a row", "covered, %", "interval below, %"),
        "interval above, %",
    ],
    "taus": ["classes", "largest", "covered, %", "worse, %", "better, %"],
    "estimates": ["validation rows", "rows", "covered, %", "said", "really", "usable, %"],
}


if __name__ == "__main__":
    main()
