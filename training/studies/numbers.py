"""Computes the numbers of a comparison from the outcomes of its runs.

From the logits on, it uses NumPy alone; only cRT and LWS fit a last layer with torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from service.contract.adjustment import Vector, adjust_logits
from service.contract.scores import target_weights
from training.run.retrain import learn_scales, retrain_classifier
from training.scores.calibrate import (
    TAU_GRID,
    choose_tau,
    fit_divided_share,
    fit_temperature,
    log_validation_prior_of,
)
from training.scores.evaluate import score_adjusted
from training.scores.posthoc import LastLayer, best_tau, norm_curve
from training.studies.curves import curves_of
from training.studies.methods import Method
from training.studies.outcomes import Outcome, SplitOutputs

Scores: TypeAlias = dict[str, Any]
SUMMARISED = (
    "error",
    "balanced_error",
    "many",
    "medium",
    "few",
    "nll",
    "ece",
    "brier",
    "calibrated_nll",
    "calibrated_ece",
    "tau",
    "norm_tau",
    "temperature",
    "seconds",
)


@dataclass(frozen=True)
class Answer:
    """A method's logits on both splits, and how to adjust them."""

    test: Vector
    val: Vector | None
    log_source_prior: Vector
    tau: float
    norm_tau: float | None = None
    """The tau of weight normalisation; None for other methods."""


def results_of(
    *,
    methods: Sequence[Method],
    seeds: Sequence[int],
    load: Callable[[str, int], Outcome],
) -> dict[str, Any]:
    """Return the scores of every method and seed, their summary, and the figures' data, for JSON.

    load: returns the outcome of a run, given the run's name and the seed.
    """
    scored: dict[str, dict[str, Scores]] = {method.name: {} for method in methods}
    curves: list[dict[str, Any]] = []
    for seed in seeds:
        outcomes = {run: load(run, seed) for run in dict.fromkeys(m.run for m in methods)}
        for method in methods:
            scored[method.name][str(seed)] = score_method(method, outcomes[method.run], seed=seed)
        curves.append(curves_of(outcomes))
    return {
        "seeds": list(seeds),
        "methods": {
            method.name: {
                "run": method.run,
                "afterwards": method.afterwards,
                "note": method.note,
                "seeds": scored[method.name],
                "summary": summary(scored[method.name].values()),
                "per_class": _per_class(scored[method.name].values()),
                "against_erm": paired(scored[method.name], scored.get("erm")),
            }
            for method in methods
        },
        "curves": curves,
    }


def score_method(method: Method, outcome: Outcome, *, seed: int) -> Scores:
    """Score a method on the test split.

    Errors count the method's own decisions, and `nll`, `ece` and `brier` use its own probabilities.
    The calibrated scores are taken after temperature and full adjustment to a uniform target, as
    the service would answer.
    """
    given = answer(method, outcome, seed=seed)
    test = outcome.test
    uniform = np.zeros(given.test.shape[1])
    weights = target_weights(test.labels, np.exp(uniform))
    own = score_adjusted(
        adjust_logits(
            given.test,
            log_source_prior=given.log_source_prior,
            log_target_prior=uniform,
            tau=given.tau,
        ),
        test.labels,
        weights=weights,
        train_class_counts=outcome.class_counts,
    )
    scores: Scores = {"n": len(test.labels), "tau": given.tau, "seconds": outcome.seconds, **own}
    if given.norm_tau is not None:
        scores["norm_tau"] = given.norm_tau
    if given.val is not None and outcome.val is not None:
        temperature = temperature_of(given, outcome.val)
        calibrated = score_adjusted(
            adjust_logits(
                given.test,
                log_source_prior=given.log_source_prior,
                log_target_prior=uniform,
                tau=1.0,
                temperature=temperature,
            ),
            test.labels,
            weights=weights,
            train_class_counts=None,
            intervals=False,
        )
        scores |= {
            "temperature": temperature,
            "calibrated_nll": calibrated["nll"],
            "calibrated_ece": calibrated["ece"],
        }
    return scores


