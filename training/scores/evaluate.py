"""Computes the scores of a classifier from its logits, at several values of tau. NumPy only."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector, adjust_logits, log_softmax
from service.contract.scores import (
    GROUPS,
    brier,
    class_totals,
    error,
    error_intervals,
    expected_calibration_error,
    group_errors,
    negative_log_likelihood,
    per_class_errors,
    target_weights,
)


def score(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperature: float,
    chosen_tau: float,
    train_class_counts: ArrayLike | None,
    log_target_prior: ArrayLike | None = None,
    served_tau: float | None = None,
    intervals: bool = True,
) -> dict[str, Any]:
    """Return every score of one split, ready for JSON; None where a score has no number.

    logits: [n, C]; labels: [n]; log_target_prior: [C], uniform by default. The top-level scores are
    at served_tau, by default chosen_tau; `at_tau` has those at 0 (the model as trained), 1 and
    chosen_tau. `error` is the share of wrong rows in the split as it is. `nll`, `ece` and `brier`
    weight the rows to the target's class mix, because adjusted probabilities hold only for that
    mix. `many`, `medium` and `few` group the classes by train_class_counts [C] and are None without
    it.
    """
    f = np.asarray(logits, np.float64)
    num_classes = f.shape[1]
    target = np.zeros(num_classes) if log_target_prior is None else np.asarray(log_target_prior)
    weights = target_weights(labels, np.exp(target - target.max()))
    served = chosen_tau if served_tau is None else served_tau
    at_tau: dict[str, dict[str, Any]] = {}
    for name, tau in (("0", 0.0), ("1", 1.0), ("chosen", chosen_tau), ("served", served)):
        adjusted = adjust_logits(
            f,
            log_source_prior=log_source_prior,
            log_target_prior=target,
            tau=tau,
            temperature=temperature,
        )
        at_tau[name] = {"tau": tau} | score_adjusted(
            adjusted,
            labels,
            weights=weights,
            train_class_counts=train_class_counts,
            intervals=intervals,
        )
    top = {key: value for key, value in at_tau.pop("served").items() if key != "tau"}
    short = {
        name: {key: value for key, value in scores.items() if key != "per_class"}
        for name, scores in at_tau.items()
    }
    return {"n": len(f), **top, "at_tau": short}


def score_adjusted(
    adjusted_logits: Vector,
    labels: NDArray[np.integer],
    *,
    weights: Vector,
    train_class_counts: ArrayLike | None,
    intervals: bool = True,
) -> dict[str, Any]:
    """Score the argmax and the softmax of adjusted_logits [n, C] as the model's answers.

    weights: [n] with mean 1, for the scores of probabilities; equal weights keep the split's own
    class mix. train_class_counts: [C], to group the classes. intervals: add 95 % intervals.
    """
    num_classes = adjusted_logits.shape[1]
    predicted = adjusted_logits.argmax(axis=1)
    log_probabilities = log_softmax(adjusted_logits)
    probabilities = np.exp(log_probabilities)
    by_class = per_class_errors(predicted, labels, num_classes)
    groups = (
        dict.fromkeys(GROUPS)
        if train_class_counts is None
        else {k: _number(v) for k, v in group_errors(by_class, train_class_counts).items()}
    )
    scores: dict[str, Any] = {
        "error": error(predicted, labels),
        "balanced_error": float(np.nanmean(by_class)),
        **groups,
        "ece": expected_calibration_error(probabilities, labels, weights),
        "nll": negative_log_likelihood(log_probabilities, labels, weights),
        "brier": brier(probabilities, labels, weights),
        "per_class": [_number(value) for value in by_class],
    }
    if intervals:
        found = error_intervals(by_class, class_totals(labels, num_classes))
        scores["error_interval"] = list(found.error)
        scores["balanced_error_interval"] = list(found.balanced_error)
    return scores


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
