"""The adjustment formula over logits in memory: for `/adjust`, previews, estimates and drift.

The ONNX head applies the same formula inside the graph. Everything here is float64 NumPy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, adjust_logits, softmax
from service.contract.bundle import Bundle
from service.contract.members.costs import Decisions
from service.contract.prior import Prior

CHUNK_CELLS = 1_000_000
"""How many logits are adjusted at a time: 8 MB of float64."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A prior and a tau to decide with."""

    prior: Prior
    tau: float

    def adjust(self, logits: NDArray[Any], *, temperature: float) -> Vector:
        """Adjusted logits [n, C]; as trained when tau is 0 or the source prior is unknown."""
        log_source = self.prior.log_source
        if self.tau == 0 or log_source is None:
            return as_trained(logits, temperature=temperature)
        return adjust_logits(
            logits,
            log_source_prior=log_source,
            log_target_prior=self.prior.log_target,
            tau=self.tau,
            temperature=temperature,
        )

    def decide(self, adjusted: Vector) -> NDArray[np.int64]:
        """The decision [n] of adjusted logits [n, C]: a class, or REJECTED.

        The most probable class; with costs, the one that is expected to cost least.
        """
        if self.prior.costs is None:
            likeliest: NDArray[np.int64] = adjusted.argmax(axis=1)
            return likeliest
        return self.prior.costs.decide(softmax(adjusted)).index


@dataclass(frozen=True, slots=True)
class Ranking:
    """The k best classes of each row, best first; ties go to the lower index."""

    indices: NDArray[np.int64]  # [n, k]
    probabilities: Vector  # [n, k]
    decisions: Decisions | None = None
    """By cost, where the prior has costs."""


def as_trained(logits: NDArray[Any], *, temperature: float) -> Vector:
    """The logits of tau = 0: `logits / temperature` in float64."""
    return np.asarray(logits, np.float64) / temperature


def rank(logits: NDArray[Any], rule: Rule | None, *, temperature: float, top_k: int) -> Ranking:
    """Rank the classes of logits [n, C] under a rule; None means tau = 0."""
    if rule is None:
        adjusted = as_trained(logits, temperature=temperature)
    else:
        adjusted = rule.adjust(logits, temperature=temperature)
    indices, probabilities = best(adjusted, top_k), softmax(adjusted)
    costs = None if rule is None else rule.prior.costs
    decisions = None if costs is None else costs.decide(probabilities)
    return Ranking(indices, np.take_along_axis(probabilities, indices, axis=1), decisions)


def best(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Indices [n, k] of each row's k largest values, largest first; ties go to the lower index."""
    columns = values.shape[1]
    if 4 * k >= columns:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    smallest_taken = np.partition(values, columns - k, axis=1)[:, columns - k]
    found = np.empty((len(values), k), np.int64)
    for row, (line, least) in enumerate(zip(values, smallest_taken, strict=True)):
        candidates = np.flatnonzero(line >= least)
        found[row] = candidates[np.argsort(-line[candidates], kind="stable")[:k]]
    return found


def source_warnings(bundle: Bundle) -> tuple[str, ...]:
    """Warnings about adjusting this model's answers, whatever the prior."""
    if bundle.provenance.get("source_prior") != "approximate":
        return ()
    return ("the model's source prior is approximate: its training objective has no exact one",)


def mean_probability(
    logits: NDArray[Any], rule: Rule, *, temperature: float, chunk_cells: int = CHUNK_CELLS
) -> Vector:
    """The mean over the rows [n, C], n > 0, of the adjusted probabilities: a vector [C]."""
    total = np.zeros(logits.shape[1])
    for rows in chunks(logits, cells=chunk_cells):
        total += softmax(rule.adjust(rows, temperature=temperature)).sum(axis=0)
    return total / len(logits)


def chunks(logits: NDArray[Any], *, cells: int = CHUNK_CELLS) -> Iterator[NDArray[Any]]:
    """The rows of logits [n, C] in order, at most `cells` numbers, or one row, at a time."""
    step = max(1, cells // logits.shape[1])
    for start in range(0, len(logits), step):
        yield logits[start : start + step]


def jensen_shannon(p: Vector, q: Vector) -> float:
    """Divergence of two distributions [C] in nats: 0 if equal, log 2 if they never overlap."""
    middle = (p + q) / 2
    return float(max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2))


def _relative_entropy(p: Vector, q: Vector) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())