def answer(method: Method, outcome: Outcome, *, seed: int) -> Answer:
    """Apply a method to the outcome of its run. seed: for methods that train a last layer."""
    if method.afterwards in ("nothing", "tau-one", "tau-chosen"):
        fixed = {"nothing": 0.0, "tau-one": 1.0}.get(method.afterwards)
        return _of_logits(outcome, tau=chosen_tau(outcome) if fixed is None else fixed)
    if method.afterwards in ("norm-one", "norm-chosen"):
        tau = 1.0 if method.afterwards == "norm-one" else chosen_norm_tau(outcome)
        return replace(_of_layer(outcome, _layer(outcome).normalised(tau)), norm_tau=tau)
    features, labels = _training(outcome)
    if method.afterwards == "crt":
        layer = retrain_classifier(features, labels, len(outcome.class_counts), seed=seed)
    else:
        layer = learn_scales(_layer(outcome), features, labels, seed=seed)
    return _of_layer(outcome, layer, balanced=True)


def chosen_tau(outcome: Outcome) -> float:
    """Return the tau with the lowest validation error, as in the paper; 1 without validation."""
    if outcome.val is None:
        return 1.0
    return choose_tau(
        outcome.val.logits,
        outcome.val.labels,
        log_source_prior=outcome.log_source_prior,
        grid=TAU_GRID,
    ).lowest


def chosen_norm_tau(outcome: Outcome) -> float:
    """Choose the tau of weight normalisation on the validation split; 1 without one."""
    if outcome.val is None or outcome.val.features is None:
        return 1.0
    return best_tau(norm_curve(_layer(outcome), outcome.val.features, outcome.val.labels))


def temperature_of(given: Answer, val: SplitOutputs) -> float:
    """Fit the temperature of a method's logits to the validation split."""
    assert given.val is not None
    return fit_temperature(
        given.val,
        val.labels,
        log_source_prior=given.log_source_prior,
        log_validation_prior=log_validation_prior_of(val.labels, given.val.shape[1]),
    )


def summary(scores: Sequence[Scores] | Any) -> dict[str, Any]:
    """Return {score: {"mean", "sd", "n"}} over the seeds; sd is None for one seed."""
    rows = list(scores)
    found: dict[str, Any] = {}
    for key in SUMMARISED:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            found[key] = {"mean": float(np.mean(values)), "sd": sd, "n": len(values)}
    return found


def paired(own: Mapping[str, Scores], erm: Mapping[str, Scores] | None) -> dict[str, Any] | None:
    """Compare with ERM by balanced error, paired by seed.

    Returns the mean difference, its 95 % t interval (None for one seed), and n.
    """
    if erm is None:
        return None
    differences = np.array([own[s]["balanced_error"] - erm[s]["balanced_error"] for s in own])
    return {
        "mean": float(differences.mean()),
        "interval": interval_of_mean(differences),
        "n": len(differences),
        "each": differences.tolist(),
    }


def interval_of_mean(values: ArrayLike) -> list[float] | None:
    """Return the 95 % t interval of the mean of values [n]; None for a single value."""
    each = np.asarray(values, np.float64)
    n = len(each)
    if n < 2:
        return None
    half = float(stats.t.ppf(0.975, n - 1) * each.std(ddof=1) / np.sqrt(n))
    mean = float(each.mean())
    return [mean - half, mean + half]


def _per_class(scores: Any) -> list[float | None]:
    table = np.array([[np.nan if v is None else v for v in row["per_class"]] for row in scores])
    counts = (~np.isnan(table)).sum(axis=0)
    sums = np.nansum(table, axis=0)
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]


def _of_logits(outcome: Outcome, *, tau: float) -> Answer:
    val = None if outcome.val is None else _wide(outcome.val.logits)
    return Answer(_wide(outcome.test.logits), val, outcome.log_source_prior, tau)


def _of_layer(outcome: Outcome, layer: LastLayer, *, balanced: bool = False) -> Answer:
    """Return the answer of a retrained last layer, whose logits are used without adjustment.

    balanced: the layer was trained under a uniform prior. Otherwise the share of the label
    frequencies that it has divided out is measured, as `fit` does.
    """
    assert outcome.test.features is not None
    val = outcome.val
    val_logits = None if val is None or val.features is None else layer.logits(val.features)
    share = 1.0
    if not balanced and val is not None and val_logits is not None:
        share = fit_divided_share(
            val_logits, val.labels, log_label_frequencies=outcome.log_source_prior
        )
    source = (1 - share) * outcome.log_source_prior
    return Answer(layer.logits(outcome.test.features), val_logits, source, 0.0)


def _layer(outcome: Outcome) -> LastLayer:
    assert outcome.layer is not None
    return outcome.layer


def _training(outcome: Outcome) -> tuple[Any, Any]:
    assert outcome.train_features is not None
    return outcome.train_features, outcome.train_labels


def _wide(logits: ArrayLike) -> Vector:
    return np.asarray(logits, np.float64)
