"""Computes what another prior or tau would change in recent traffic, and estimates the traffic's
prior.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_target_prior, softmax
from service.contract.bundle import Bundle
from service.contract.members.costs import REJECTED
from service.contract.prior import Prior, Vectors
from service.contract.shift.label_shift import NotConverged, em_prior
from service.contract.shift.tracking import Tracked
from service.contract.shift.verdict import SHRINKAGE, Assessment, assess, block_for, may_adopt
from service.priors.rule import CHUNK_CELLS, Rule, as_trained, chunks, jensen_shannon

_FEWEST_EM_ROWS = 100
_EM_CELLS = 400_000
_MOST_EM_CELLS = 4_000_000
"""The most logits of those fewest rows: 32 MB of float64."""
_ESTIMATE_CELLS = 2_000_000


class TooLittleTraffic(ValueError):
    """There are too few recent logits."""


class NotAdoptable(ValueError):
    """An estimate that the rule for adopting refuses; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """The effect of one rule on the traffic. Vectors are [C].

    An error is None when no posterior is known or, for the balanced error, no class is expected.
    A rejected row counts as an error.
    """

    rates: Vector
    mean_probability: Vector
    divergence: float
    """Jensen-Shannon divergence, in nats, of the mean probability from the rule's target."""
    expected_error: float | None
    expected_balanced_error: float | None
    rejected: float = 0.0
    """Share of the rows that are rejected by cost."""
    expected_cost: float | None = None
    """Mean cost of the decisions, where the rule has costs and a posterior is known."""


@dataclass(frozen=True)
class Preview:
    """The outcomes of two rules on the same rows."""

    rows: int
    decisions_changed: float
    before: Outcome
    after: Outcome


def preview(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    before: Rule,
    after: Rule,
    chunk_cells: int = CHUNK_CELLS,
) -> Preview:
    """Compare two rules on recent logits [n, C], n > 0, `chunk_cells` logits at a time.

    The expected errors use the posterior under the prior with the largest likelihood for this
    traffic, so they are only as good as the model's calibration.
    """
    num_classes = logits.shape[1]
    posterior_rule = _traffic_rule(logits, temperature, before.prior, after.prior)
    sums = [_Sums(num_classes), _Sums(num_classes)]
    class_mass = np.zeros(num_classes)
    changed = 0
    for chunk in chunks(logits, cells=chunk_cells):
        posterior = None
        if posterior_rule is not None:
            posterior = softmax(posterior_rule.adjust(chunk, temperature=temperature))
            class_mass += posterior.sum(axis=0)
        decisions = [
            total.count(rule, rule.adjust(chunk, temperature=temperature), posterior)
            for total, rule in zip(sums, (before, after), strict=True)
        ]
        changed += int((decisions[0] != decisions[1]).sum())
    outcomes = [
        total.outcome(len(logits), rule, class_mass if posterior_rule is not None else None)
        for total, rule in zip(sums, (before, after), strict=True)
    ]
    return Preview(len(logits), changed / len(logits), *outcomes)


