"""What the adjustment head costs on a large class list, beside the plain model: one graph call, one thread.

    python -m benchmarks.large_head [--classes 8142 100000] [--rows 1 16] [--features 256] [--out FILE.json]

A linear layer of that many classes is about the cheapest model that they can have, so the head's share is the largest that it can be. `plain`
is session.run of the model as it is; `ranked` what a prediction asks of the composed graph (top 5, the answer at tau 0 and their
probabilities: no array of all classes leaves the graph); `logits` the same with the logits for previews; `all` with all probabilities
and logits, as a client may ask. µs, the best of the rounds, which take turns; `difference` is the largest of a probability from float64.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service import head
from service.contract.adjustment import softmax
from tests.service.small_models import linear_model, weights

ROUNDS, ROUND_SECONDS = 7, 0.05
PRIORS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[8142, 100_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = []
    print(
        f"{'classes':>8s}{'rows':>6s}{'plain':>9s}{'ranked':>9s}{'logits':>9s}{'all':>9s}"
        f"{'ranked/plain':>14s}{'difference':>12s}"
    )
    for classes in given.classes:
        for rows in given.rows:
            line = measure(classes, rows, given.features)
            lines.append(line)
            print(
                f"{classes:8d}{rows:6d}{line['plain']:9.0f}{line['ranked']:9.0f}{line['logits']:9.0f}{line['all']:9.0f}"
                f"{line['ranked'] / line['plain']:14.2f}{line['difference']:12.1e}"
            )
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(lines, indent=2) + "\n")


def measure(classes: int, rows: int, features: int) -> dict[str, float]:
    """One line of the table."""
    model = linear_model(features=features, classes=classes)
    plain = opened(model.SerializeToString())
    head.compose(model, output="logits", kind="logits")
    composed = opened(model.SerializeToString())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    table = rng.normal(size=(PRIORS, classes)).astype(np.float32)
    tau, index = rng.uniform(0, 2, rows).astype(np.float32), rng.integers(0, PRIORS, rows)
    feeds = {
        "x": x,
        head.TAU: tau,
        head.PRIOR_INDEX: index,
        head.PRIOR_TABLE: table,
        head.TOP_K: np.array([5]),
        head.FULL_ROWS: np.array([0]),
    }
    calls: dict[str, Callable[[], object]] = {"plain": lambda: plain.run(None, {"x": x})}
    for name, more in (("ranked", []), ("logits", [head.LOGITS]), ("all", [*head.FULL])):
        names = [*head.RANKED, *more]
        full = {**feeds, head.FULL_ROWS: np.array([rows if name == "all" else 0])}
        calls[name] = lambda names=names, full=full: composed.run(names, full)
    w, b = weights(features, classes)
    wanted = softmax(x.astype(np.float64) @ w + b - tau[:, None].astype(np.float64) * table[index])
    found = composed.run([head.TOP_INDEX, head.TOP_PROBABILITY], feeds)
    difference = np.abs(found[1] - np.take_along_axis(wanted, found[0], axis=1)).max()
    return {
        "classes": classes,
        "rows": rows,
        **best_of_rounds(calls),
        "difference": float(difference),
    }


def opened(serialized: bytes) -> ort.InferenceSession:
    """On the CPU, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def best_of_rounds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """µs of each call."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            count, begun = 0, time.perf_counter()
            while (passed := time.perf_counter() - begun) < ROUND_SECONDS:
                call()
                count += 1
            best[name] = min(best[name], 1e6 * passed / count)
    return best


if __name__ == "__main__":
    main()
