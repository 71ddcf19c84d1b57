"""The accuracy of the live balanced error from few labels, and the coverage of its interval.

python -m benchmarks.results.feedback [--model models/fashion/2 --data fashion-mnist --draws 40]

A stream of 4,000 rows is drawn from the test split and answered at a uniform target. Labels are
drawn at random, or 8 times as often where the answer is unsure. The truth is the balanced error of
the same decisions on the whole test split. Rows are kept as the service keeps them: five classes
each, under the estimated mix of the stream.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.shift import drawn, mix_of, scored
from service.contract.adjustment import Vector, log_target_prior, softmax
from service.contract.shift.verdict import assess
from service.evaluate.ppi import Labelled, Predicted, figures, without_labels
from service.evaluate.ring import TOP

ROWS = 4000


def main() -> None:
    """Print bias, root mean square error and coverage of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/2"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--draws", type=int, default=40)
    options = parser.parse_args()
    logits, labels, block, counts, *_ = scored(options.model, options.data)
    classes = len(counts)
    uniform = np.full(classes, 1 / classes)
    scores = logits["test"] / block.temperature - block.log_source
    decided = (scores + log_target_prior(uniform)).argmax(axis=1)
    unsure = softmax(scores).max(axis=1) < 0.8
    wrong = decided != labels["test"]
    truth = float(np.mean([wrong[labels["test"] == y].mean() for y in range(classes)]))
    print(f"balanced error on the whole test split: {100 * truth:.2f} %; points over draws")
    for stream in ("training", "uniform"):
        prior = mix_of(stream, counts, np.random.default_rng(0))
        for m in (100, 300, 1000):
            for name, factor in (("random", 1.0), ("8 x where unsure", 8.0)):
                found: dict[str, list[tuple[float, float, float]]] = {}
                for draw in range(options.draws):
                    rng = np.random.default_rng([draw, m, len(name), len(stream)])
                    rows = drawn(labels["test"], prior, ROWS, rng)
                    estimated = assess(
                        logits["test"][rows],
                        temperature=block.temperature,
                        log_source=block.log_source,
                        current=counts / counts.sum(),
                        calibration=block,
                        class_frequencies=counts,
                    ).estimate.prior
                    chance = softmax(scores[rows] + log_target_prior(estimated))
                    everything = kept(chance, decided[rows])
                    likelihood = np.where(unsure[rows], factor, 1.0)
                    likelihood *= m / likelihood.sum()
                    chosen = np.flatnonzero(rng.random(ROWS) < likelihood)
                    sampled = np.minimum(1.0, likelihood[chosen])
                    y = labels["test"][rows][chosen]
                    reported = figures(
                        everything,
                        Labelled(everything.take(chosen), y, 1 / sampled),
                        groups={},
                        classes=classes,
                        seed=draw,
                    ).balanced_error
                    bare = [
                        wrong[rows][chosen][y == c].mean() for c in range(classes) if (y == c).any()
                    ]
                    alone = without_labels(everything, groups={}, classes=classes)
                    for way, value in (
                        ("PPI", reported),
                        ("labels only", (float(np.mean(bare)), 0.0, 0.0)),
                        ("posterior alone", (alone["balanced_error"], 0.0, 0.0)),
                    ):
                        found.setdefault(way, []).append(tuple(value))
                for way, values in found.items():
                    value, low, high = np.array(values).T
                    error = 100 * (value - truth)
                    covered = np.mean((low <= truth) & (truth <= high))
                    print(
                        f"{stream:9} {m:5} labels, {name:17} {way:16} bias {error.mean():6.2f} "
                        f"RMSE {np.sqrt((error**2).mean()):5.2f}"
                        + (f" coverage {covered:.2f}" if way == "PPI" else ""),
                        flush=True,
                    )


def kept(chances: Vector, decided: Any) -> Predicted:
    """The part of posteriors [n, C] that the service keeps: the most probable classes."""
    top = np.argsort(-chances, axis=1, kind="stable")[:, :TOP]
    own = np.take_along_axis(chances, top, axis=1)
    return Predicted(top, own / own.sum(axis=1, keepdims=True), decided)


if __name__ == "__main__":
    main()
