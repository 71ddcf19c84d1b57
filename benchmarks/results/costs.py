"""The savings of decisions by cost compared with the best target alone, on random cost matrices.

python -m benchmarks.results.costs [--model models/fashion/2 --data fashion-mnist --draws 6]

Streams of 2,000 rows are drawn from the test split to four class mixes; the prior is estimated from
them, and 5,000 fresh rows are scored. The mean cost of an answer is compared with three decisions
of a prior without costs: the most probable class as trained, under the true mix, and under the true
mix times the mean cost of missing each class. The cheapest of the three is the baseline.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.shift import drawn, mix_of, scored
from service.contract.adjustment import Vector, log_target_prior, softmax
from service.contract.members.costs import REJECTED, Costs
from service.contract.shift.verdict import assess

STREAMS = ("training", "uniform", "reversed", "dirichlet")


def main() -> None:
    """Print a table for each kind of cost matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/2"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--draws", type=int, default=6)
    options = parser.parse_args()
    logits, labels, block, counts, *_ = scored(options.model, options.data)
    for kind in ("random matrix", "one pair 20 times", "a rare class 10 times", "reject at 0.2"):
        print(f"{kind}: mean cost of 100 answers, mean ± sd over {options.draws} draws")
        for stream in STREAMS:
            found: dict[str, list[float]] = {}
            wins = 0
            for draw in range(options.draws):
                rng = np.random.default_rng([draw, len(stream), len(kind)])
                prior = mix_of(stream, counts, rng)
                seen, fresh = (drawn(labels["test"], prior, n, rng) for n in (2000, 5000))
                estimated = assess(
                    logits["test"][seen],
                    temperature=block.temperature,
                    log_source=block.log_source,
                    current=counts / counts.sum(),
                    calibration=block,
                    class_frequencies=counts,
                ).estimate.prior
                f, truth = logits["test"][fresh], labels["test"][fresh]
                costs, matrix = costs_of(kind, counts, rng)

                def scores(target: Vector, f: Any = f) -> Vector:
                    adjusted: Vector = (
                        f / block.temperature - block.log_source + log_target_prior(target)
                    )
                    return adjusted

                row_cost = matrix.sum(axis=1) / (len(matrix) - 1)
                decided = {
                    "most probable, as trained": f.argmax(axis=1),
                    "most probable, true mix": scores(prior).argmax(axis=1),
                    "target = mix x row cost": scores(prior * row_cost).argmax(axis=1),
                    "by cost, estimated mix": costs.decide(softmax(scores(estimated))).index,
                    "by cost, true mix": costs.decide(softmax(scores(prior))).index,
                }
                paid = {
                    name: mean_cost(matrix, costs.reject, truth, each)
                    for name, each in decided.items()
                }
                wins += paid["by cost, estimated mix"] < min(list(paid.values())[:3])
                for name, cost in paid.items():
                    found.setdefault(name, []).append(cost)
            print(f"  {stream}: by cost with the estimated mix is cheapest in {wins} draws")
            for name, values in found.items():
                mean, sd = np.mean(values), np.std(values, ddof=1)
                print(f"    {name:28}{100 * mean:8.1f} ± {100 * sd:.1f}", flush=True)


def costs_of(kind: str, counts: Vector, rng: np.random.Generator) -> tuple[Costs, Vector]:
    """Draw costs of a kind; return them, and their matrix [C, C] by true and decided class."""
    classes = len(counts)
    matrix = 1.0 - np.eye(classes)
    rare = int(counts.argmin())
    reject = None
    if kind == "random matrix":
        matrix *= rng.uniform(1, 10, (classes, classes))
    elif kind == "one pair 20 times":
        y, k = rng.choice(classes, 2, replace=False)
        matrix[y, k] = 20.0
    elif kind == "a rare class 10 times":
        matrix[rare] *= 10.0
    else:
        reject = 0.2
    return Costs(reject, matrix=matrix), matrix


def mean_cost(matrix: Vector, reject: float | None, truth: Any, decided: Any) -> float:
    """The mean cost per row of the decisions, given the true classes."""
    paid = np.where(decided == REJECTED, reject or 0.0, matrix[truth, np.maximum(decided, 0)])
    return float(paid.mean())


if __name__ == "__main__":
    main()