def estimate(
    logits: NDArray[np.float32],
    *,
    bundle: Bundle,
    prior: Prior,
    capacity: int,
    shrinkage: float = SHRINKAGE,
    tracked: Tracked | None = None,
) -> Assessment:
    """Estimate the class prior of the traffic and judge the estimate.

    The model's estimation block calibrates it, unless the prior names label frequencies of its own.
    capacity: the most rows that are kept. shrinkage: pseudo-rows per class that pull the candidate
    toward the target in force. tracked: a tracker's estimate from more rows. Raises
    TooLittleTraffic when no row is kept.
    """
    if len(logits) == 0:
        raise TooLittleTraffic(
            "no recent rows are kept, so there is nothing to estimate from: send traffic first"
        )
    assert prior.log_source is not None
    own_frequencies = not prior.calibrated and bundle.calibrated_log_source is not None
    block, uncalibrated = block_for(bundle.estimation, own_frequencies=own_frequencies)
    most = max(1, _ESTIMATE_CELLS // logits.shape[1])
    return assess(
        logits[:: -(-len(logits) // most)],
        temperature=bundle.temperature,
        log_source=prior.log_source if block is None else block.log_source,
        current=prior.target,
        calibration=block,
        class_frequencies=bundle.class_counts,
        capacity=capacity,
        shrinkage=shrinkage,
        tracked=tracked,
        uncalibrated=uncalibrated,
    )


def check_adoptable(found: Assessment) -> None:
    """Raise NotAdoptable, with the reason, unless the rule for adopting an estimate allows it."""
    reason = may_adopt(found)
    if reason is not None:
        raise NotAdoptable(f"the estimate is not adopted: {reason}")


def evidence_note(found: Assessment) -> str:
    """The evidence for an adopted estimate, as the note of its revision."""
    parts = [
        f"adopted estimate of {found.estimate.n} rows worth {found.estimate.effective_n:.0f}",
        f"verdict {found.verdict}",
        f"gain {100 * found.gain.mean:.2f} points (at least {100 * found.gain.low:.2f})",
        f"step L1 {found.step:.3f}",
    ]
    if found.self_test is not None:
        parts.append(f"self-test {found.self_test:.3f}")
    if found.misfit is not None:
        parts.append(f"misfit p {found.misfit.p:.2g}")
    reason = may_adopt(found)
    return "; ".join(parts if reason is None else [*parts, f"forced although {reason}"])


class _Sums:
    """What one decision rule decides: sums over all chunks of the recent answers."""

    def __init__(self, num_classes: int) -> None:
        self.decided = np.zeros(num_classes)
        self.probability = np.zeros(num_classes)
        self.right = np.zeros(num_classes)
        self.rejected = 0
        self.cost = 0.0

    def count(self, rule: Rule, adjusted: Vector, posterior: Vector | None) -> NDArray[np.int64]:
        """Add a chunk [n, C] and return its decisions [n]; a rejected row has REJECTED."""
        decisions = rule.decide(adjusted)
        taken = np.flatnonzero(decisions != REJECTED)
        classes = decisions[taken]
        self.rejected += len(decisions) - len(taken)
        self.decided += np.bincount(classes, minlength=len(self.decided))
        self.probability += softmax(adjusted).sum(axis=0)
        if posterior is not None:
            self.right += np.bincount(classes, posterior[taken, classes], len(self.right))
            if rule.prior.costs is not None:
                self.cost += float(rule.prior.costs.of_decisions(posterior, decisions).sum())
        return decisions

    def outcome(self, rows: int, rule: Rule, class_mass: Vector | None) -> Outcome:
        mean = self.probability / rows
        error = balanced = None
        if class_mass is not None:
            present = class_mass >= 1  # expected at least once; a rarer class's recall is noise
            error = float(1 - self.right.sum() / rows)
            if present.any():
                balanced = float(1 - (self.right[present] / class_mass[present]).mean())
        priced = rule.prior.costs is not None and class_mass is not None
        return Outcome(
            self.decided / rows,
            mean,
            jensen_shannon(mean, rule.prior.target),
            error,
            balanced,
            rejected=self.rejected / rows,
            expected_cost=self.cost / rows if priced else None,
        )


def _traffic_rule(logits: NDArray[np.float32], temperature: float, *priors: Prior) -> Rule | None:
    """The rule whose probabilities are the posterior under the likeliest prior of this traffic.

    None when the source prior is unknown or the estimate does not converge.
    """
    known = next((prior for prior in reversed(priors) if prior.log_source is not None), None)
    if known is None or known.log_source is None:
        return None
    posteriors = softmax(as_trained(_thinned(logits), temperature=temperature))
    try:
        likeliest = em_prior(posteriors, source_prior=np.exp(known.log_source))
    except NotConverged:
        return None
    vectors = Vectors(None, likeliest, known.log_source, log_target_prior(likeliest))
    return Rule(Prior(vectors), 1.0)


def _thinned(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every k-th row, with k so large that expectation maximisation finishes within seconds."""
    few = min(_FEWEST_EM_ROWS, max(1, _MOST_EM_CELLS // logits.shape[1]))
    most = max(few, _EM_CELLS // logits.shape[1])
    return logits[:: -(-len(logits) // most)]
