"""What another prior or tau would have changed in recent traffic, and the prior that the traffic seems to have."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, adjust_logits, log_target_prior, softmax
from service.contract.label_shift import NotConverged, PriorEstimate, em_prior, estimate_prior
from service.contract.prior import Prior

MIN_ROWS_TO_ESTIMATE = 100
_CHUNK_CELLS = 1_000_000  # 8 MB of float64 at a time
_EM_CELLS = 400_000
_RESAMPLES = 40


class TooLittleTraffic(ValueError):
    """There are too few recent logits to say anything."""


@dataclass(frozen=True)
class Rule:
    """A prior and a tau to decide with."""

    prior: Prior
    tau: float


@dataclass(frozen=True)
class Outcome:
    """What one rule does to the traffic. Vectors are [C]; the errors are None where no posterior can be had."""

    rates: Vector
    mean_probability: Vector
    divergence: float
    """Jensen-Shannon divergence, in nats, of the mean probability from the rule's target."""
    expected_error: float | None
    expected_balanced_error: float | None


@dataclass(frozen=True)
class Preview:
    """Two rules on the same rows."""

    rows: int
    decisions_changed: float
    before: Outcome
    after: Outcome


def preview(
    logits: NDArray[np.float32], *, temperature: float, before: Rule, after: Rule
) -> Preview:
    """Compare two rules on recent logits [n, C], n > 0.

    The expected errors trust the model's posterior under the prior that makes this traffic likeliest.
    """
    num_classes = logits.shape[1]
    posterior_rule = _traffic_rule(logits, temperature, before.prior, after.prior)
    sums = [_Sums(num_classes), _Sums(num_classes)]
    class_mass = np.zeros(num_classes)
    changed = 0
    for start in range(0, len(logits), max(1, _CHUNK_CELLS // num_classes)):
        chunk = logits[start : start + max(1, _CHUNK_CELLS // num_classes)]
        posterior = (
            None
            if posterior_rule is None
            else softmax(_adjusted(chunk, posterior_rule, temperature))
        )
        if posterior is not None:
            class_mass += posterior.sum(axis=0)
        decisions = [
            total.count(_adjusted(chunk, rule, temperature), posterior)
            for total, rule in zip(sums, (before, after), strict=True)
        ]
        changed += int((decisions[0] != decisions[1]).sum())
    outcomes = [
        total.outcome(len(logits), rule, class_mass if posterior_rule is not None else None)
        for total, rule in zip(sums, (before, after), strict=True)
    ]
    return Preview(len(logits), changed / len(logits), *outcomes)


def estimate(logits: NDArray[np.float32], *, temperature: float, prior: Prior) -> PriorEstimate:
    """The class prior of the traffic, with intervals. Raises TooLittleTraffic, also when it cannot be told.

    `prior` gives the source prior; its target does not matter.
    """
    if len(logits) < MIN_ROWS_TO_ESTIMATE:
        raise TooLittleTraffic(
            f"{len(logits)} recent rows are held; at least {MIN_ROWS_TO_ESTIMATE} are needed"
        )
    assert prior.log_source is not None
    posteriors = softmax(np.asarray(_thinned(logits), np.float64) / temperature)
    try:
        return estimate_prior(
            posteriors, source_prior=np.exp(prior.log_source), resamples=_RESAMPLES
        )
    except NotConverged as error:
        raise TooLittleTraffic(str(error)) from error


def jensen_shannon(p: Vector, q: Vector) -> float:
    """Divergence of two distributions [C] in nats: 0 when they are equal, log 2 when they never overlap."""
    middle = (p + q) / 2
    return float(max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2))


class _Sums:
    """What is added up over the chunks for one rule."""

    def __init__(self, num_classes: int) -> None:
        self.decided = np.zeros(num_classes)
        self.probability = np.zeros(num_classes)
        self.right = np.zeros(num_classes)

    def count(self, adjusted: Vector, posterior: Vector | None) -> NDArray[np.int64]:
        """Add a chunk [n, C]; its decisions [n]."""
        decisions: NDArray[np.int64] = adjusted.argmax(axis=1)
        self.decided += np.bincount(decisions, minlength=len(self.decided))
        self.probability += softmax(adjusted).sum(axis=0)
        if posterior is not None:
            believed = np.take_along_axis(posterior, decisions[:, None], axis=1)[:, 0]
            self.right += np.bincount(decisions, believed, minlength=len(self.right))
        return decisions

    def outcome(self, rows: int, rule: Rule, class_mass: Vector | None) -> Outcome:
        mean = self.probability / rows
        error = balanced = None
        if class_mass is not None:
            present = class_mass >= 1  # expected at least once; the others' recalls would be noise
            error = float(1 - self.right.sum() / rows)
            balanced = float(1 - (self.right[present] / class_mass[present]).mean())
        return Outcome(
            self.decided / rows, mean, jensen_shannon(mean, rule.prior.target), error, balanced
        )


def _traffic_rule(logits: NDArray[np.float32], temperature: float, *priors: Prior) -> Rule | None:
    """The posterior under the likeliest prior of this traffic, as a rule; None when the source prior is unknown."""
    known = next((prior for prior in reversed(priors) if prior.log_source is not None), None)
    if known is None or known.log_source is None:
        return None
    posteriors = softmax(np.asarray(_thinned(logits), np.float64) / temperature)
    try:
        likeliest = em_prior(posteriors, source_prior=np.exp(known.log_source))
    except NotConverged:
        return None
    return Rule(Prior(None, likeliest, known.log_source, log_target_prior(likeliest)), 1.0)


def _adjusted(logits: NDArray[np.float32], rule: Rule, temperature: float) -> Vector:
    prior = rule.prior
    if rule.tau == 0 or prior.log_source is None:
        return np.asarray(logits, np.float64) / temperature
    return adjust_logits(
        logits,
        log_source_prior=prior.log_source,
        log_target_prior=prior.log_target,
        tau=rule.tau,
        temperature=temperature,
    )


def _thinned(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every k-th row, so that expectation maximisation takes seconds at most."""
    most = max(MIN_ROWS_TO_ESTIMATE, _EM_CELLS // logits.shape[1])
    return logits[:: -(-len(logits) // most)]


def _relative_entropy(p: Vector, q: Vector) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())
