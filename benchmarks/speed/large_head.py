"""The cost of the adjustment head for a large class list, compared with the plain model.

    python -m benchmarks.speed.large_head [--classes 10 8142 100000] [--rows 1 16 64]
        [--top-k 5] [--features 256] [--out FILE.json]

Each figure is the CPU time of one graph call on one thread, in µs: the best of several rounds, in
which the columns take turns. The model is one linear layer. A model with that many classes can
hardly be cheaper, so the head's share of the time is about the largest possible.

The columns:

    plain        session.run of the model without a head
    whole        what a prediction asks of the composed graph (the top k, the answer at tau 0, and
                 their probabilities), selected among all classes at once (service/graph/ranking.py)
    blocks       the same, selected block by block
    shared       blocks, where all rows have the same tau and prior; elsewhere each has its own
    small        the same as whole with the head of a small class list, which has only one selection
    numpy        fetches both arrays of logits and finds the classes with NumPy (argpartition,
                 argmax), without probabilities
    logits       blocks, and the logits, as previews need them
    all          blocks, and all probabilities and logits, as a client may request them
    ruled        blocks, under priors that exclude 9 of 10 classes
    ruled small  small, under the same priors
    difference   the largest difference of a probability from a float64 computation
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.contract.adjustment import softmax
from service.graph import head, ranking
from tests.support.small_models import linear_model, weights

ROUNDS, ROUND_SECONDS = 7, 0.05
PRIORS = 8
COLUMNS = (
    *("plain", "small", "whole", "blocks", "shared"),
    *("numpy", "logits", "all", "ruled small", "ruled"),
)

Calls = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 8142, 100_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = []
    print(f"{'classes':>8s}{'rows':>6s}" + "".join(f"{c:>13s}" for c in COLUMNS) + "   difference")
    for classes in given.classes:
        for rows in given.rows:
            line = measure(classes, rows, given.features, given.top_k)
            lines.append(line)
            cells = "".join(f"{line[c]:13.0f}" if c in line else f"{'–':>13s}" for c in COLUMNS)
            print(f"{classes:8d}{rows:6d}{cells}{line['difference']:13.1e}", flush=True)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(lines, indent=2) + "\n")


def measure(classes: int, rows: int, features: int, top_k: int) -> dict[str, float]:
    """One line of the table."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, features)) * 3 / features**0.5).astype(np.float32)  # logits ± 3
    table = rng.normal(size=(PRIORS, classes)).astype(np.float32)
    ruling = np.where(rng.random((PRIORS, classes)) < 0.9, np.float32(1e30), table)
    feeds = {
        "x": x,
        head.TAU: rng.uniform(0, 2, rows).astype(np.float32),
        head.PRIOR_INDEX: rng.integers(0, PRIORS, rows),
        head.PRIOR_TABLE: table,
        head.TOP_K: np.array([min(top_k, classes)]),
        head.FULL_ROWS: np.array([0]),
    }
    plain = opened(linear_model(features=features, classes=classes))
    small = opened(composed(features, classes, declared=0))
    ranked = functools.partial(small.run, [*head.RANKED])
    calls: Calls = {
        "plain": lambda: plain.run(None, {"x": x}),
        "small": lambda: ranked(feeds),
        "ruled small": lambda: ranked({**feeds, head.PRIOR_TABLE: ruling}),
    }
    if classes >= ranking.LARGE:
        calls |= of_large(features, classes, feeds, ruling)
    w, b = weights(features, classes)
    tau, index = feeds[head.TAU][:, None].astype(np.float64), feeds[head.PRIOR_INDEX]
    wanted = softmax(x.astype(np.float64) @ w + b - tau * table[index])
    found = calls["blocks" if "blocks" in calls else "small"]()
    difference = np.abs(found[1] - np.take_along_axis(wanted, found[0], axis=1)).max()
    return {
        "classes": classes,
        "rows": rows,
        **best_of_rounds(calls),
        "difference": float(difference),
    }


def of_large(features: int, classes: int, feeds: dict[str, Any], ruling: np.ndarray) -> Calls:
    """The calls of a head with both selections, and of NumPy in place of the head."""
    model = composed(features, classes, declared=classes)
    large = opened(model)
    given = [item.name for item in model.graph.input]
    unranked = opened(extracted(model, [head.ADJUSTED_LOGITS, head.LOGITS]))
    least = {name: feeds[name] for name in given if name in UNRANKED}
    k = int(feeds[head.TOP_K][0])
    blocks = {**feeds, head.BY_BLOCKS: np.array(True)}
    whole = {**feeds, head.BY_BLOCKS: np.array(False)}
    shared = {**blocks, head.TAU: blocks[head.TAU][:1], head.PRIOR_INDEX: np.array([1])}
    every = {**blocks, head.FULL_ROWS: np.array([len(feeds["x"])])}

    def numpy() -> object:
        adjusted, logits = unranked.run(None, least)
        best = np.argpartition(adjusted, -k, axis=1)[:, -k:]
        values = np.take_along_axis(adjusted, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1), logits.argmax(axis=1)

    return {
        "whole": lambda: large.run([*head.RANKED], whole),
        "blocks": lambda: large.run([*head.RANKED], blocks),
        "shared": lambda: large.run([*head.RANKED], shared),
        "numpy": numpy,
        "logits": lambda: large.run([*head.RANKED, head.LOGITS], blocks),
        "all": lambda: large.run([*head.RANKED, *head.FULL], every),
        "ruled": lambda: large.run([*head.RANKED], {**blocks, head.PRIOR_TABLE: ruling}),
    }


UNRANKED = ("x", head.TAU, head.PRIOR_INDEX, head.PRIOR_TABLE)


def composed(features: int, classes: int, *, declared: int) -> onnx.ModelProto:
    """A linear layer composed with the head that the service would build for `declared` classes."""
    model = linear_model(features=features, classes=classes)
    return head.compose(model, output="logits", kind="logits", classes=declared)


def extracted(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of a composed model that computes these outputs."""
    return onnx.utils.Extractor(model).extract_model([*UNRANKED], outputs)


def opened(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on the CPU with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # as in the service
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def best_of_rounds(calls: Calls) -> dict[str, float]:
    """The time of each call in µs: its best round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            count, begun = 0, time.process_time()
            while (passed := time.process_time() - begun) < ROUND_SECONDS:
                call()
                count += 1
            best[name] = min(best[name], 1e6 * passed / count)
    return best


if __name__ == "__main__":
    main()
